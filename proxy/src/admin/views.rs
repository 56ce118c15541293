//! What the administration shows, as JSON. Times are RFC 3339 in UTC; what is unknown is null.

use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{AccessLog, Config, CredentialFile};
use crate::model::{DestinationKind, Endpoint, Meshed};
use crate::readiness;
use crate::shared::Shared;
use crate::telemetry::rfc3339;

/// `/status`.
#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    ready: bool,
    not_ready_reasons: Vec<String>,
    draining: bool,
    workload: Option<String>,
    spiffe_id: Option<String>,
    pod_uid: Option<String>,
    terminating: Option<bool>,
    svid: Option<SvidView>,
    bundles: Vec<Value>,
    control_plane: Value,
    capture: Value,
    open_streams: u64,
    idle_tunnels: i64,
    destinations: usize,
}

#[derive(Serialize)]
struct SvidView {
    serial: String,
    issuer: String,
    not_before: String,
    not_after: String,
    renew_at: String,
    generation: u64,
    valid: bool,
}

pub(super) fn status(shared: &Shared) -> Status {
    let not_ready_reasons = readiness::reasons(shared);
    let own = shared.control.own();
    let held = shared.certificates.held();
    let link = shared.control.link();
    let since = link.since.map(|since| shared.clock.boot().saturating_sub(since).as_secs());
    let bundles = shared.certificates.bundles().load();
    Status {
        version: env!("CARGO_PKG_VERSION"),
        ready: not_ready_reasons.is_empty(),
        not_ready_reasons,
        draining: shared.drain.is_draining(),
        workload: own.as_ref().map(|own| own.workload.to_string()),
        spiffe_id: held.as_ref().map(|held| held.svid.id().to_string()),
        pod_uid: own.as_ref().map(|own| own.pod_uid.to_string()),
        terminating: own.as_ref().map(|own| own.terminating),
        svid: held.as_ref().map(|held| svid(held, shared.clock.wall())),
        bundles: bundles
            .iter()
            .map(|bundle| {
                let domain = bundle.trust_domain().as_str();
                json!({"trust_domain": domain, "revision": bundle.revision(), "roots": bundle.roots().len()})
            })
            .collect(),
        control_plane: json!({
            "address": shared.config.control_plane.to_string(),
            "connected": link.connected,
            "since_seconds": since,
            "last_error": link.last_error,
            "refused_resources": link.nacks,
        }),
        capture: json!({
            "proved": shared.readiness.is_captured(),
            "application_proved": shared.readiness.is_application_captured(),
            "exempt": shared.config.exempt.to_string(),
        }),
        open_streams: shared.streams.open(),
        idle_tunnels: shared.telemetry.metrics().idle_tunnels.get(),
        destinations: shared.discovery.len(),
    }
}

fn svid(held: &crate::certificates::Generation, now: SystemTime) -> SvidView {
    SvidView {
        serial: held.svid.serial().to_owned(),
        issuer: held.svid.issuer().to_owned(),
        not_before: rfc3339(held.svid.not_before()),
        not_after: rfc3339(held.svid.not_after()),
        renew_at: rfc3339(held.renew_at),
        generation: held.number,
        valid: held.is_valid(now),
    }
}

/// The answer to a renewal.
pub(super) fn renewed(shared: &Shared, generation: u64) -> Value {
    let held = shared.certificates.held().filter(|held| held.number >= generation);
    json!({
        "generation": generation,
        "svid": held.map(|held| svid(&held, shared.clock.wall())),
    })
}

/// `/config`: what was asked for, with the defaults filled in. Files are named, never shown.
pub(super) fn config(config: &Config) -> Value {
    let access_log = match &config.access_log {
        AccessLog::Off => "off".to_owned(),
        AccessLog::StandardOutput => "-".to_owned(),
        AccessLog::File(path) => path.display().to_string(),
    };
    json!({
        "control_plane": config.control_plane.to_string(),
        "trust_domain": config.trust_domain.as_str(),
        "trust_bundle": config.trust_bundle,
        "join_token_file": token_file(&config.credential, false),
        "service_account_token_file": token_file(&config.credential, true),
        "state": config.state,
        "exempt": config.exempt.to_string(),
        "workers": config.workers,
        "admin_socket": config.admin_socket,
        "listen": {
            "admin": config.listen.admin,
            "outbound": config.listen.outbound(),
            "inbound": config.listen.inbound(),
            "metrics": config.listen.metrics,
            "health": config.listen.health,
        },
        "log_level": config.log_level,
        "access_log": access_log,
        "require_capture_proof": config.require_capture_proof,
        "require_application_proof": config.require_application_proof,
        "probes": config.probes.iter().flat_map(|probes| probes.probes.keys()).collect::<Vec<_>>(),
        "drain_timeout_seconds": config.drain_timeout.as_secs_f64(),
    })
}

fn token_file(file: &CredentialFile, service_account: bool) -> Option<&Path> {
    file.path().filter(|_| matches!(file, CredentialFile::ServiceAccountToken(_)) == service_account)
}

/// `/destinations`: what is known of the addresses that the application dialled.
pub(super) fn destinations(shared: &Shared) -> Value {
    let all = shared.discovery.snapshot();
    let rows = all.iter().map(|known| {
        let destination = known.destination.as_deref();
        json!({
            "address": known.address,
            "kind": destination.map(|destination| destination.kind.as_str()),
            "service": destination.and_then(|destination| destination.service.as_deref()),
            "protocol": destination.map(|destination| destination.protocol.as_str()),
            "external": destination.map(|destination| destination.kind == DestinationKind::External),
            "endpoints": destination.map(|destination| destination.endpoints.iter().map(endpoint).collect::<Vec<_>>()),
            "error": known.failure.as_deref(),
            "stale_seconds": known.stale.map(|stale| stale.as_secs()),
            "unused_seconds": known.unused.as_secs(),
        })
    });
    json!({"destinations": rows.collect::<Vec<_>>()})
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let (meshed, id, permissive) = match &endpoint.meshed {
        Meshed::Yes(id) => ("yes", Some(id.as_str()), false),
        Meshed::EnrolledUnmeshed { permissive, .. } => ("enrolled-unmeshed", None, *permissive),
        Meshed::NotEnrolled => ("not-enrolled", None, false),
        Meshed::External => ("external", None, false),
    };
    json!({
        "address": endpoint.address,
        "workload": &*endpoint.workload,
        "zone": &*endpoint.zone,
        "weight": endpoint.weight,
        "meshed": meshed,
        "spiffe_id": id,
        "permissive": permissive,
        "terminating": endpoint.terminating,
    })
}

/// Brings the gauges up to date that mirror a state.
pub(super) fn refresh_metrics(shared: &Shared) {
    let metrics = shared.telemetry.metrics();
    let held = shared.certificates.held();
    let not_after = held.as_ref().and_then(|held| held.svid.not_after().duration_since(SystemTime::UNIX_EPOCH).ok());
    metrics.svid_not_after.set(not_after.and_then(|time| i64::try_from(time.as_secs()).ok()).unwrap_or(0));
    metrics.svid_generation.set(held.and_then(|held| i64::try_from(held.number).ok()).unwrap_or(0));
    metrics.bundle_revision.set(shared.certificates.bundle_revision());
    metrics.captured.set(i64::from(shared.readiness.is_captured()));
    metrics.ready.set(i64::from(readiness::reasons(shared).is_empty()));
    metrics.control_plane_connected.set(i64::from(shared.control.is_connected()));
    metrics.destinations.set(i64::try_from(shared.discovery.len()).unwrap_or(i64::MAX));
}
