//! Who speaks to whom, and with what proof: one row per (kind, direction, source, destination), bounded.
//!
//! A row's counters are atomics that a connection resolves once; the metrics are read from the same rows, so that the
//! two can't disagree and the number of label sets has the same bound.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use byrnie_identity::SpiffeId;
use byrnie_identity::tls::TlsFacts;
use byrnie_proto::mesh::v1 as proto;

use super::http::HttpCounts;
use super::{Direction, EdgeKind};

/// Rows held; beyond it connections count in a row named [`OTHER`]. A sidecar speaks with tens of workloads; 4,096 rows
/// of about 300 bytes stay under 2 MB, which the control plane takes in one report; the six rows for the rest (two
/// directions of three kinds) count among them.
pub(crate) const MAX_EDGES: usize = 4096 - 6;

/// Stands for every workload that found no row of its own.
pub(crate) const OTHER: &str = "other";

/// What tells edges apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EdgeKey {
    pub(crate) kind: EdgeKind,
    pub(crate) direction: Direction,
    pub(crate) source: Arc<str>,
    pub(crate) destination: Arc<str>,
}

/// One row.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) key: EdgeKey,
    /// Connections that were let through.
    pub(crate) connections: AtomicU64,
    /// Of these, those that ran over a verified session.
    pub(crate) secured: AtomicU64,
    /// Of these, those that ran in plaintext.
    pub(crate) plaintext: AtomicU64,
    pub(crate) handshakes: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    /// Of HTTP, once there was any.
    http: OnceLock<Box<HttpCounts>>,
    secured_since_ms: AtomicI64,
    proof: Mutex<Proof>,
}

/// What the last verified handshake of the row said.
#[derive(Debug, Default)]
struct Proof {
    source_id: Option<SpiffeId>,
    destination_id: Option<SpiffeId>,
    tls: Option<Arc<TlsFacts>>,
}

impl Edge {
    fn new(key: EdgeKey) -> Self {
        Self {
            key,
            connections: AtomicU64::new(0),
            secured: AtomicU64::new(0),
            plaintext: AtomicU64::new(0),
            handshakes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            http: OnceLock::new(),
            secured_since_ms: AtomicI64::new(0),
            proof: Mutex::default(),
        }
    }

    /// Where HTTP is counted.
    pub(crate) fn http(&self) -> &HttpCounts {
        self.http.get_or_init(Box::default)
    }

    /// What was counted of HTTP, if there was any.
    pub(crate) fn http_so_far(&self) -> Option<&HttpCounts> {
        self.http.get().map(|counts| &**counts)
    }

    /// Keeps what a verified handshake said.
    pub(crate) fn prove(
        &self,
        source_id: Option<&SpiffeId>,
        destination_id: Option<&SpiffeId>,
        tls: &Arc<TlsFacts>,
        now_ms: i64,
    ) {
        let _ = self.secured_since_ms.compare_exchange(0, now_ms, Relaxed, Relaxed);
        let mut proof = lock(&self.proof);
        proof.source_id = source_id.cloned();
        proof.destination_id = destination_id.cloned();
        proof.tls = Some(Arc::clone(tls));
    }

    fn to_proto(&self) -> proto::Edge {
        let connections = self.connections.load(Relaxed);
        let secured = self.secured.load(Relaxed);
        let handshakes = self.handshakes.load(Relaxed);
        let proof = lock(&self.proof);
        let id = |id: &Option<SpiffeId>| id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
        let tls = proof.tls.as_deref();
        proto::Edge {
            kind: self.key.kind.to_proto().into(),
            direction: self.key.direction.to_proto().into(),
            source: self.key.source.to_string(),
            destination: self.key.destination.to_string(),
            source_id: id(&proof.source_id),
            destination_id: id(&proof.destination_id),
            secured: secured > 0 && secured == connections,
            tls_version: tls.map(|tls| tls.version.to_string()).unwrap_or_default(),
            key_exchange: tls.map(|tls| tls.key_exchange.to_string()).unwrap_or_default(),
            cipher: tls.map(|tls| tls.cipher.to_string()).unwrap_or_default(),
            connections,
            handshakes,
            plaintext_connections: self.plaintext.load(Relaxed),
            secured_since_ms: self.secured_since_ms.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

/// The rows.
#[derive(Debug, Default)]
pub(crate) struct Edges(Mutex<HashMap<EdgeKey, Arc<Edge>>>);

impl Edges {
    /// The row of `key`, or, where the table is full, the row that counts for all that found none.
    pub(crate) fn resolve(&self, key: EdgeKey) -> Arc<Edge> {
        let mut table = lock(&self.0);
        if let Some(edge) = table.get(&key) {
            return Arc::clone(edge);
        }
        let key = if table.len() < MAX_EDGES {
            key
        } else {
            EdgeKey { source: OTHER.into(), destination: OTHER.into(), ..key }
        };
        Arc::clone(table.entry(key).or_insert_with_key(|key| Arc::new(Edge::new(key.clone()))))
    }

    /// All rows, in no order.
    pub(crate) fn rows(&self) -> Vec<Arc<Edge>> {
        lock(&self.0).values().cloned().collect()
    }

    pub(crate) fn report(&self) -> Vec<proto::Edge> {
        self.rows().iter().map(|edge| edge.to_proto()).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn key(source: String) -> EdgeKey {
        EdgeKey {
            kind: EdgeKind::Mesh,
            direction: Direction::Inbound,
            source: source.into(),
            destination: "shop/orders".into(),
        }
    }

    #[test]
    fn the_same_pair_has_one_row() {
        let edges = Edges::default();
        let first = edges.resolve(key("shop/web".into()));
        assert!(Arc::ptr_eq(&first, &edges.resolve(key("shop/web".into()))));
        assert!(!Arc::ptr_eq(&first, &edges.resolve(key("shop/other".into()))));
    }

    #[test]
    fn a_full_table_counts_the_rest_in_one_row() {
        let edges = Edges::default();
        for number in 0..MAX_EDGES + 500 {
            edges.resolve(key(format!("10.0.{}.{}", number / 256, number % 256))).connections.fetch_add(1, Relaxed);
        }
        let report = edges.report();
        assert_eq!(report.len(), MAX_EDGES + 1);
        let other = report.iter().find(|edge| edge.source == OTHER).unwrap();
        assert_eq!(other.connections, 500);
        assert_eq!(report.iter().map(|edge| edge.connections).sum::<u64>(), MAX_EDGES as u64 + 500);
    }

    #[test]
    fn one_connection_without_proof_makes_an_edge_unsecured() {
        let edge = Edge::new(key("shop/web".into()));
        assert!(!edge.to_proto().secured);
        edge.connections.fetch_add(2, Relaxed);
        edge.secured.fetch_add(2, Relaxed);
        assert!(edge.to_proto().secured);
        edge.connections.fetch_add(1, Relaxed);
        assert!(!edge.to_proto().secured);
    }
}
