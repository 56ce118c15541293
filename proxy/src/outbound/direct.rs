//! To what is not called through a tunnel: an unmeshed endpoint where that is allowed, the pod itself, and what lies
//! outside of the cluster. The address that the application dialled is kept, so that a firewall sees it.

use std::net::SocketAddr;

use byrnie_policy::{EgressRequest, Peer, Request, authorize, authorize_egress};
use byrnie_redirect::{Leg, OriginalDestination};
use tokio::net::TcpStream;

use super::{Ended, Failed, Outbound};
use crate::model::Endpoint;
use crate::passthrough::{self, End, Moved, Waiting};
use crate::sockets::{self, ConnectError};
use crate::streams::{Grounds, Registered};
use crate::telemetry::{Connection, EdgeKind};
use crate::tunnel::client::Early;
use crate::tunnel::server::dial_application;

impl Outbound {
    /// To an unmeshed endpoint in the cluster; the caller has seen that plaintext is allowed there.
    pub(super) async fn in_plaintext(
        &self,
        connection: &mut Connection,
        endpoint: &Endpoint,
        early: &mut Early,
    ) -> Result<Ended, Failed> {
        let grounds = Grounds::OutboundPlaintext { dialled: self.dialled.0, endpoint: endpoint.address };
        let registered = self.shared.streams.register(grounds, None);
        if let Err(cut) = registered.check(&self.shared) {
            return Err(Failed { cause: cut.cause, reason: cut.reason, retryable: false });
        }
        let under_way = self.worker.loads.begin(endpoint.address);
        let begun = std::time::Instant::now();
        let other = match sockets::connect(endpoint.address, self.shared.config.exempt).await {
            Ok(other) => other,
            Err(error) => {
                return Err(Failed { cause: error.cause(), reason: error.to_string(), retryable: true });
            }
        };
        under_way.opened(begun.elapsed());
        connection.plaintext();
        Ok(self.carry(other, &registered, early).await)
    }

    /// To the pod itself, through one of its Services: inbound policy decides as it would for any other member.
    pub(super) async fn to_own_pod(
        &self,
        connection: &mut Connection,
        endpoint: &Endpoint,
        early: &mut Early,
    ) -> Result<Ended, Failed> {
        let fail = |cause, reason| Err(Failed { cause, reason, retryable: false });
        let Some(own) = self.shared.certificates.current() else {
            return fail("no-svid", "this proxy has no valid SVID".into());
        };
        let identity = match self.shared.certificates.verifier().verify(own.svid.chain()) {
            Ok(identity) => identity,
            Err(error) => return fail(error.cause.as_str(), error.to_string()),
        };
        let port = endpoint.address.port();
        let registered = self.shared.streams.register(Grounds::Inbound { port }, Some(identity.clone()));
        let request = Request { peer: Peer::Mesh(&identity), port, now: self.shared.clock.wall() };
        let authorized = match authorize(&self.own.policies, &request) {
            Ok(authorized) => authorized,
            Err(decision) => return fail(decision.reason.as_str(), decision.to_string()),
        };
        if let Err(cut) = registered.check(&self.shared) {
            return fail(cut.cause, cut.reason);
        }
        connection.destination(endpoint.workload.clone(), Some(identity.id().clone()));
        match dial_application(&self.shared, &authorized, OriginalDestination(endpoint.address), false).await {
            Err(error) => {
                let retryable = matches!(error, ConnectError::Refused(_));
                Err(Failed { cause: error.cause(), reason: error.to_string(), retryable })
            }
            Ok(application) => Ok(self.carry(application, &registered, early).await),
        }
    }

    /// Out of the cluster, where egress policy allows it.
    pub(super) async fn egress(
        &self,
        connection: &mut Connection,
        destination: SocketAddr,
        early: &mut Early,
    ) -> Result<Ended, Failed> {
        let fail = |cause, reason| Err(Failed { cause, reason, retryable: false });
        connection.kind(EdgeKind::Egress);
        connection.destination(destination.to_string().into(), None);
        let registered = self.shared.streams.register(Grounds::Egress { dialled: self.dialled.0, destination }, None);
        let request =
            EgressRequest { source: &self.own.spiffe_id, destination: destination.ip(), port: destination.port() };
        let authorized = match authorize_egress(&self.own.policies, &request) {
            Ok(authorized) => authorized,
            Err(decision) => return fail(decision.reason.as_str(), decision.to_string()),
        };
        if let Err(cut) = registered.check(&self.shared) {
            return fail(cut.cause, cut.reason);
        }
        connection.decided(authorized.decision());
        let address = SocketAddr::new(authorized.destination(), authorized.port());
        match sockets::connect(address, self.shared.config.exempt).await {
            Err(error) => fail(error.cause(), error.to_string()),
            Ok(other) => {
                connection.plaintext();
                Ok(self.carry(other, &registered, early).await)
            }
        }
    }

    /// Moves the bytes as they are, beginning with what an attempt at another endpoint has read already.
    async fn carry(&self, other: TcpStream, registered: &Registered<'_>, early: &mut Early) -> Ended {
        sockets::reset_unless_clean(&other);
        registered.carried_by(Leg::of(&other).ok());
        let already = std::mem::take(&mut early.bytes);
        let waiting = Waiting { up: &already, down: &[] };
        let moved = passthrough::relay(&self.application, &other, registered, waiting).await;
        if matches!(moved.end, End::Clean) {
            sockets::ended_cleanly(&self.application);
            sockets::ended_cleanly(&other);
        }
        let Moved { sent, received, end } = moved;
        Ended { sent, received, end: end.label(), detail: end.detail() }
    }
}
