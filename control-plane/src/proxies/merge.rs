//! Both ends of an edge see it, and several pods may be one workload: one line for each pair.

use std::{collections::BTreeMap, sync::Arc};

use byrnie_proto::mesh::v1::{Direction, Edge, EdgeKind, EgressRecord, Report};

use super::place;
use crate::model::Model;

/// One edge per source, destination and kind.
pub(super) fn edges(model: &Model, reports: &[(Arc<str>, Report)]) -> Vec<Edge> {
    let mut merged: BTreeMap<(i32, String, String), Ends> = BTreeMap::new();
    for (workload, report) in reports {
        for edge in &report.edges {
            let inbound = match edge.direction() {
                Direction::Inbound => true,
                Direction::Outbound => false,
                // Nobody knows whose word it is.
                Direction::Unspecified => continue,
            };
            if edge.kind() == EdgeKind::Unspecified {
                continue;
            }
            // A proxy speaks for its own pod only.
            let (source, destination) = if inbound {
                (place(model, &edge.source), workload.to_string())
            } else if edge.kind() == EdgeKind::Egress {
                (workload.to_string(), edge.destination.clone())
            } else {
                (workload.to_string(), place(model, &edge.destination))
            };
            let ends = merged.entry((edge.kind, source, destination)).or_default();
            let end = if inbound { &mut ends.inbound } else { &mut ends.outbound };
            end.get_or_insert_default().add(edge);
        }
    }
    merged.into_iter().map(|((kind, source, destination), ends)| ends.edge(kind, source, destination)).collect()
}

/// One record per source, dialled address, verdict and rule.
pub(super) fn egress(reports: &[(Arc<str>, Report)]) -> Vec<EgressRecord> {
    let mut merged: BTreeMap<(String, String, bool, String), u64> = BTreeMap::new();
    for (workload, report) in reports {
        for record in &report.egress {
            let key = (workload.to_string(), record.dialled.clone(), record.allowed, record.rule.clone());
            let count = merged.entry(key).or_default();
            *count = count.saturating_add(record.connections);
        }
    }
    let record =
        |((source, dialled, allowed, rule), connections)| EgressRecord { source, dialled, allowed, rule, connections };
    merged.into_iter().map(record).collect()
}

#[derive(Default)]
struct Ends {
    inbound: Option<End>,
    outbound: Option<End>,
}

/// What the proxies at one end saw, added up.
#[derive(Default)]
struct End {
    edge: Edge,
    unsecured: bool,
    contradiction: bool,
}

impl End {
    fn add(&mut self, edge: &Edge) {
        // A line of nothing but refusals is no word about how bytes went.
        if edge.connections > 0 || edge.plaintext_connections > 0 {
            self.unsecured |= !edge.secured || edge.plaintext_connections > 0;
        }
        let sum = &mut self.edge;
        self.contradiction |=
            differ(&sum.source_id, &edge.source_id) || differ(&sum.destination_id, &edge.destination_id);
        sum.connections = sum.connections.saturating_add(edge.connections);
        sum.handshakes = sum.handshakes.saturating_add(edge.handshakes);
        sum.plaintext_connections = sum.plaintext_connections.saturating_add(edge.plaintext_connections);
        sum.refused = sum.refused.saturating_add(edge.refused);
        fill(&mut sum.source_id, &edge.source_id);
        fill(&mut sum.destination_id, &edge.destination_id);
        fill(&mut sum.tls_version, &edge.tls_version);
        fill(&mut sum.key_exchange, &edge.key_exchange);
        fill(&mut sum.cipher, &edge.cipher);
        sum.secured_since_ms = earliest(sum.secured_since_ms, edge.secured_since_ms);
        sum.secured |= edge.secured;
    }
}

impl Ends {
    /// Secured is what everyone who saw connections calls secured, with one mind about who was there. Each end counts
    /// the same connections: the larger number is the one that has seen more of them.
    fn edge(self, kind: i32, source: String, destination: String) -> Edge {
        let ends = || self.outbound.iter().chain(&self.inbound);
        let mut edge = Edge { kind, direction: Direction::Unspecified.into(), source, destination, ..Edge::default() };
        let mut contradiction = false;
        for end in ends() {
            contradiction |= end.contradiction
                || differ(&edge.source_id, &end.edge.source_id)
                || differ(&edge.destination_id, &end.edge.destination_id);
            fill(&mut edge.source_id, &end.edge.source_id);
            fill(&mut edge.destination_id, &end.edge.destination_id);
            fill(&mut edge.tls_version, &end.edge.tls_version);
            fill(&mut edge.key_exchange, &end.edge.key_exchange);
            fill(&mut edge.cipher, &end.edge.cipher);
            edge.connections = edge.connections.max(end.edge.connections);
            edge.handshakes = edge.handshakes.max(end.edge.handshakes);
            edge.plaintext_connections = edge.plaintext_connections.max(end.edge.plaintext_connections);
            edge.refused = edge.refused.max(end.edge.refused);
            edge.secured_since_ms = earliest(edge.secured_since_ms, end.edge.secured_since_ms);
        }
        edge.secured = ends().any(|end| end.edge.secured) && !ends().any(|end| end.unsecured) && !contradiction;
        edge
    }
}

fn differ(one: &str, other: &str) -> bool {
    !one.is_empty() && !other.is_empty() && one != other
}

fn fill(to: &mut String, from: &str) {
    if to.is_empty() {
        from.clone_into(to);
    }
}

fn earliest(one: i64, other: i64) -> i64 {
    if one == 0 || (other != 0 && other < one) { other } else { one }
}
