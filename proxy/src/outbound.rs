//! The client's side of a connection: what the pod's application dialled. Where it leads is asked of discovery; how it
//! may be called is a fact of each endpoint, and a meshed one is called through a tunnel or not at all.

mod direct;
mod tunnelled;

use std::net::SocketAddr;
use std::sync::Arc;

use byrnie_redirect::{OriginalDestination, original_dst};
use tokio::net::{TcpListener, TcpStream};

use crate::inbound::accept;
use crate::limits::{ACCEPT_BACKOFF, ATTEMPTS};
use crate::model::{Destination, DestinationKind, Endpoint, Meshed, OwnPod};
use crate::readiness::Readiness;
use crate::shared::Shared;
use crate::telemetry::{Connection, Direction};
use crate::tunnel::client::Early;
use crate::tunnel::pool::Worker;

/// Accepts what capture brings to the outbound port, until the proxy ends.
pub async fn serve(shared: Arc<Shared>, worker: Arc<Worker>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &shared.room) => accepted,
            () = shared.drain.closing() => return,
        };
        match accepted {
            Some((stream, source, place)) => {
                let (shared, worker) = (shared.clone(), worker.clone());
                tokio::spawn(async move {
                    let _place = place;
                    handle(shared, worker, stream, source).await;
                });
            }
            None => tokio::time::sleep(ACCEPT_BACKOFF).await,
        }
    }
}

pub(crate) async fn handle(shared: Arc<Shared>, worker: Arc<Worker>, stream: TcpStream, source: SocketAddr) {
    let dialled = match original_dst(&stream) {
        Ok(dialled) if Readiness::is_canary(dialled) => return shared.readiness.answer_canary(stream, dialled).await,
        Ok(dialled) => dialled,
        Err(error) => {
            let address = stream.local_addr().unwrap_or(source);
            let connection = shared.telemetry.connection(Direction::Outbound, source, address);
            return connection.refuse("not-redirected", format!("expected a captured connection, found {error}"));
        }
    };
    let mut connection = shared.telemetry.connection(Direction::Outbound, source, dialled.0);
    let Some(own) = shared.control.own() else {
        return connection.refuse("not-ready", "this proxy has no policies yet".into());
    };
    connection.source(own.workload.clone(), Some(own.spiffe_id.clone()));
    let outbound = Outbound { shared, worker, application: stream, source, dialled, own };
    match outbound.carried(&mut connection).await {
        Ok(Ended { sent, received, end, detail }) => {
            connection.detail(detail);
            connection.finish(sent, received, end);
        }
        Err(Failed { cause, reason, .. }) => connection.refuse(cause, reason),
    }
}

/// One connection of the application.
struct Outbound {
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    application: TcpStream,
    source: SocketAddr,
    dialled: OriginalDestination,
    own: Arc<OwnPod>,
}

/// How the connection ended that an endpoint took, in bytes seen from the application.
struct Ended {
    sent: u64,
    received: u64,
    end: &'static str,
    detail: Option<String>,
}

/// Why an endpoint did not take the connection, and whether another may be tried.
struct Failed {
    cause: &'static str,
    reason: String,
    retryable: bool,
}

impl Outbound {
    /// What goes in plaintext is boxed: it is larger than a tunnel's part, and rarer.
    async fn carried(&self, connection: &mut Connection) -> Result<Ended, Failed> {
        let destination = self.shared.discovery.lookup(self.dialled).await.map_err(|error| Failed {
            cause: error.as_str(),
            reason: error.to_string(),
            retryable: false,
        })?;
        match destination.kind {
            DestinationKind::External => Box::pin(self.egress(connection, self.dialled.0, &mut Early::default())).await,
            DestinationKind::UnknownInternal => {
                let reason = format!("{} is inside the cluster, but no Service or pod has it", self.dialled.0);
                Err(Failed { cause: "unknown-destination", reason, retryable: false })
            }
            DestinationKind::Service | DestinationKind::Pod => self.to_endpoints(connection, destination).await,
        }
    }

    /// Tries endpoints until one takes the connection, each once, and only while the application can't notice. Trying one
    /// takes seconds where its pod is gone: what was heard of the destination meanwhile counts for the next.
    async fn to_endpoints(
        &self,
        connection: &mut Connection,
        mut destination: Arc<Destination>,
    ) -> Result<Ended, Failed> {
        if let Some(service) = &destination.service {
            connection.service(service.clone());
        }
        let mut early = Early::default();
        let mut tried = Vec::new();
        while let Some(endpoint) = self.worker.loads.choose(&destination.endpoints, &tried) {
            tried.push(endpoint.address);
            connection.destination(endpoint.workload.clone(), None);
            let failed = match self.to_endpoint(connection, &destination, endpoint, &mut early).await {
                Ok(ended) => return Ok(ended),
                Err(failed) => failed,
            };
            if !failed.retryable || tried.len() >= ATTEMPTS {
                return Err(failed);
            }
            if let Some(now) = self.shared.discovery.peek(self.dialled.0).filter(|now| now.kind == destination.kind) {
                destination = now;
            }
            if self.worker.loads.choose(&destination.endpoints, &tried).is_none() {
                return Err(failed);
            }
            tracing::warn!(cause = failed.cause, reason = failed.reason, "trying another endpoint");
        }
        let reason = format!("{} has no endpoint that takes connections", self.dialled.0);
        Err(Failed { cause: "no-endpoints", reason, retryable: false })
    }

    async fn to_endpoint(
        &self,
        connection: &mut Connection,
        destination: &Destination,
        endpoint: &Endpoint,
        early: &mut Early,
    ) -> Result<Ended, Failed> {
        let refused = |reason: &str| {
            let reason = format!(
                "{} ({}) is in an enrolled namespace, but not meshed, and {reason}",
                endpoint.workload, endpoint.address
            );
            Err(Failed { cause: "unmeshed-endpoint", reason, retryable: false })
        };
        match &endpoint.meshed {
            Meshed::Yes(_) if endpoint.pod_uid == self.own.pod_uid => {
                Box::pin(self.to_own_pod(connection, endpoint, early)).await
            }
            Meshed::Yes(expected) => self.through_tunnel(connection, destination, endpoint, expected, early).await,
            Meshed::EnrolledUnmeshed { permissive: false, .. } => refused("no Permissive MtlsPolicy covers it"),
            Meshed::EnrolledUnmeshed { until: Some(end), .. } if *end <= self.shared.clock.wall() => {
                refused("the Permissive MtlsPolicy that covered it has ended")
            }
            Meshed::EnrolledUnmeshed { .. } | Meshed::NotEnrolled => {
                Box::pin(self.in_plaintext(connection, endpoint, early)).await
            }
            Meshed::External => Box::pin(self.egress(connection, endpoint.address, early)).await,
        }
    }
}

#[cfg(test)]
mod tests;
