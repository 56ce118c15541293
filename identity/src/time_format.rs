//! Times in messages: RFC 3339, UTC, whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// `seconds` since the Unix epoch as RFC 3339, or the bare number where the calendar can't hold it.
pub(crate) fn rfc3339(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// Whole seconds since the Unix epoch; 0 for anything before it, so that a clock set to the past finds nothing valid.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The inverse of [`unix_seconds`]. Certificates can't name a time that `SystemTime` can't hold (year 9999).
pub(crate) fn system_time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST_SECOND))
}

/// 9999-12-31T23:59:59Z, the last moment that an X.509 GeneralizedTime can name.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;
