//! What the proxy tells the control plane of itself.

use byrnie_proto::mesh::v1 as proto;

use crate::shared::Shared;

/// The whole report; it replaces the one before.
pub(super) fn report(shared: &Shared) -> proto::Report {
    let mut report = shared.telemetry.report();
    report.status = Some(status(shared));
    report
}

fn status(shared: &Shared) -> proto::ProxyStatus {
    let reasons = crate::readiness::reasons(shared);
    let held = shared.certificates.held();
    let svid = held.as_ref().map(|held| &held.svid);
    let not_after = svid.and_then(|svid| svid.not_after().duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
    let idle = shared.telemetry.metrics().idle_tunnels.get();
    proto::ProxyStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: reasons.is_empty(),
        not_ready_reason: reasons.join("; "),
        captured: shared.readiness.is_captured(),
        svid_serial: svid.map(|svid| svid.serial().to_owned()).unwrap_or_default(),
        svid_not_after: not_after.and_then(|time| i64::try_from(time.as_secs()).ok()).unwrap_or_default(),
        bundle_revision: shared.certificates.bundle_revision(),
        open_streams: shared.streams.open(),
        idle_tunnels: u64::try_from(idle).unwrap_or_default(),
        admin_socket: shared.config.admin_socket.display().to_string(),
    }
}
