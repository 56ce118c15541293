//! What is on the wire. A marker is asked for and comes back; a tap on the bridge between the pods looks for it. Where
//! there is no TLS it must be seen, which shows that the tap sees; where mTLS is promised, only TLS records may be.

use std::time::Duration;

use byrnie_netlab::{Lab, TapOptions, TapReport};

use crate::contestants::Contestant;
use crate::failure::{Failure, Result, doing};
use crate::http;
use crate::site::Site;

/// What is looked for.
const MARKER: &str = "byrnie-bench-marker-4d0c3f7a";

/// Longest that the question may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks once through the contestant, and judges what went over the wire; returns it in words.
///
/// # Errors
/// When the question fails, when a contestant shows what it must not, and when the tap would not have noticed.
pub(crate) fn check(lab: &Lab, site: &Site) -> Result<String> {
    let tap = lab.tap(TapOptions::new(MARKER).between(site.addresses()));
    let tap = tap.map_err(Failure::new)?;
    let to = site.at(http::PORT)?;
    let question = http::request(to, &format!("/echo/{MARKER}"), "close");
    let answer = site.client().connect(to, PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        http::ask(&mut stream, &question)
    });
    let report = tap.stop().map_err(doing("the tap on the wire"))?;
    let answer = answer.map_err(doing("a request through the contestant"))?;
    if !String::from_utf8_lossy(&answer).contains(MARKER) {
        return Err(Failure::new("the answer does not hold what was asked for"));
    }
    judge(site.contestant(), &report)
}

fn judge(contestant: Contestant, report: &TapReport) -> Result<String> {
    let TapReport { marker_hits, tls_records, packets, missed, outside_tls, unfollowed, .. } = report;
    let seen = format!(
        "{packets} packets, {tls_records} TLS records, {} bytes outside of them, the request or answer readable \
         {marker_hits} times",
        outside_tls + unfollowed
    );
    let is_well = if contestant.is_mtls() {
        *marker_hits == 0 && *tls_records >= 2 && [*outside_tls, *unfollowed, *missed] == [0; 3]
    } else {
        // Once each way.
        *marker_hits >= 2
    };
    if is_well {
        return Ok(seen);
    }
    let expected = if contestant.is_mtls() { "TLS only" } else { "plaintext, to show that the tap sees" };
    Err(Failure::new(format!("on the wire: expected {expected}, found {seen}, {missed} packets missed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(marker_hits: u64, tls_records: u64, missed: u64) -> TapReport {
        TapReport { marker_hits, tls_records, missed, packets: 9, ..TapReport::default() }
    }

    #[test]
    fn plaintext_is_found_out_where_mtls_is_promised() {
        assert!(judge(Contestant::Byrnie, &report(0, 8, 0)).is_ok());
        assert!(judge(Contestant::Byrnie, &report(1, 8, 0)).is_err());
        assert!(judge(Contestant::EnvoyL4, &report(0, 0, 0)).is_err());
        assert!(judge(Contestant::EnvoyL4, &report(0, 8, 1)).is_err());
        let beside = TapReport { outside_tls: 1, ..report(0, 8, 0) };
        assert!(
            judge(Contestant::EnvoyL4, &beside).is_err_and(|failure| failure.to_string().contains("1 bytes outside"))
        );
        assert!(judge(Contestant::EnvoyL4, &TapReport { unfollowed: 1, ..report(0, 8, 0) }).is_err());
    }

    #[test]
    fn a_tap_that_sees_no_plaintext_where_it_must_be_is_blind() {
        assert!(judge(Contestant::Direct, &report(2, 0, 0)).is_ok());
        assert!(judge(Contestant::Relay, &report(1, 0, 0)).is_err());
    }
}
