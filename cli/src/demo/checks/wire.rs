//! What is on the wire.

use byrnie_netlab::TapReport;

use crate::demo::load::Outcome;
use crate::demo::report::Check;

/// Without the mesh everyone on the wire reads along.
pub(in crate::demo) fn visible_before(tap: &TapReport, load: &Outcome) -> Check {
    let (sent, failed) = (load.requests.sent, load.requests.failed);
    // Each request crosses three hops with the marker on both ways, but for the ingress, which does not send it.
    Check {
        name: "plaintext-visible-before",
        passed: failed == 0 && tap.marker_hits >= sent,
        expected: format!("the marker at least once for each of {sent} requests, and no failed request"),
        found: format!(
            "the marker {} times in {} packets; {failed} of {sent} requests failed",
            tap.marker_hits, tap.packets
        ),
    }
}

/// With it nobody does, whatever happened meanwhile: attacks, renewal, an outage.
pub(in crate::demo) fn none_after(tap: &TapReport, load: &Outcome) -> Check {
    let (sent, failed) = (load.requests.sent, load.requests.failed);
    Check {
        name: "no-plaintext-after",
        passed: failed == 0 && tap.marker_hits == 0 && tap.missed == 0 && tap.tls_records > sent,
        expected: "the marker nowhere, TLS records, no packet missed, and no failed request".into(),
        found: format!(
            "the marker {} times in {} packets ({} missed), {} TLS records; {failed} of {sent} requests failed",
            tap.marker_hits, tap.packets, tap.missed, tap.tls_records
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::report::Requests;

    fn load(sent: u64, failed: u64) -> Outcome {
        Outcome { requests: Requests { sent, failed }, first_error: None }
    }

    fn tap(marker_hits: u64, tls_records: u64, missed: u64) -> TapReport {
        TapReport { marker_hits, tls_records, missed, packets: 100, ..TapReport::default() }
    }

    #[test]
    fn one_marker_on_the_wire_is_one_too_many() {
        assert!(none_after(&tap(0, 50, 0), &load(20, 0)).passed);
        assert!(!none_after(&tap(1, 50, 0), &load(20, 0)).passed);
    }

    #[test]
    fn a_wire_that_was_not_wholly_seen_proves_nothing() {
        assert!(!none_after(&tap(0, 50, 1), &load(20, 0)).passed);
    }

    #[test]
    fn a_wire_without_tls_proves_nothing() {
        assert!(!none_after(&tap(0, 0, 0), &load(20, 0)).passed);
    }

    #[test]
    fn without_the_mesh_every_request_is_read() {
        assert!(visible_before(&tap(20, 0, 0), &load(20, 0)).passed);
        assert!(!visible_before(&tap(19, 0, 0), &load(20, 0)).passed);
        assert!(!visible_before(&tap(20, 0, 0), &load(20, 1)).passed);
    }
}
