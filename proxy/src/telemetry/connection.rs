//! The record of one connection: one access-log line, its metrics, and its edge, each written exactly once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use byrnie_identity::SpiffeId;
use byrnie_identity::tls::TlsFacts;
use byrnie_policy::Decision;
use byrnie_proto::mesh::v1 as proto;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use tokio::time::Instant;

use super::edges::{Edge, EdgeKey};
use super::metrics::{DirectionLabels, RefusalLabels};
use super::records::EgressKey;
use super::{Direction, EdgeKind, Inner};
use crate::http::Exchanges;

/// What a line of the access log usually fits into, in bytes.
const LINE: usize = 1024;

/// What is known of one connection so far. Dropping it unfinished records the end `aborted`.
pub struct Connection {
    telemetry: Arc<Inner>,
    direction: Direction,
    source_address: SocketAddr,
    destination_address: SocketAddr,
    started: Instant,
    open: Gauge,
    facts: Facts,
    edge: Option<Arc<Edge>>,
    done: bool,
}

#[derive(Default)]
struct Facts {
    source: Option<Arc<str>>,
    source_id: Option<SpiffeId>,
    destination: Option<Arc<str>>,
    destination_id: Option<SpiffeId>,
    service: Option<Arc<str>>,
    rule: Option<Arc<str>>,
    kind: EdgeKind,
    security: Security,
    tls: Option<Arc<TlsFacts>>,
    correlation_id: Option<Box<str>>,
    reused: Option<bool>,
    detail: Option<String>,
    audited: Vec<Arc<str>>,
}

/// How the connection was carried between the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Security {
    /// Not carried (yet), or within the pod.
    #[default]
    None,
    MutualTls,
    Plaintext,
}

impl Connection {
    pub(super) fn new(
        telemetry: Arc<Inner>,
        direction: Direction,
        source_address: SocketAddr,
        destination_address: SocketAddr,
    ) -> Self {
        let labels = DirectionLabels { direction: direction.as_str() };
        let open = telemetry.metrics.open_connections.get_or_create(&labels).clone();
        open.inc();
        Self {
            telemetry,
            direction,
            source_address,
            destination_address,
            started: Instant::now(),
            open,
            facts: Facts::default(),
            edge: None,
            done: false,
        }
    }

    /// Who dialled: `namespace/name`, and the identity where it was verified.
    pub fn source(&mut self, workload: Arc<str>, id: Option<SpiffeId>) {
        self.facts.source = Some(workload);
        self.facts.source_id = id;
    }

    /// Who was dialled: `namespace/name`, and the identity where it was verified.
    pub fn destination(&mut self, workload: Arc<str>, id: Option<SpiffeId>) {
        self.facts.destination = Some(workload);
        self.facts.destination_id = id;
    }

    /// The Service that was dialled.
    pub fn service(&mut self, service: Arc<str>) {
        self.facts.service = Some(service);
    }

    /// What policy decided: the rule, and the rules in audit that would have decided otherwise.
    pub fn decided(&mut self, decision: &Decision) {
        self.facts.rule = decision.rule.clone();
        self.facts.audited = decision.audited.clone();
        if !decision.audited.is_empty() {
            let labels = DirectionLabels { direction: self.direction.as_str() };
            self.telemetry.metrics.audited_connections.get_or_create(&labels).inc();
        }
    }

    /// What kind of edge it belongs to; [`EdgeKind::Mesh`] where it is not called.
    pub fn kind(&mut self, kind: EdgeKind) {
        self.facts.kind = kind;
    }

    /// Says that both ends of the TLS session were verified, and counts the connection as secured at its edge. Call it
    /// after [`Self::source`] and [`Self::destination`].
    pub fn secured(&mut self, tls: &Arc<TlsFacts>, new_handshake: bool) {
        let edge = self.edge();
        let now = milliseconds(self.telemetry.clock.wall());
        edge.prove(self.facts.source_id.as_ref(), self.facts.destination_id.as_ref(), tls, now);
        if new_handshake {
            edge.handshakes.fetch_add(1, Relaxed);
            self.telemetry.metrics.handshake(self.direction, "ok");
        }
        self.facts.tls = Some(Arc::clone(tls));
        self.carried(&edge, Security::MutualTls);
    }

    /// Says that the connection goes in plaintext between the pods, and counts it so at its edge.
    pub fn plaintext(&mut self) {
        let edge = self.edge();
        self.carried(&edge, Security::Plaintext);
    }

    /// What the peer's log has too, so that both ends' operators find the same event.
    pub fn correlation_id(&mut self, id: &str) {
        self.facts.correlation_id = Some(id.into());
    }

    /// Whether the tunnel had carried a stream before.
    pub fn reused(&mut self, reused: bool) {
        self.facts.reused = Some(reused);
    }

    /// Why the connection is about to end as it does, for the access log.
    pub fn detail(&mut self, detail: Option<String>) {
        self.facts.detail = detail;
    }

    /// The connection was refused. `cause` is a label of a closed set; it becomes a metric's label.
    pub fn refuse(mut self, cause: &'static str, reason: String) {
        let edge = self.edge();
        edge.refused.fetch_add(1, Relaxed);
        let metrics = &self.telemetry.metrics;
        metrics.refusals.get_or_create(&RefusalLabels { direction: self.direction.as_str(), cause }).inc();
        if self.facts.kind == EdgeKind::Egress {
            self.left(&edge, false);
        }
        self.telemetry.records.refused(proto::Refusal {
            source: edge.key.source.to_string(),
            destination: edge.key.destination.to_string(),
            cause: cause.to_owned(),
            reason: reason.clone(),
            at_ms: milliseconds(self.telemetry.clock.wall()),
            direction: self.direction.to_proto().into(),
        });
        self.end(0, 0, "refused", Some((cause, &reason)));
    }

    /// The connection has ended. Bytes are the application's, seen from the client: sent to the server and received
    /// from it. `end` is a label such as `clean` or `reset-by-peer`.
    pub fn finish(mut self, bytes_sent: u64, bytes_received: u64, end: &'static str) {
        self.end(bytes_sent, bytes_received, end, None);
    }

    fn carried(&mut self, edge: &Edge, security: Security) {
        if self.facts.security != Security::None {
            // A second tunnel after a retry: the same connection.
            return;
        }
        self.facts.security = security;
        edge.connections.fetch_add(1, Relaxed);
        match security {
            Security::MutualTls => edge.secured.fetch_add(1, Relaxed),
            Security::Plaintext | Security::None => edge.plaintext.fetch_add(1, Relaxed),
        };
        if self.facts.kind == EdgeKind::Egress {
            self.left(edge, true);
        }
        self.telemetry.changed.notify_one();
    }

    fn left(&self, edge: &Edge, allowed: bool) {
        self.telemetry.records.left(EgressKey {
            source: Arc::clone(&edge.key.source),
            dialled: self.destination_address.to_string(),
            allowed,
            rule: self.facts.rule.clone().unwrap_or_else(|| "".into()),
        });
    }

    /// Follows the HTTP/1.1 of the connection, which counts at its edge. Call it after [`Self::secured`].
    pub fn follow_http(&mut self) -> Box<Exchanges> {
        Exchanges::new(self.edge(), self.direction)
    }

    fn edge(&mut self) -> Arc<Edge> {
        let workload = |workload: &Option<Arc<str>>, address: SocketAddr| match workload {
            Some(workload) => Arc::clone(workload),
            None => address.ip().to_canonical().to_string().into(),
        };
        let key = EdgeKey {
            kind: self.facts.kind,
            direction: self.direction,
            source: workload(&self.facts.source, self.source_address),
            destination: workload(&self.facts.destination, self.destination_address),
        };
        match &self.edge {
            Some(edge) if edge.key == key || self.facts.security != Security::None => Arc::clone(edge),
            _ => Arc::clone(self.edge.insert(self.telemetry.edges.resolve(key))),
        }
    }

    fn end(&mut self, sent: u64, received: u64, end: &'static str, refused: Option<(&'static str, &str)>) {
        self.done = true;
        self.open.dec();
        if refused.is_none() {
            let edge = self.edge();
            if self.facts.security == Security::None {
                edge.connections.fetch_add(1, Relaxed);
            }
            edge.closed.fetch_add(1, Relaxed);
            edge.bytes_sent.fetch_add(sent, Relaxed);
            edge.bytes_received.fetch_add(received, Relaxed);
        } else if self.facts.security != Security::None {
            self.edge().closed.fetch_add(1, Relaxed);
        }
        self.telemetry.changed.notify_one();
        if self.telemetry.access_log.is_on() {
            let mut line = Vec::with_capacity(LINE);
            if serde_json::to_writer(&mut line, &self.line(sent, received, end, refused)).is_ok() {
                line.push(b'\n');
                self.telemetry.access_log.write(line);
            }
        }
    }

    fn line<'a>(
        &'a self,
        bytes_sent: u64,
        bytes_received: u64,
        end: &'static str,
        refused: Option<(&'static str, &'a str)>,
    ) -> Line<'a> {
        let facts = &self.facts;
        let tls = facts.tls.as_deref();
        Line {
            time: rfc3339(self.telemetry.clock.wall()),
            direction: self.direction.as_str(),
            kind: facts.kind.as_str(),
            src_addr: self.source_address,
            src_workload: facts.source.as_deref().map(name),
            src_namespace: facts.source.as_deref().and_then(namespace),
            src_identity: facts.source_id.as_ref().map(SpiffeId::as_str),
            dst_addr: self.destination_address,
            dst_service: facts.service.as_deref(),
            dst_workload: facts.destination.as_deref().map(name),
            dst_namespace: facts.destination.as_deref().and_then(namespace),
            dst_identity: facts.destination_id.as_ref().map(SpiffeId::as_str),
            security: match facts.security {
                Security::None => None,
                Security::MutualTls => Some("mutual_tls"),
                Security::Plaintext => Some("none"),
            },
            tls_protocol_name: tls.map(|_| "tls"),
            tls_protocol_version: tls.map(|tls| tls.version).map(|version| version.trim_start_matches("TLSv")),
            tls_cipher: tls.map(|tls| &*tls.cipher),
            tls_curve: tls.map(|tls| &*tls.key_exchange),
            tunnel_reused: facts.reused,
            bytes_sent,
            bytes_recv: bytes_received,
            duration: milliseconds_text(self.started.elapsed()),
            end,
            policy_rule: facts.rule.as_deref(),
            policy_audited: facts.audited.iter().map(|rule| &**rule).collect(),
            refusal_cause: refused.map(|(cause, _)| cause),
            error: refused.map(|(_, reason)| reason).or(facts.detail.as_deref()),
            correlation_id: facts.correlation_id.as_deref(),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.done {
            self.end(0, 0, "aborted", None);
        }
    }
}

/// One line of the access log: ztunnel's names, OpenTelemetry's for TLS, ours where neither has one. What is unknown is
/// left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    #[serde(rename = "edge.kind")]
    kind: &'static str,
    #[serde(rename = "src.addr")]
    src_addr: SocketAddr,
    #[serde(rename = "src.workload", skip_serializing_if = "Option::is_none")]
    src_workload: Option<&'a str>,
    #[serde(rename = "src.namespace", skip_serializing_if = "Option::is_none")]
    src_namespace: Option<&'a str>,
    #[serde(rename = "src.identity", skip_serializing_if = "Option::is_none")]
    src_identity: Option<&'a str>,
    #[serde(rename = "dst.addr")]
    dst_addr: SocketAddr,
    #[serde(rename = "dst.service", skip_serializing_if = "Option::is_none")]
    dst_service: Option<&'a str>,
    #[serde(rename = "dst.workload", skip_serializing_if = "Option::is_none")]
    dst_workload: Option<&'a str>,
    #[serde(rename = "dst.namespace", skip_serializing_if = "Option::is_none")]
    dst_namespace: Option<&'a str>,
    #[serde(rename = "dst.identity", skip_serializing_if = "Option::is_none")]
    dst_identity: Option<&'a str>,
    #[serde(rename = "connection.security", skip_serializing_if = "Option::is_none")]
    security: Option<&'static str>,
    #[serde(rename = "tls.protocol.name", skip_serializing_if = "Option::is_none")]
    tls_protocol_name: Option<&'static str>,
    #[serde(rename = "tls.protocol.version", skip_serializing_if = "Option::is_none")]
    tls_protocol_version: Option<&'a str>,
    #[serde(rename = "tls.cipher", skip_serializing_if = "Option::is_none")]
    tls_cipher: Option<&'a str>,
    #[serde(rename = "tls.curve", skip_serializing_if = "Option::is_none")]
    tls_curve: Option<&'a str>,
    #[serde(rename = "tunnel.reused", skip_serializing_if = "Option::is_none")]
    tunnel_reused: Option<bool>,
    bytes_sent: u64,
    bytes_recv: u64,
    duration: String,
    #[serde(rename = "connection.end")]
    end: &'static str,
    #[serde(rename = "policy.rule", skip_serializing_if = "Option::is_none")]
    policy_rule: Option<&'a str>,
    #[serde(rename = "policy.audited", skip_serializing_if = "Vec::is_empty")]
    policy_audited: Vec<&'a str>,
    #[serde(rename = "refusal.cause", skip_serializing_if = "Option::is_none")]
    refusal_cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
}

fn name(workload: &str) -> &str {
    workload.split_once('/').map_or(workload, |(_, name)| name)
}

fn namespace(workload: &str) -> Option<&str> {
    workload.split_once('/').map(|(namespace, _)| namespace)
}

fn milliseconds_text(duration: Duration) -> String {
    format!("{}.{:03}ms", duration.as_millis(), duration.as_micros() % 1000)
}

fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn rfc3339(time: SystemTime) -> String {
    let milliseconds = time::Duration::milliseconds(milliseconds(time));
    let time = time::OffsetDateTime::UNIX_EPOCH.checked_add(milliseconds);
    time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok()).unwrap_or_default()
}
