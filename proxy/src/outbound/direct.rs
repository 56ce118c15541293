//! To what is not called through a tunnel: an unmeshed endpoint where that is allowed, the pod itself, and what lies
//! outside of the cluster. The address that the application dialled is kept, so that a firewall sees it.

use std::net::SocketAddr;

use byrnie_policy::{EgressRequest, Peer, Request, authorize, authorize_egress};
use byrnie_redirect::{Leg, OriginalDestination};
use tokio::net::TcpStream;

use super::{Failed, Outbound};
use crate::model::Endpoint;
use crate::passthrough::{self, End, Waiting};
use crate::sockets::{self, ConnectError};
use crate::streams::{Grounds, Registered};
use crate::telemetry::{Connection, EdgeKind};
use crate::tunnel::client::Early;
use crate::tunnel::server::dial_application;

impl Outbound {
    /// To an unmeshed endpoint in the cluster; the caller has seen that plaintext is allowed there.
    pub(super) async fn in_plaintext(
        &self,
        mut connection: Connection,
        endpoint: &Endpoint,
        early: &mut Early,
    ) -> Result<(), Failed> {
        let grounds = Grounds::OutboundPlaintext { dialled: self.dialled.0, endpoint: endpoint.address };
        let registered = self.shared.streams.register(grounds, None);
        if let Err(cut) = registered.check(&self.shared) {
            return Err(Failed { connection, cause: cut.cause, reason: cut.reason, retryable: false });
        }
        let under_way = self.worker.loads.begin(endpoint.address);
        let begun = std::time::Instant::now();
        let other = match sockets::connect(endpoint.address, self.shared.config.exempt).await {
            Ok(other) => other,
            Err(error) => {
                return Err(Failed { connection, cause: error.cause(), reason: error.to_string(), retryable: true });
            }
        };
        under_way.opened(begun.elapsed());
        connection.plaintext();
        self.carry(connection, other, &registered, early).await;
        Ok(())
    }

    /// To the pod itself, through one of its Services: inbound policy decides as it would for any other member.
    pub(super) async fn to_own_pod(
        &self,
        mut connection: Connection,
        endpoint: &Endpoint,
        early: &mut Early,
    ) -> Result<(), Failed> {
        let fail = |connection, cause, reason| Err(Failed { connection, cause, reason, retryable: false });
        let Some(own) = self.shared.certificates.current() else {
            return fail(connection, "no-svid", "this proxy has no valid SVID".into());
        };
        let identity = match self.shared.certificates.verifier().verify(own.svid.chain()) {
            Ok(identity) => identity,
            Err(error) => return fail(connection, error.cause.as_str(), error.to_string()),
        };
        let port = endpoint.address.port();
        let registered = self.shared.streams.register(Grounds::Inbound { port }, Some(identity.clone()));
        let request = Request { peer: Peer::Mesh(&identity), port, now: self.shared.clock.wall() };
        let authorized = match authorize(&self.own.policies, &request) {
            Ok(authorized) => authorized,
            Err(decision) => return fail(connection, decision.reason.as_str(), decision.to_string()),
        };
        if let Err(cut) = registered.check(&self.shared) {
            return fail(connection, cut.cause, cut.reason);
        }
        connection.destination(endpoint.workload.clone(), Some(identity.id().clone()));
        match dial_application(&self.shared, &authorized, OriginalDestination(endpoint.address)).await {
            Err(error) => {
                let retryable = matches!(error, ConnectError::Refused(_));
                Err(Failed { connection, cause: error.cause(), reason: error.to_string(), retryable })
            }
            Ok(application) => {
                self.carry(connection, application, &registered, early).await;
                Ok(())
            }
        }
    }

    /// Out of the cluster, where egress policy allows it.
    pub(super) async fn egress(&self, mut connection: Connection) {
        let destination: SocketAddr = self.dialled.0;
        connection.kind(EdgeKind::Egress);
        connection.destination(destination.to_string().into(), None);
        let registered = self.shared.streams.register(Grounds::Egress { destination }, None);
        let request =
            EgressRequest { source: &self.own.spiffe_id, destination: destination.ip(), port: destination.port() };
        let authorized = match authorize_egress(&self.own.policies, &request) {
            Ok(authorized) => authorized,
            Err(decision) => return self.refuse(connection, decision.reason.as_str(), decision.to_string()),
        };
        if let Err(cut) = registered.check(&self.shared) {
            return self.refuse(connection, cut.cause, cut.reason);
        }
        if let Some(rule) = &authorized.decision().rule {
            connection.rule(rule.clone());
        }
        let address = SocketAddr::new(authorized.destination(), authorized.port());
        match sockets::connect(address, self.shared.config.exempt).await {
            Err(error) => self.refuse(connection, error.cause(), error.to_string()),
            Ok(other) => {
                connection.plaintext();
                self.carry(connection, other, &registered, &mut Early::default()).await;
            }
        }
    }

    /// Moves the bytes as they are, beginning with what an attempt at another endpoint has read already.
    async fn carry(
        &self,
        mut connection: Connection,
        other: TcpStream,
        registered: &Registered<'_>,
        early: &mut Early,
    ) {
        sockets::reset_unless_clean(&other);
        registered.carried_by([&self.application, &other].map(|leg| Leg::of(leg).ok()));
        let already = std::mem::take(&mut early.bytes);
        let waiting = Waiting { up: &already, down: &[] };
        let moved = passthrough::relay(&self.application, &other, registered, waiting).await;
        if matches!(moved.end, End::Clean) {
            sockets::ended_cleanly(&self.application);
            sockets::ended_cleanly(&other);
        }
        connection.detail(moved.end.detail());
        connection.finish(moved.sent, moved.received, moved.end.label());
    }
}
