//! What the mesh is, in the words of the command's JSON: the demo's report and the listings share these types, so that
//! one fact has one name. Times are RFC 3339 in UTC, serials lower-case hexadecimal, workloads `namespace/name`, and
//! what is unknown is null.

use byrnie_proto::mesh::v1 as proto;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output::{Cell, Row};

/// An identity that the mesh issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Whose it is.
    pub workload: String,
    /// The SPIFFE ID.
    pub spiffe_id: String,
    /// Of the leaf certificate.
    pub serial: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// Begin of validity.
    pub not_before: Option<String>,
    /// End of validity.
    pub not_after: Option<String>,
}

/// All connections from one workload to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// `mesh`, `ingress` or `egress`.
    pub kind: &'static str,
    /// Who dialled.
    pub source: String,
    /// Who was dialled: a workload, or an address outside.
    pub destination: String,
    /// As verified in the handshake.
    pub source_id: Option<String>,
    /// As verified in the handshake.
    pub destination_id: Option<String>,
    /// Every connection went over a verified handshake, and there was one.
    pub secured: bool,
    /// `TLSv1.3`.
    pub tls_version: Option<String>,
    /// The group of the key exchange.
    pub key_exchange: Option<String>,
    /// The cipher suite.
    pub cipher: Option<String>,
    /// Connections of the application.
    pub connections: u64,
    /// Handshakes that were paid for them.
    pub handshakes: u64,
    /// Connections that went in plaintext.
    pub plaintext_connections: u64,
}

/// A proxy, as its control plane sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// Whose proxy it is.
    pub workload: String,
    /// Its stream to the control plane is open.
    pub connected: bool,
    /// It takes connections.
    pub ready: bool,
    /// Why not.
    pub not_ready_reason: Option<String>,
    /// Its pod is being deleted.
    pub terminating: bool,
    /// Its pod's connections are captured.
    pub captured: bool,
    /// Of the SVID that it uses.
    pub serial: Option<String>,
    /// End of that SVID's validity.
    pub not_after: Option<String>,
    /// Of the trust bundle that it holds.
    pub bundle_revision: u64,
    /// Application connections that are open now.
    pub open_streams: u64,
    /// Tunnels that wait for the next one.
    pub idle_tunnels: u64,
    /// Its program's version.
    pub version: Option<String>,
    /// The pod's addresses.
    pub addresses: Vec<String>,
    /// Resources that it could not take, and why.
    pub nacks: Vec<String>,
    /// Its administration socket.
    pub admin_socket: Option<String>,
}

/// A connection that the mesh refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Who dialled.
    pub source: String,
    /// Who was dialled.
    pub destination: String,
    /// A label from a closed set.
    pub cause: String,
    /// A sentence.
    pub reason: String,
}

impl From<&proto::IssuedIdentity> for Identity {
    fn from(from: &proto::IssuedIdentity) -> Self {
        Self {
            workload: from.workload.clone(),
            spiffe_id: from.spiffe_id.clone(),
            serial: from.serial.to_lowercase(),
            issuer: from.issuer.clone(),
            not_before: rfc3339(from.not_before),
            not_after: rfc3339(from.not_after),
        }
    }
}

impl From<&proto::Edge> for Edge {
    fn from(from: &proto::Edge) -> Self {
        Self {
            kind: match from.kind() {
                proto::EdgeKind::Ingress => "ingress",
                proto::EdgeKind::Egress => "egress",
                proto::EdgeKind::Mesh | proto::EdgeKind::Unspecified => "mesh",
            },
            source: from.source.clone(),
            destination: from.destination.clone(),
            source_id: known(&from.source_id),
            destination_id: known(&from.destination_id),
            secured: from.secured,
            tls_version: known(&from.tls_version),
            key_exchange: known(&from.key_exchange),
            cipher: known(&from.cipher),
            connections: from.connections,
            handshakes: from.handshakes,
            plaintext_connections: from.plaintext_connections,
        }
    }
}

/// The edges on which something went: an attempt that was refused is a refusal, and no edge.
pub fn edges(observed: &proto::ObserveResponse) -> Vec<Edge> {
    let edges = observed.edges.iter().map(Edge::from);
    edges.filter(|edge| edge.connections > 0 || edge.plaintext_connections > 0).collect()
}

impl Edge {
    /// Leaves the mesh: secured by nobody but the application itself, and no business of `--require-mtls`.
    pub fn is_egress(&self) -> bool {
        self.kind == "egress"
    }
}

impl From<&proto::ObservedProxy> for Proxy {
    fn from(from: &proto::ObservedProxy) -> Self {
        let status = from.status.clone().unwrap_or_default();
        Self {
            workload: from.workload.clone(),
            connected: from.connected,
            ready: status.ready,
            not_ready_reason: known(&status.not_ready_reason),
            terminating: from.terminating,
            captured: status.captured,
            serial: known(&status.svid_serial.to_lowercase()),
            not_after: rfc3339(status.svid_not_after),
            bundle_revision: status.bundle_revision,
            open_streams: status.open_streams,
            idle_tunnels: status.idle_tunnels,
            version: known(&status.version),
            addresses: from.addresses.clone(),
            nacks: from.nacks.clone(),
            admin_socket: known(&status.admin_socket),
        }
    }
}

impl From<&proto::Refusal> for Refusal {
    fn from(from: &proto::Refusal) -> Self {
        Self {
            source: from.source.clone(),
            destination: from.destination.clone(),
            cause: from.cause.clone(),
            reason: from.reason.clone(),
        }
    }
}

impl Row for Identity {
    const HEADINGS: &'static [&'static str] = &["WORKLOAD", "SPIFFE ID", "SERIAL", "NOT AFTER"];
    const WIDE_HEADINGS: &'static [&'static str] = &["NOT BEFORE", "ISSUER"];
    fn cells(&self) -> Vec<Cell> {
        let not_after = Cell::optional(self.not_after.as_deref());
        vec![self.workload.as_str().into(), self.spiffe_id.as_str().into(), self.serial.as_str().into(), not_after]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        vec![Cell::optional(self.not_before.as_deref()), self.issuer.as_str().into()]
    }
}

impl Row for Edge {
    const HEADINGS: &'static [&'static str] =
        &["KIND", "SOURCE", "DESTINATION", "SECURED", "TLS", "KEY EXCHANGE", "CONNECTIONS", "HANDSHAKES", "PLAINTEXT"];
    const WIDE_HEADINGS: &'static [&'static str] = &["CIPHER", "SOURCE ID", "DESTINATION ID"];
    fn cells(&self) -> Vec<Cell> {
        let plaintext = Cell::from(self.plaintext_connections);
        vec![
            self.kind.into(),
            self.source.as_str().into(),
            self.destination.as_str().into(),
            Cell::yes_no(self.secured),
            Cell::optional(self.tls_version.as_deref()),
            Cell::optional(self.key_exchange.as_deref()),
            self.connections.into(),
            self.handshakes.into(),
            if self.plaintext_connections > 0 { plaintext.bad() } else { plaintext },
        ]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        [&self.cipher, &self.source_id, &self.destination_id].map(|each| Cell::optional(each.as_deref())).into()
    }
}

impl Row for Proxy {
    const HEADINGS: &'static [&'static str] =
        &["WORKLOAD", "CONNECTED", "READY", "CAPTURED", "SERIAL", "NOT AFTER", "STREAMS", "IDLE TUNNELS"];
    const WIDE_HEADINGS: &'static [&'static str] =
        &["BUNDLE", "VERSION", "ADDRESSES", "NOT READY BECAUSE", "REFUSED RESOURCES"];
    fn cells(&self) -> Vec<Cell> {
        vec![
            self.workload.as_str().into(),
            Cell::yes_no(self.connected),
            Cell::yes_no(self.ready),
            Cell::yes_no(self.captured),
            Cell::optional(self.serial.as_deref()),
            Cell::optional(self.not_after.as_deref()),
            self.open_streams.into(),
            self.idle_tunnels.into(),
        ]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        vec![
            self.bundle_revision.into(),
            Cell::optional(self.version.as_deref()),
            self.addresses.join(",").into(),
            Cell::optional(self.not_ready_reason.as_deref()),
            self.nacks.join("; ").into(),
        ]
    }
}

/// Whether a workload, `namespace/name`, is in that namespace.
pub fn in_namespace(workload: &str, namespace: &str) -> bool {
    workload.split_once('/').is_some_and(|(of, _)| of == namespace)
}

/// Unix seconds as RFC 3339 in UTC; 0 and what no calendar holds are unknown.
pub fn rfc3339(seconds: i64) -> Option<String> {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().filter(|_| seconds != 0)?;
    time.format(&Rfc3339).ok()
}

fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_null() {
        let edge = Edge::from(&proto::Edge {
            kind: proto::EdgeKind::Egress as i32,
            source: "shop/stock".into(),
            destination: "203.0.113.10:80".into(),
            ..Default::default()
        });
        let json = serde_json::to_value(&edge).unwrap();
        for field in ["source_id", "destination_id", "tls_version", "key_exchange", "cipher"] {
            assert!(json[field].is_null(), "{field}");
        }
        assert_eq!(rfc3339(0), None);
    }

    #[test]
    fn an_attempt_that_was_refused_is_no_edge() {
        let refused = proto::Edge { refused: 3, ..Default::default() };
        let plaintext = proto::Edge { plaintext_connections: 1, ..Default::default() };
        let observed = proto::ObserveResponse { edges: vec![refused, plaintext], ..Default::default() };
        assert_eq!(edges(&observed).len(), 1);
    }

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(rfc3339(1_789_000_000).unwrap(), "2026-09-10T00:26:40Z");
    }

    #[test]
    fn an_edge_has_exactly_the_documented_fields() {
        let json = serde_json::to_value(Edge::from(&proto::Edge::default())).unwrap();
        let mut fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        fields.sort();
        assert_eq!(
            fields.join(" "),
            "cipher connections destination destination_id handshakes key_exchange kind plaintext_connections \
             secured source source_id tls_version"
        );
    }
}
