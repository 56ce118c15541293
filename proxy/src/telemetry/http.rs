//! What an edge counts of HTTP/1.1.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram's buckets, in seconds: those of OpenTelemetry's `http.server.request.duration`, and three
/// below, because the services of a mesh answer each other in less than 5 ms.
const BOUNDS: [f64; 17] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The label of a request that was never answered, then those of the first digit of the answer's status.
pub(crate) const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Requests, by how they were answered and how long that took.
#[derive(Debug, Default)]
pub(crate) struct HttpCounts {
    by_class: [AtomicU64; CLASSES.len()],
    /// Requests that took as long as the bound at the same place, or less, and longer than the one before it; the last is
    /// of those beyond all bounds.
    by_duration: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
    not_followed: AtomicU64,
}

impl HttpCounts {
    /// A request that is over. `status`: of its answer, 100 to 599, if its head came. `took`: from the first byte of the
    /// request's head to the last one of the answer.
    pub(crate) fn request(&self, status: Option<u16>, took: Duration) {
        let class = usize::from(status.unwrap_or_default() / 100);
        if let Some(count) = self.by_class.get(class) {
            count.fetch_add(1, Relaxed);
        }
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.by_duration.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// A connection that spoke something else than was declared, or in a way that can be understood in two.
    pub(crate) fn not_followed(&self) {
        self.not_followed.fetch_add(1, Relaxed);
    }

    /// Requests for each of [`CLASSES`].
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CLASSES.into_iter().zip(self.by_class.iter().map(|count| count.load(Relaxed)))
    }

    /// Seconds of all requests together, and how many there were up to each bound (and above the one before it); the last
    /// bound is infinite.
    pub(crate) fn durations(&self) -> (f64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = bounds.zip(self.by_duration.iter().map(|count| count.load(Relaxed)));
        (Duration::from_nanos(self.nanoseconds.load(Relaxed)).as_secs_f64(), counts.collect())
    }

    /// Connections that could not be followed to their end.
    pub(crate) fn connections_not_followed(&self) -> u64 {
        self.not_followed.load(Relaxed)
    }
}
