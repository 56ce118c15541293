//! To a meshed endpoint: a tunnel from the pool or a new one, a stream on it, and the tunnel back into the pool.

use std::net::IpAddr;
use std::time::Instant;

use byrnie_identity::SpiffeId;
use byrnie_proto::tunnel::v1;

use super::{Ended, Failed, Outbound};
use crate::balance::UnderWay;
use crate::model::{AppProtocol, Destination, Endpoint};
use crate::sockets;
use crate::streams::Grounds;
use crate::telemetry::Connection;
use crate::tunnel::Tunnel;
use crate::tunnel::client::{self, Early, OpenError};
use crate::tunnel::pool::{Key, Pool};
use crate::tunnel::relay::{End, Relay};

impl Outbound {
    /// Carries the connection to `endpoint`, which has to be `expected`.
    pub(super) async fn through_tunnel(
        &self,
        connection: &mut Connection,
        destination: &Destination,
        endpoint: &Endpoint,
        expected: &SpiffeId,
        early: &mut Early,
    ) -> Result<Ended, Failed> {
        let Some(own) = self.shared.certificates.current() else {
            let reason = "this proxy has no valid SVID".into();
            return Err(Failed { cause: "no-svid", reason, retryable: false });
        };
        let key = Key { address: endpoint.address, expected: expected.clone(), generation: own.number };
        let attempt = Attempt {
            endpoint,
            key: &key,
            open: self.open_message(destination),
            is_http: destination.protocol == AppProtocol::Http,
            begun: Instant::now(),
            under_way: self.worker.loads.begin(endpoint.address),
        };
        let mut pooled = self.pooled(&key);
        loop {
            let fresh = pooled.is_none();
            let mut tunnel = match pooled.take() {
                Some(tunnel) => tunnel,
                // Boxed: it is over when the tunnel's quiet life begins.
                None => match Box::pin(client::dial(&self.shared, &own, endpoint.address, expected)).await {
                    Ok(tunnel) => tunnel,
                    Err(error) => {
                        let (cause, reason) = (error.cause(), error.to_string());
                        return Err(Failed { cause, reason, retryable: true });
                    }
                },
            };
            match self.stream(&attempt, &mut tunnel, connection, early, fresh).await {
                Ok(Carried { sent, received, end }) => {
                    let (label, detail) = (end.label(), end.detail());
                    self.let_go(tunnel, &key, &end);
                    return Ok(Ended { sent, received, end: label, detail });
                }
                Err(error) => {
                    discard(tunnel, &error);
                    // A tunnel that has waited may be stale: a new one is a fair second try at the same endpoint.
                    if fresh || !error.retryable() || matches!(error, OpenError::Refused(_)) {
                        let (cause, reason) = (error.label(), error.to_string());
                        return Err(Failed { cause, reason, retryable: error.retryable() });
                    }
                }
            }
        }
    }

    /// An idle tunnel whose peer still holds, by what is known now.
    fn pooled(&self, key: &Key) -> Option<Box<Tunnel>> {
        loop {
            let tunnel = self.worker.pool.take(key)?;
            let verifier = self.shared.certificates.verifier();
            if tunnel.peer().id() == &key.expected && verifier.check_still_valid(tunnel.peer()).is_ok() {
                return Some(tunnel);
            }
            tokio::spawn(tunnel.close());
        }
    }

    /// One stream on `tunnel`, from `OPEN` to its end.
    async fn stream(
        &self,
        attempt: &Attempt<'_>,
        tunnel: &mut Tunnel,
        connection: &mut Connection,
        early: &mut Early,
        fresh: bool,
    ) -> Result<Carried, OpenError> {
        let Attempt { endpoint, key, .. } = attempt;
        let grounds =
            Grounds::Outbound { dialled: self.dialled.0, endpoint: key.address, expected: key.expected.clone() };
        let registered = self.shared.streams.register(grounds, Some(tunnel.peer().clone()));
        if let Err(cut) = registered.check(&self.shared) {
            return Ok(Carried { sent: 0, received: 0, end: End::Cut(cut) });
        }
        registered.carried_by(tunnel.leg());
        client::open(tunnel, &self.shared, &self.application, early, attempt.open.clone()).await?;
        attempt.under_way.opened(attempt.begun.elapsed());
        connection.destination(endpoint.workload.clone(), Some(key.expected.clone()));
        connection.reused(!fresh);
        connection.secured(&tunnel.facts().clone(), fresh);
        let mut http = attempt.is_http.then(|| connection.follow_http());
        if let (Some(http), Some(since)) = (&mut http, early.since) {
            http.application_said(&early.bytes, since);
        }
        let already = early.bytes.len() as u64;
        early.bytes = Vec::new();
        let mut relay = Relay::new(&self.shared, tunnel, &self.application, &registered).shown_to(http);
        let end = relay.run().await;
        Ok(Carried { sent: already + relay.sent, received: relay.received, end })
    }

    /// Keeps the tunnel if it is good for another stream. Nothing is waited for: the application hears of its end now.
    fn let_go(&self, tunnel: Box<Tunnel>, key: &Key, end: &End) {
        match end {
            End::Clean => {
                sockets::ended_cleanly(&self.application);
                Pool::put(&self.worker, &self.shared, key.clone(), tunnel);
            }
            broken => {
                if let Some(code) = broken.reset_code() {
                    tokio::spawn(tunnel.reset(code));
                }
            }
        }
    }

    fn open_message(&self, destination: &Destination) -> v1::Open {
        let protocol = match destination.protocol {
            AppProtocol::Unknown => v1::Protocol::Unspecified,
            AppProtocol::Tcp | AppProtocol::ServerFirst => v1::Protocol::Tcp,
            AppProtocol::Http => v1::Protocol::Http,
            AppProtocol::H2c => v1::Protocol::H2c,
            AppProtocol::Grpc => v1::Protocol::Grpc,
        };
        let source_address = match self.source.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        v1::Open {
            protocol: protocol.into(),
            service: destination.service.as_deref().unwrap_or_default().to_owned(),
            traceparent: String::new(),
            source_address,
            source_port: self.source.port().into(),
            nonce: Vec::new(),
        }
    }
}

/// What stays the same while one endpoint is tried.
struct Attempt<'a> {
    endpoint: &'a Endpoint,
    key: &'a Key,
    open: v1::Open,
    is_http: bool,
    begun: Instant,
    under_way: UnderWay<'a>,
}

/// How a stream that was opened ended.
struct Carried {
    sent: u64,
    received: u64,
    end: End,
}

/// Lets go of a tunnel whose stream was not opened: in order where the peer still listens.
fn discard(tunnel: Box<Tunnel>, error: &OpenError) {
    match error {
        OpenError::Broken { .. } => drop(tunnel),
        OpenError::Application(_) => {
            tokio::spawn(tunnel.reset(v1::ResetCode::Application));
        }
        OpenError::Refused(_) | OpenError::GoAway | OpenError::Reset(_) => {
            tokio::spawn(tunnel.close());
        }
    }
}
