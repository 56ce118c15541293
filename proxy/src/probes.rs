//! Performs the kubelet's probes and `httpGet` hooks in its place. The kubelet speaks from outside of the mesh and has no
//! SVID, so a port in strict mode refuses it; it asks the proxy instead, which dials the application as itself. A probe
//! is exactly what was admitted with the pod and nothing else: the request chooses which one, and no part of it.

mod grpc;
mod http;
mod read;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use byrnie_proto::probes::{Probe, ProbeAction, Probes};
use byrnie_redirect::Exempt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

pub(crate) use read::read;

use crate::limits::PROBES;
use crate::sockets;

/// Performs the probes of one pod.
pub struct Prober {
    probes: Probes,
    exempt: Exempt,
    places: Semaphore,
}

/// What came of a probe: one sentence either way.
pub(crate) type Outcome = Result<String, String>;

/// Who asks, and where.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked<'a> {
    /// The address of this pod at which the request arrived: what the kubelet would have dialled.
    pub(crate) at: Option<IpAddr>,
    /// The kubelet's `User-Agent`, which is the original probe's.
    pub(crate) user_agent: Option<&'a str>,
}

impl Prober {
    /// Of these probes; it dials past capture as `exempt` says.
    pub fn new(probes: Probes, exempt: Exempt) -> Self {
        Self { probes, exempt, places: Semaphore::new(PROBES) }
    }

    /// Performs the probe `<container>/<kind>`; `None`: there is no such probe.
    pub(crate) async fn perform(&self, name: &str, asked: Asked<'_>) -> Option<Outcome> {
        let probe = self.probes.0.get(name)?;
        let limit = Duration::from_secs(probe.timeout_seconds.into());
        let performed = async {
            // Waits within the probe's own time, as it would at an application that is busy.
            let _place = self.places.acquire().await.map_err(|error| error.to_string())?;
            self.act(probe, &asked, is_hook(name)).await
        };
        let outcome = tokio::time::timeout(limit, performed).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())));
        tracing::debug!(name, ?outcome, "probed");
        Some(outcome)
    }

    async fn act(&self, probe: &Probe, asked: &Asked<'_>, hook: bool) -> Outcome {
        let own = || asked.at.ok_or("it is not known at which address of this pod the request arrived");
        match &probe.action {
            ProbeAction::HttpGet { https, host, port, path, headers } => {
                let host = host.clone().map_or_else(|| own().map(|ip| ip.to_string()), Ok)?;
                let url = http::Url { https: *https, host, port: *port, target: http::target(path) };
                // The kubelet takes any answer to a hook for a good one.
                let good = if hook { 100..600 } else { 200..400 };
                http::get(self, url, headers, asked.user_agent, good).await
            }
            ProbeAction::TcpSocket { host, port } => {
                let host = host.clone().map_or_else(|| own().map(|ip| ip.to_string()), Ok)?;
                self.dial(&host, *port).await.map(|_| format!("port {port} takes connections"))
            }
            ProbeAction::Grpc { port, service } => {
                let address = SocketAddr::new(own()?, *port);
                grpc::check(self.dial(&address.ip().to_string(), *port).await?, address, service).await
            }
        }
    }

    /// Connects past capture, straight to the application; the probe's own timeout bounds it.
    async fn dial(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => {
                let found = tokio::net::lookup_host((host, port)).await;
                found.map_err(|error| format!("{host} can't be resolved: {error}"))?.take(8).collect()
            }
        };
        let mut reason = format!("{host} has no address");
        for address in addresses {
            match sockets::connect_without_limit(address, self.exempt).await {
                Ok(stream) => return Ok(stream),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}

/// Whether `<container>/<kind>` is a hook of the container's life, whose failure the kubelet sees by a broken connection
/// alone: it does not look at the status.
pub(crate) fn is_hook(name: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(_, kind)| matches!(kind, "post-start" | "pre-stop"))
}

#[cfg(test)]
mod tests;
