//! Performs the kubelet's probes and `httpGet` hooks in its place. The kubelet speaks from outside of the mesh and has no
//! SVID, so a port in strict mode refuses it; it asks the proxy instead, which dials the application as itself. A probe
//! is exactly what was admitted with the pod and nothing else: the request chooses which one, and no part of it.
//!
//! Everyone who reaches the pod reaches the port where it is asked for. So whoever asks must know the nonce that stands in
//! the pod's spec, before anything else is looked at; and each probe is performed once at a time, whoever asks for it.

mod grpc;
mod http;
mod read;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use byrnie_proto::probes::{Probe, ProbeAction, Probes};
use byrnie_redirect::Exempt;
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, Semaphore};

pub(crate) use read::read;

use crate::limits::PROBES;
use crate::sockets;

/// Performs the probes of one pod.
pub struct Prober {
    probes: Option<Probes>,
    exempt: Exempt,
    places: Semaphore,
    flights: Flights,
}

/// What came of a probe: one sentence either way.
pub(crate) type Outcome = Result<String, String>;

/// The probes that are being performed. A flight is held by those who wait for its outcome.
type Flights = Mutex<HashMap<String, Weak<OnceCell<Outcome>>>>;

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
    pub fn new(probes: Option<Probes>, exempt: Exempt) -> Self {
        Self { probes, exempt, places: Semaphore::new(PROBES), flights: Flights::default() }
    }

    /// Performs the probe `<container>/<kind>`; `None`: there is no such probe, or the nonce is another one. Whoever asks
    /// while it is being performed gets the same outcome.
    pub(crate) async fn perform(&self, nonce: &str, name: &str, asked: Asked<'_>) -> Option<Outcome> {
        let Probes { nonce: known, probes } = self.probes.as_ref()?;
        verify_slices_are_equal(known.as_str().as_bytes(), nonce.as_bytes()).ok()?;
        let probe = probes.get(name)?;
        let outcome = self.flight(name).get_or_init(|| self.perform_once(name, probe, &asked)).await.clone();
        Some(outcome)
    }

    /// The one that is under way, or a new one. If the asker that performs it goes away, the next one does.
    fn flight(&self, name: &str) -> Arc<OnceCell<Outcome>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = flights.get(name).and_then(Weak::upgrade).filter(|flight| !flight.initialized());
        under_way.unwrap_or_else(|| {
            let flight = Arc::default();
            // The names are those of the pod's probes: there are never more.
            flights.insert(name.to_owned(), Arc::downgrade(&flight));
            flight
        })
    }

    async fn perform_once(&self, name: &str, probe: &Probe, asked: &Asked<'_>) -> Outcome {
        let limit = Duration::from_secs(probe.timeout_seconds.into());
        let hook = is_hook(name);
        let performed = async {
            // Waits within the probe's own time, as it would at an application that is busy. A hook may take minutes and
            // is performed once at a time: it takes no place from the probes.
            let _place =
                if hook { None } else { Some(self.places.acquire().await.map_err(|error| error.to_string())?) };
            self.act(probe, asked, hook).await
        };
        let outcome = tokio::time::timeout(limit, performed).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())));
        tracing::debug!(name, ?outcome, "probed");
        outcome
    }

    async fn act(&self, probe: &Probe, asked: &Asked<'_>, hook: bool) -> Outcome {
        let own = asked.at.ok_or("it is not known at which address of this pod the request arrived")?;
        match &probe.action {
            ProbeAction::HttpGet { https, port, path, headers } => {
                let url = http::Url { https: *https, host: own.to_string(), port: *port, target: http::target(path) };
                // The kubelet takes any answer to a hook for a good one.
                let good = if hook { 100..600 } else { 200..400 };
                http::get(self, own, url, headers, asked.user_agent, good).await
            }
            ProbeAction::TcpSocket { port } => {
                self.dial(SocketAddr::new(own, *port)).await.map(|_| format!("port {port} takes connections"))
            }
            ProbeAction::Grpc { port, service } => {
                let address = SocketAddr::new(own, *port);
                grpc::check(self.dial(address).await?, address, service).await
            }
        }
    }

    /// Connects past capture, straight to the application; the probe's own timeout bounds it.
    async fn dial(&self, address: SocketAddr) -> Result<TcpStream, String> {
        sockets::connect_without_limit(address, self.exempt).await.map_err(|error| error.to_string())
    }
}

/// Whether `<container>/<kind>` is a hook of the container's life, whose failure the kubelet sees by a broken connection
/// alone: it does not look at the status.
pub(crate) fn is_hook(name: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(_, kind)| matches!(kind, "post-start" | "pre-stop"))
}

#[cfg(test)]
mod tests;
