//! What the proxy tells of its connections: metrics, the access log, edges (who speaks to whom, and with what proof),
//! refusals and egress records. Everything is bounded, and nothing here ever makes a connection wait: the access log
//! drops lines when its reader is too slow, and counts what it dropped.

use std::net::SocketAddr;
use std::sync::Arc;

use byrnie_identity::Clock;
use byrnie_proto::mesh::v1 as proto;
use tokio::sync::Notify;

mod access_log;
mod connection;
mod edges;
mod http;
pub mod logging;
mod metrics;
mod records;

use access_log::AccessLogWriter;
pub use connection::Connection;
pub(crate) use connection::rfc3339;
pub(crate) use edges::Edge;
use edges::Edges;
#[cfg(test)]
pub(crate) use http::HttpCounts;
pub use metrics::{DirectionLabels, HandshakeLabels, Metrics, RefusalLabels, ResultLabels};
use records::Records;

use crate::config::AccessLog;

/// Counts and records connections. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

pub(crate) struct Inner {
    clock: Clock,
    metrics: Arc<Metrics>,
    edges: Arc<Edges>,
    records: Records,
    access_log: AccessLogWriter,
    changed: Notify,
}

/// Which end of a connection this proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The proxy of the server.
    Inbound,
    /// The proxy of the client.
    Outbound,
}

impl Direction {
    /// The label for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    pub(crate) fn to_proto(self) -> proto::Direction {
        match self {
            Self::Inbound => proto::Direction::Inbound,
            Self::Outbound => proto::Direction::Outbound,
        }
    }
}

/// What kind of edge a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EdgeKind {
    /// Between two pods of the cluster.
    #[default]
    Mesh,
    /// From a client that is no member of the mesh.
    Ingress,
    /// To a destination outside of the cluster.
    Egress,
}

impl EdgeKind {
    /// The label for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(crate) fn to_proto(self) -> proto::EdgeKind {
        match self {
            Self::Mesh => proto::EdgeKind::Mesh,
            Self::Ingress => proto::EdgeKind::Ingress,
            Self::Egress => proto::EdgeKind::Egress,
        }
    }
}

impl Telemetry {
    /// Opens the access log and makes the metrics.
    ///
    /// # Errors
    /// When the access log can't be opened.
    pub fn new(access_log: &AccessLog, clock: Clock) -> std::io::Result<Self> {
        let metrics = Arc::new(Metrics::new());
        let edges = Arc::new(Edges::default());
        metrics.collect_edges(Arc::clone(&edges));
        let access_log = AccessLogWriter::open(access_log, metrics.access_log_dropped.clone())?;
        let records = Records::default();
        Ok(Self(Arc::new(Inner { clock, metrics, edges, records, access_log, changed: Notify::new() })))
    }

    /// Begins the record of one connection. `source` is the address that dialled, `destination` the one it dialled
    /// (before capture redirected it). Boxed: a future keeps each argument twice, and this one is passed on and on.
    pub fn connection(&self, direction: Direction, source: SocketAddr, destination: SocketAddr) -> Box<Connection> {
        Box::new(Connection::new(Arc::clone(&self.0), direction, source, destination))
    }

    /// The handles of the proxy's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The edges, refusals and egress records as the control plane takes them; the status is not filled in.
    pub(crate) fn report(&self) -> proto::Report {
        proto::Report {
            status: None,
            edges: self.0.edges.report(),
            refusals: self.0.records.refusals(),
            egress: self.0.records.egress(),
        }
    }

    /// Ends when there is something new to report.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Says that there is something new to report.
    pub(crate) fn touch(&self) {
        self.0.changed.notify_one();
    }

    /// Writes out what the access log still holds; waits for at most a second.
    pub(crate) fn flush(&self) {
        self.0.access_log.flush();
    }
}

#[cfg(test)]
mod tests;
