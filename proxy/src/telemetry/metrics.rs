//! The one place for metric names. Prefix `byrnie_`; labels carry the names that the field's dashboards know.
//!
//! No label takes a value that a peer can make up without bound: workloads come from the edge table, which is bounded;
//! causes and results come from closed sets.

use std::fmt::{Error, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::Direction;
use super::edges::{Edge, Edges};

/// Handles of the proxy's metrics.
pub struct Metrics {
    registry: std::sync::Mutex<Registry>,
    /// Verified (`ok`) and failed handshakes.
    pub handshakes: Family<HandshakeLabels, Counter>,
    /// Connections refused, by cause.
    pub refusals: Family<RefusalLabels, Counter>,
    /// Application connections open now.
    pub open_connections: Family<DirectionLabels, Gauge>,
    /// Connections that a rule in audit would have decided otherwise.
    pub audited_connections: Family<DirectionLabels, Counter>,
    /// Tunnels that wait in the pool for their next stream.
    pub idle_tunnels: Gauge,
    /// Access log lines lost because the log's reader was too slow.
    pub access_log_dropped: Counter,
    /// Unix time at which the SVID ends; 0: none is held.
    pub svid_not_after: Gauge,
    /// Number of SVIDs taken since the start.
    pub svid_generation: Gauge,
    /// Attempts to get an SVID, by result.
    pub certify: Family<ResultLabels, Counter>,
    /// Revision of the own trust domain's bundle.
    pub bundle_revision: Gauge<u64, AtomicU64>,
    /// 1: the last canary was answered by this proxy.
    pub captured: Gauge,
    /// 1: ready.
    pub ready: Gauge,
    /// 1: the control plane is connected.
    pub control_plane_connected: Gauge,
    /// Resources of the control plane that were refused.
    pub nacks: Counter,
    /// Addresses that the control plane is asked about.
    pub destinations: Gauge,
    /// Lookups of dialled addresses, by result.
    pub lookups: Family<ResultLabels, Counter>,
}

/// Labels of [`Metrics::handshakes`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandshakeLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// `ok`, or the cause of the failure.
    pub result: &'static str,
}

/// Labels of [`Metrics::refusals`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusalLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
    /// A label of a closed set, such as `policy-denied`.
    pub cause: &'static str,
}

/// Labels of metrics per direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DirectionLabels {
    /// `inbound` or `outbound`.
    pub direction: &'static str,
}

/// Labels of metrics per result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// A label of a closed set.
    pub result: &'static str,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let metrics = Self {
            registry: std::sync::Mutex::new(Registry::with_prefix("byrnie")),
            handshakes: Family::default(),
            refusals: Family::default(),
            open_connections: Family::default(),
            audited_connections: Family::default(),
            idle_tunnels: Gauge::default(),
            access_log_dropped: Counter::default(),
            svid_not_after: Gauge::default(),
            svid_generation: Gauge::default(),
            certify: Family::default(),
            bundle_revision: Gauge::default(),
            captured: Gauge::default(),
            ready: Gauge::default(),
            control_plane_connected: Gauge::default(),
            nacks: Counter::default(),
            destinations: Gauge::default(),
            lookups: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.lock();
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("component", "proxy")]);
        registry.register("build", "What runs here", build);
        registry.register("tls_handshakes", "TLS handshakes by result", self.handshakes.clone());
        registry.register("refused_connections", "Connections refused, by cause", self.refusals.clone());
        registry.register(
            "audited_connections",
            "Connections let through that a rule in audit would have refused; the access log names it",
            self.audited_connections.clone(),
        );
        registry.register("open_connections", "Application connections open now", self.open_connections.clone());
        registry.register("idle_tunnels", "Tunnels waiting for their next stream", self.idle_tunnels.clone());
        let help = "Access log lines lost because their reader was too slow or failed";
        registry.register("access_log_dropped_lines", help, self.access_log_dropped.clone());
        let help = "Unix time at which the SVID ends; 0: none is held";
        registry.register("svid_not_after_seconds", help, self.svid_not_after.clone());
        registry.register("svid_generation", "SVIDs taken since the start", self.svid_generation.clone());
        registry.register("svid_requests", "Attempts to get an SVID, by result", self.certify.clone());
        registry.register("trust_bundle_revision", "Revision of the trust bundle", self.bundle_revision.clone());
        registry.register("capture_verified", "1: capture was seen to work within 30 s", self.captured.clone());
        registry.register("ready", "1: the proxy is ready", self.ready.clone());
        let help = "1: the stream to the control plane is open";
        registry.register("control_plane_connected", help, self.control_plane_connected.clone());
        registry.register("control_plane_refused_resources", "Resources answered with a nack", self.nacks.clone());
        registry.register("destinations", "Addresses the control plane is asked about", self.destinations.clone());
        registry.register("destination_lookups", "Lookups of dialled addresses, by result", self.lookups.clone());
    }

    pub(crate) fn collect_edges(&self, edges: Arc<Edges>) {
        self.lock().register_collector(Box::new(EdgeCollector(edges)));
    }

    /// Counts one handshake: `ok`, or the cause of its failure.
    pub fn handshake(&self, direction: Direction, result: &'static str) {
        self.handshakes.get_or_create(&HandshakeLabels { direction: direction.as_str(), result }).inc();
    }

    pub(crate) fn lookup(&self, result: &'static str) {
        self.lookups.get_or_create(&ResultLabels { result }).inc();
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail; a collector that could would leave its own lines out.
        if text::encode(&mut text, &self.lock()).is_err() {
            let _ = text.write_str("# EOF\n");
        }
        text
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Reads the counters of the edge table at every scrape.
#[derive(Debug)]
struct EdgeCollector(Arc<Edges>);

type Read = fn(&Edge) -> u64;

/// Istio's names without its prefix, so that queries written for it need one change.
const EDGE_COUNTERS: [(&str, &str, Read); 6] = [
    ("tcp_connections_opened", "Connections let through", |edge| edge.connections.load(Relaxed)),
    ("tcp_connections_closed", "Connections let through that have ended", |edge| edge.closed.load(Relaxed)),
    ("tcp_connections_refused", "Connections refused", |edge| edge.refused.load(Relaxed)),
    ("tcp_sent_bytes", "Bytes of the application sent to the destination", |edge| edge.bytes_sent.load(Relaxed)),
    ("tcp_received_bytes", "Bytes of the application received from the destination", |edge| {
        edge.bytes_received.load(Relaxed)
    }),
    ("edge_handshakes", "Verified handshakes", |edge| edge.handshakes.load(Relaxed)),
];

impl Collector for EdgeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let rows = self.0.rows();
        for (name, help, read) in EDGE_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for edge in &rows {
                let labels = labels(edge);
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&read(edge), None)?;
            }
        }
        let help = "Plaintext connections that a permissive port let in, by source";
        let name = "permissive_plaintext_connections";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for edge in rows.iter().filter(|edge| edge.key.direction == Direction::Inbound) {
            let plaintext = edge.plaintext.load(Relaxed);
            if plaintext > 0 {
                let labels = [("kind", edge.key.kind.as_str()), ("source_workload", &*edge.key.source)];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&plaintext, None)?;
            }
        }
        encode_http(&mut encoder, &rows)
    }
}

/// Of HTTP/1.1, where there was any.
fn encode_http(encoder: &mut DescriptorEncoder<'_>, rows: &[Arc<Edge>]) -> Result<(), Error> {
    let counted: Vec<_> = rows.iter().filter_map(|edge| Some((labels(edge).to_vec(), edge.http_so_far()?))).collect();
    let help = "HTTP/1.1 requests between meshed pods, by the class of the answer's status; none: never answered";
    let mut family = encoder.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
    for (labels, http) in &counted {
        for (class, requests) in http.classes().filter(|(_, requests)| *requests > 0) {
            let labels = [&labels[..], &[("response_code_class", class.to_owned())]].concat();
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&requests, None)?;
        }
    }
    let help = "From the first byte of a request to the last one of its answer";
    let mut family =
        encoder.encode_descriptor("http_request_duration", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, http) in &counted {
        let (sum, buckets) = http.durations();
        let count = buckets.iter().map(|(_, count)| count).sum();
        family.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    let help = "Connections on a port declared http that were no HTTP/1.1, or not clearly";
    let mut family = encoder.encode_descriptor("http_connections_not_followed", help, None, MetricType::Counter)?;
    for (labels, http) in &counted {
        let connections = http.connections_not_followed();
        family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&connections, None)?;
    }
    Ok(())
}

fn labels(edge: &Edge) -> [(&'static str, String); 5] {
    let connections = edge.connections.load(Relaxed);
    let security = match edge.secured.load(Relaxed) {
        _ if connections == 0 => "unknown",
        0 => "none",
        secured if secured == connections => "mutual_tls",
        _ => "mixed",
    };
    let reporter = match edge.key.direction {
        Direction::Inbound => "destination",
        Direction::Outbound => "source",
    };
    [
        ("reporter", reporter.to_owned()),
        ("kind", edge.key.kind.as_str().to_owned()),
        ("source_workload", edge.key.source.to_string()),
        ("destination_workload", edge.key.destination.to_string()),
        ("connection_security_policy", security.to_owned()),
    ]
}
