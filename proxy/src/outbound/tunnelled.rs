//! To a meshed endpoint: a tunnel from the pool or a new one, a stream on it, and the tunnel back into the pool.

use std::net::IpAddr;
use std::time::Instant;

use byrnie_identity::SpiffeId;
use byrnie_proto::tunnel::v1;
use byrnie_redirect::Leg;

use super::{Failed, Outbound};
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
        mut connection: Connection,
        destination: &Destination,
        endpoint: &Endpoint,
        expected: &SpiffeId,
        early: &mut Early,
    ) -> Result<(), Failed> {
        let Some(own) = self.shared.certificates.current() else {
            let reason = "this proxy has no valid SVID".into();
            return Err(Failed { connection, cause: "no-svid", reason, retryable: false });
        };
        let key = Key { address: endpoint.address, expected: expected.clone(), generation: own.number };
        let begun = Instant::now();
        let under_way = self.worker.loads.begin(endpoint.address);
        let open = self.open_message(destination);
        if let Some(mut tunnel) = self.pooled(&key) {
            match self.stream(&mut tunnel, &mut connection, endpoint, &key, &open, early, false).await {
                Ok(end) => {
                    under_way.opened(begun.elapsed());
                    return self.finish(connection, tunnel, key, end).await;
                }
                Err(error) => {
                    discard(*tunnel, &error);
                    // A tunnel that has waited may be stale: a new one is a fair second try at the same endpoint.
                    if !error.retryable() || matches!(error, OpenError::Refused(_)) {
                        return Err(failed(connection, &error));
                    }
                }
            }
        }
        let mut tunnel = match client::dial(&self.shared, &own, endpoint.address, expected).await {
            Ok(tunnel) => Box::new(tunnel),
            Err(error) => {
                return Err(Failed { connection, cause: error.cause(), reason: error.to_string(), retryable: true });
            }
        };
        match self.stream(&mut tunnel, &mut connection, endpoint, &key, &open, early, true).await {
            Ok(end) => {
                under_way.opened(begun.elapsed());
                self.finish(connection, tunnel, key, end).await
            }
            Err(error) => {
                discard(*tunnel, &error);
                Err(failed(connection, &error))
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
        tunnel: &mut Tunnel,
        connection: &mut Connection,
        endpoint: &Endpoint,
        key: &Key,
        open: &v1::Open,
        early: &mut Early,
        fresh: bool,
    ) -> Result<Ended, OpenError> {
        let grounds =
            Grounds::Outbound { dialled: self.dialled.0, endpoint: key.address, expected: key.expected.clone() };
        let registered = self.shared.streams.register(grounds, Some(tunnel.peer().clone()));
        if let Err(cut) = registered.check(&self.shared) {
            return Ok(Ended { sent: 0, received: 0, end: End::Cut(cut) });
        }
        registered.carried_by([tunnel.leg(), Leg::of(&self.application).ok()]);
        client::open(tunnel, &self.shared, &self.application, early, open.clone()).await?;
        connection.destination(endpoint.workload.clone(), Some(key.expected.clone()));
        connection.reused(!fresh);
        connection.secured(&tunnel.facts().clone(), fresh);
        let already = early.bytes.len() as u64;
        early.bytes = Vec::new();
        let mut relay = Relay::new(&self.shared, tunnel, &self.application, &registered);
        let end = relay.run().await;
        Ok(Ended { sent: already + relay.sent, received: relay.received, end })
    }

    /// Records the end, and keeps the tunnel if it is good for another stream.
    async fn finish(
        &self,
        mut connection: Connection,
        tunnel: Box<Tunnel>,
        key: Key,
        ended: Ended,
    ) -> Result<(), Failed> {
        let Ended { sent, received, end } = ended;
        if matches!(end, End::Clean) {
            sockets::ended_cleanly(&self.application);
        }
        connection.detail(end.detail());
        connection.finish(sent, received, end.label());
        match end {
            End::Clean => Pool::put(&self.worker, &self.shared, key, tunnel),
            broken => match broken.reset_code() {
                Some(code) => tunnel.reset(code).await,
                None => drop(tunnel),
            },
        }
        Ok(())
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

/// How a stream that was opened ended.
struct Ended {
    sent: u64,
    received: u64,
    end: End,
}

fn failed(connection: Connection, error: &OpenError) -> Failed {
    Failed { connection, cause: error.label(), reason: error.to_string(), retryable: error.retryable() }
}

/// Lets go of a tunnel whose stream was not opened: in order where the peer still listens.
fn discard(tunnel: Tunnel, error: &OpenError) {
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
