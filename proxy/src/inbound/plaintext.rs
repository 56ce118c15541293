//! Permissive mode: a client that speaks plaintext gets in while a `Permissive` covers the port, unless its address is a
//! meshed pod's, which has no reason to.

use std::time::Duration;

use byrnie_policy::{Peer, Request, authorize};
use byrnie_redirect::{Leg, OriginalDestination};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Admitted, Inbound, TOO_MANY, first_bytes, record};
use crate::limits::PERMISSIVE_SILENCE;
use crate::model::{AppProtocol, Meshed, OwnPod};
use crate::passthrough::{self, End, Waiting};
use crate::sockets;
use crate::streams::Grounds;
use crate::tunnel::client_hello::{ClientHelloReader, FirstBytes};
use crate::tunnel::server::dial_application;

impl Inbound {
    /// TLS is served as in strict mode; plaintext is passed by.
    pub(super) async fn permissive(self, own: &OwnPod) -> Option<Admitted> {
        if self.source_is_meshed().await {
            return self.strict(own).await;
        }
        let gate = self.shared.room.gate().enter(self.source.ip());
        let server_first = own.ports.get(&self.dialled.0.port()) == Some(&AppProtocol::ServerFirst);
        let patience = if server_first { Duration::ZERO } else { PERMISSIVE_SILENCE };
        let (mut reader, mut read) = (ClientHelloReader::default(), Vec::new());
        let reading = async {
            let first = first_bytes(&self.stream, &mut reader, &mut read, Instant::now() + patience).await;
            if matches!(first, Ok(FirstBytes::Incomplete)) && !read.is_empty() {
                // It began like TLS: the rest of the ClientHello is on its way.
                return first_bytes(&self.stream, &mut reader, &mut read, self.until).await;
            }
            first
        };
        let first = tokio::select! {
            first = reading => first,
            () = gate.evicted() => return self.turned_away(TOO_MANY.0, TOO_MANY.1.into()),
        };
        match first {
            Ok(FirstBytes::Offers) => self.tunnel(read, gate).await,
            Ok(FirstBytes::OtherTls)
                if own.policies.ingress.iter().any(|rule| rule.ports.contains(self.dialled.0.port())) =>
            {
                self.other_tls(own, read, gate).await;
                None
            }
            Ok(_) => {
                drop(gate);
                self.pass(own, read).await;
                None
            }
            Err(error) => {
                self.turned_away("closed-early", format!("the client closed before it had said what it is: {error}"))
            }
        }
    }

    /// Whether the control plane knows the source as a pod whose connections its own proxy secures.
    async fn source_is_meshed(&self) -> bool {
        let asked = std::net::SocketAddr::new(self.source.ip(), self.dialled.0.port());
        match self.shared.discovery.lookup(OriginalDestination(asked)).await {
            // A node's address may stand for a meshed pod's host port, and is not that pod as a source.
            Ok(source) => source.endpoints.iter().any(|endpoint| {
                let itself = endpoint.address.ip().to_canonical() == self.source.ip().to_canonical();
                itself && matches!(endpoint.meshed, Meshed::Yes(_))
            }),
            // Not known is not a proof: it is held to what a meshed pod is held to.
            Err(_) => true,
        }
    }

    async fn pass(self, own: &OwnPod, read: Vec<u8>) {
        let Inbound { shared, stream, source, dialled, .. } = self;
        sockets::reset_unless_clean(&stream);
        let port = dialled.0.port();
        let mut connection = record(&shared, source, dialled);
        let registered = shared.streams.register(Grounds::InboundPlaintext { source: source.ip(), port }, None);
        let request = Request { peer: Peer::Plaintext(source.ip()), port, now: shared.clock.wall() };
        let authorized = match authorize(&own.policies, &request) {
            Ok(authorized) => authorized,
            Err(decision) => {
                return connection.refuse(decision.reason.as_str(), decision.to_string());
            }
        };
        if let Err(cut) = registered.check(&shared) {
            return connection.refuse(cut.cause, cut.reason);
        }
        connection.decided(authorized.decision());
        let application: TcpStream = match dial_application(&shared, &authorized, dialled, false).await {
            Ok(application) => application,
            Err(error) => {
                return connection.refuse(error.cause(), format!("the application: {error}"));
            }
        };
        registered.carried_by(Leg::of(&stream).ok());
        connection.plaintext();
        let waiting = Waiting { up: &[], down: &read };
        let moved = passthrough::relay(&application, &stream, &registered, waiting).await;
        if matches!(moved.end, End::Clean) {
            sockets::ended_cleanly(&application);
            sockets::ended_cleanly(&stream);
        }
        connection.detail(moved.end.detail());
        // Counted as the client sees them.
        connection.finish(moved.received, moved.sent, moved.end.label());
    }
}
