#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use byrnie_identity::tls::TlsFacts;
use serde_json::Value;

use super::*;
use crate::test_support::id;
use byrnie_policy::{Decision, Reason};

struct Recorded {
    telemetry: Telemetry,
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
}

fn recorded() -> Recorded {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let telemetry = Telemetry::new(&AccessLog::File(path.clone()), Clock::system()).unwrap();
    Recorded { telemetry, _directory: directory, path }
}

impl Recorded {
    fn connection(&self, direction: Direction) -> Box<Connection> {
        let (source, destination) = ("10.1.0.5:40000".parse().unwrap(), "10.96.0.10:80".parse().unwrap());
        self.telemetry.connection(direction, source, destination)
    }

    fn secured(&self, new_handshake: bool) -> Box<Connection> {
        let mut connection = self.connection(Direction::Inbound);
        connection.source("shop/web".into(), Some(id("web")));
        connection.destination("shop/orders".into(), Some(id("orders")));
        connection.secured(&facts(), new_handshake);
        connection
    }

    fn lines(&self) -> Vec<Value> {
        self.telemetry.flush();
        let text = std::fs::read_to_string(&self.path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn facts() -> Arc<TlsFacts> {
    Arc::new(TlsFacts {
        version: "TLSv1.3",
        key_exchange: "X25519MLKEM768".into(),
        cipher: "TLS13_AES_128_GCM_SHA256".into(),
    })
}

#[test]
fn a_secured_connection_is_proved_at_its_edge_and_written_once() {
    let recorded = recorded();
    recorded.secured(true).finish(120, 4096, "clean");
    recorded.secured(false).finish(1, 2, "clean");
    let edges = recorded.telemetry.report().edges;
    assert_eq!(edges.len(), 1);
    let edge = &edges[0];
    assert!(edge.secured);
    assert_eq!((edge.connections, edge.handshakes, edge.plaintext_connections), (2, 1, 0));
    assert_eq!(edge.source_id, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((edge.tls_version.as_str(), edge.key_exchange.as_str()), ("TLSv1.3", "X25519MLKEM768"));
    assert!(edge.secured_since_ms > 0);
    let lines = recorded.lines();
    assert_eq!(lines.len(), 2);
    let line = &lines[0];
    for (name, value) in [
        ("direction", "inbound"),
        ("src.addr", "10.1.0.5:40000"),
        ("src.workload", "web"),
        ("src.namespace", "shop"),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ("dst.addr", "10.96.0.10:80"),
        ("dst.workload", "orders"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/orders"),
        ("connection.security", "mutual_tls"),
        ("tls.protocol.version", "1.3"),
        ("tls.cipher", "TLS13_AES_128_GCM_SHA256"),
        ("tls.curve", "X25519MLKEM768"),
        ("connection.end", "clean"),
    ] {
        assert_eq!(line[name], value, "{name}");
    }
    assert_eq!((line["bytes_sent"].as_u64(), line["bytes_recv"].as_u64()), (Some(120), Some(4096)));
    assert!(line["duration"].as_str().unwrap().ends_with("ms") && line.get("error").is_none());
}

#[test]
fn a_connection_that_nobody_finished_is_aborted_and_still_counted() {
    let recorded = recorded();
    drop(recorded.secured(true));
    assert_eq!(recorded.lines()[0]["connection.end"], "aborted");
    let text = recorded.telemetry.metrics().encode();
    assert!(text.contains("byrnie_open_connections{direction=\"inbound\"} 0"), "{text}");
    assert!(text.contains("byrnie_tcp_connections_closed_total{"), "{text}");
}

fn by_rule(reason: Reason, rule: &str) -> Decision {
    Decision { allowed: reason.allows(), rule: Some(rule.into()), reason, audited: vec![] }
}

#[test]
fn a_rule_in_audit_that_would_have_refused_is_in_the_log_and_the_metric() {
    let recorded = recorded();
    let mut connection = recorded.connection(Direction::Inbound);
    connection.decided(&Decision {
        allowed: true,
        rule: None,
        reason: Reason::DefaultAllow,
        audited: vec!["AuthorizationPolicy shop/strict[0]".into()],
    });
    connection.finish(1, 1, "clean");
    assert_eq!(recorded.lines()[0]["policy.audited"], serde_json::json!(["AuthorizationPolicy shop/strict[0]"]));
    let text = recorded.telemetry.metrics().encode();
    assert!(text.contains("byrnie_audited_connections_total{direction=\"inbound\"} 1"), "{text}");
}

#[test]
fn a_refusal_is_in_the_log_the_ring_the_edge_and_the_metric() {
    let recorded = recorded();
    let mut connection = recorded.connection(Direction::Inbound);
    connection.correlation_id("c0ffee");
    connection.decided(&by_rule(Reason::DenyRule, "AuthorizationPolicy shop/orders[0]"));
    connection.refuse("policy-denied", "port 80 is not allowed".into());
    let line = &recorded.lines()[0];
    assert_eq!(line["refusal.cause"], "policy-denied");
    assert_eq!(line["error"], "port 80 is not allowed");
    assert_eq!(line["correlation_id"], "c0ffee");
    let report = recorded.telemetry.report();
    assert_eq!((report.refusals[0].source.as_str(), report.refusals[0].cause.as_str()), ("10.1.0.5", "policy-denied"));
    assert_eq!((report.edges[0].refused, report.edges[0].connections, report.edges[0].secured), (1, 0, false));
    let text = recorded.telemetry.metrics().encode();
    let expected = "byrnie_refused_connections_total{direction=\"inbound\",cause=\"policy-denied\"} 1";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn plaintext_that_was_let_in_is_counted_by_source() {
    let recorded = recorded();
    let mut connection = recorded.connection(Direction::Inbound);
    connection.kind(EdgeKind::Ingress);
    connection.plaintext();
    connection.finish(1, 1, "clean");
    let edge = &recorded.telemetry.report().edges[0];
    assert_eq!((edge.plaintext_connections, edge.secured), (1, false));
    let text = recorded.telemetry.metrics().encode();
    let expected = "byrnie_permissive_plaintext_connections_total{kind=\"ingress\",source_workload=\"10.1.0.5\"} 1";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn egress_is_recorded_whether_it_was_allowed_or_not() {
    let recorded = recorded();
    for allowed in [true, false] {
        let mut connection = recorded.connection(Direction::Outbound);
        connection.source("shop/stock".into(), None);
        connection.kind(EdgeKind::Egress);
        if allowed {
            connection.decided(&by_rule(Reason::EgressRule, "EgressPolicy shop/out[0]"));
            connection.plaintext();
            connection.finish(1, 1, "clean");
        } else {
            connection.refuse("egress-denied", "no rule names it".into());
        }
    }
    let mut egress = recorded.telemetry.report().egress;
    egress.sort_by_key(|row| row.allowed);
    assert_eq!(egress.len(), 2);
    assert_eq!((egress[0].allowed, egress[0].dialled.as_str()), (false, "10.96.0.10:80"));
    assert_eq!((egress[1].allowed, egress[1].rule.as_str()), (true, "EgressPolicy shop/out[0]"));
    assert_eq!(egress[1].source, "shop/stock");
}

#[test]
fn a_second_tunnel_of_one_connection_counts_one_connection_and_two_handshakes() {
    let recorded = recorded();
    let mut connection = recorded.secured(true);
    connection.secured(&facts(), true);
    connection.finish(0, 0, "clean");
    let edge = &recorded.telemetry.report().edges[0];
    assert_eq!((edge.connections, edge.handshakes), (1, 2));
}

#[test]
fn what_a_peer_says_can_not_break_the_metrics_format() {
    let recorded = recorded();
    let mut connection = recorded.connection(Direction::Inbound);
    connection.source("shop/\"} 1\n# EOF\n".into(), None);
    connection.plaintext();
    drop(connection);
    let text = recorded.telemetry.metrics().encode();
    assert_eq!(text.matches("\n# EOF\n").count(), 1, "{text}");
}

#[tokio::test]
async fn who_reports_is_told_of_changes() {
    let recorded = recorded();
    recorded.secured(true).finish(0, 0, "clean");
    tokio::time::timeout(std::time::Duration::from_secs(5), recorded.telemetry.changed()).await.unwrap();
}
