//! What the demo found, as JSON. Every number in it was measured; what is unknown is null.

use std::collections::BTreeSet;

use byrnie_netlab::TapReport;
use byrnie_proto::mesh::v1::ObserveResponse;
use serde::Serialize;

use super::narrator::Narrator;
use crate::failure::Failure;
use crate::output::cannot_print;
use crate::view::{Edge, Identity, Refusal, edges};

/// Version of the JSON.
const SCHEMA: u32 = 1;

/// The whole report.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: u32,
    passed: bool,
    pub(super) checks: Vec<Check>,
    pub(super) identities: Vec<Identity>,
    pub(super) edges: Vec<Edge>,
    pub(super) requests: AllRequests,
    pub(super) refusals: Vec<Refusal>,
    pub(super) egress: Vec<Egress>,
    pub(super) wire: Wires,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
    #[serde(skip)]
    seen_refusals: BTreeSet<[String; 4]>,
}

/// Why the demo could not go on.
#[derive(Debug, Serialize)]
struct Error {
    summary: String,
    expected: Option<String>,
    found: Option<String>,
    next: Option<String>,
}

/// A promise, and whether it was kept.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) passed: bool,
    pub(super) expected: String,
    pub(super) found: String,
}

/// Requests of the client, by phase; null for a phase that was not reached.
#[derive(Debug, Default, Serialize)]
pub(super) struct AllRequests {
    pub(super) before: Option<Requests>,
    pub(super) after: Option<Requests>,
    pub(super) during_renewal: Option<Requests>,
    pub(super) during_outage: Option<Requests>,
}

/// Requests that were sent, and those of them without a good answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Requests {
    pub(super) sent: u64,
    pub(super) failed: u64,
}

/// One attempt to leave the mesh, and what the host outside saw of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Egress {
    pub(super) source: String,
    pub(super) dialled: String,
    pub(super) seen_source: Option<String>,
    pub(super) seen_destination: Option<String>,
    pub(super) allowed: bool,
}

/// The wire in both phases.
#[derive(Debug, Default, Serialize)]
pub(super) struct Wires {
    pub(super) before: Option<Wire>,
    pub(super) after: Option<Wire>,
}

/// What went over the pods' bridge in one phase.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Wire {
    pub(super) interfaces: Vec<String>,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) marker: String,
    pub(super) plaintext_seen: u64,
    pub(super) tls_records: u64,
}

impl Wire {
    /// The tap's counts, and the marker that it looked for.
    pub(super) fn new(tap: &TapReport, marker: &str) -> Self {
        Self {
            interfaces: tap.interfaces.iter().map(|each| each.name.clone()).collect(),
            packets: tap.packets,
            bytes: tap.bytes,
            marker: marker.to_owned(),
            plaintext_seen: tap.marker_hits,
            tls_records: tap.tls_records,
        }
    }
}

impl Report {
    /// Nothing found yet.
    pub(super) fn new() -> Self {
        Self {
            schema: SCHEMA,
            passed: false,
            checks: Vec::new(),
            identities: Vec::new(),
            edges: Vec::new(),
            requests: AllRequests::default(),
            refusals: Vec::new(),
            egress: Vec::new(),
            wire: Wires::default(),
            error: None,
            seen_refusals: BTreeSet::new(),
        }
    }

    /// Notes a check, and says it.
    pub(super) fn check(&mut self, narrator: &Narrator, check: Check) {
        narrator.verdict(check.passed, check.name, &check.found);
        if !check.passed {
            narrator.quote(&format!("expected: {}", check.expected));
        }
        self.checks.push(check);
    }

    /// Takes over what the control plane knows now. Refusals are collected: a control plane that restarts forgets.
    pub(super) fn take_over(&mut self, observed: &ObserveResponse) {
        self.identities = observed.identities.iter().map(Identity::from).collect();
        self.edges = edges(observed);
        for refusal in observed.refusals.iter().map(Refusal::from) {
            let Refusal { source, destination, cause, reason } = refusal.clone();
            if self.seen_refusals.insert([source, destination, cause, reason]) {
                self.refusals.push(refusal);
            }
        }
    }

    /// Whether every check passed, and there was one.
    pub(super) fn conclude(&mut self) -> bool {
        self.passed = !self.checks.is_empty() && self.checks.iter().all(|check| check.passed);
        self.passed
    }

    /// Prints the JSON, alone, on standard output.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let written = serde_json::to_writer_pretty(&mut out, self).map_err(std::io::Error::from);
        written.and_then(|()| std::io::Write::write_all(&mut out, b"\n")).map_err(cannot_print)
    }

    /// Prints what there is, of a demo that could not be played to its end.
    pub(super) fn print_failed(&mut self, failure: &Failure) -> Result<(), Failure> {
        let Failure { summary, expected, found, next, .. } = failure;
        let (summary, expected) = (summary.clone(), expected.clone());
        self.error = Some(Error { summary, expected, found: found.clone(), next: next.clone() });
        self.passed = false;
        self.print()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn filled() -> Report {
        let mut report = Report::new();
        let tap = TapReport { packets: 7, bytes: 700, marker_hits: 2, tls_records: 3, ..TapReport::default() };
        report.checks.push(Check { name: "edge-identities", passed: true, expected: "a".into(), found: "b".into() });
        report.requests.before = Some(Requests { sent: 20, failed: 0 });
        report.wire.before = Some(Wire::new(&tap, "marker"));
        report.egress.push(Egress {
            source: "shop/stock".into(),
            dialled: "203.0.113.10:8080".into(),
            seen_source: None,
            seen_destination: None,
            allowed: false,
        });
        report.take_over(&ObserveResponse {
            identities: vec![byrnie_proto::mesh::v1::IssuedIdentity::default()],
            edges: vec![byrnie_proto::mesh::v1::Edge { connections: 1, ..Default::default() }],
            refusals: vec![byrnie_proto::mesh::v1::Refusal::default()],
            ..ObserveResponse::default()
        });
        report.conclude();
        report
    }

    fn shape(value: &Value, path: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| shape(value, &format!("{path}.{name}"), into))
            }
            Value::Array(items) => items.iter().for_each(|value| shape(value, &format!("{path}[]"), into)),
            other => into.push(format!(
                "{path}: {}",
                match other {
                    Value::Null => "null",
                    Value::Bool(_) => "bool",
                    Value::Number(_) => "number",
                    _ => "string",
                }
            )),
        }
    }

    #[test]
    fn the_fields_are_those_that_scripts_rely_on() {
        let mut lines = Vec::new();
        shape(&serde_json::to_value(filled()).unwrap(), "", &mut lines);
        lines.sort();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_report_without_checks_has_not_passed() {
        assert!(!Report::new().conclude());
    }

    #[test]
    fn one_failed_check_fails_the_whole() {
        let mut report = filled();
        report.checks.push(Check { name: "x", passed: false, expected: String::new(), found: String::new() });
        assert!(!report.conclude());
    }

    #[test]
    fn a_refusal_that_is_seen_twice_is_reported_once() {
        let mut report = filled();
        let observed = ObserveResponse { refusals: vec![Default::default()], ..Default::default() };
        report.take_over(&observed);
        assert_eq!(report.refusals.len(), 1);
    }
}
