//! Capped exponential backoff with jitter.

use std::time::Duration;

use crate::random;

/// Waits between attempts: each twice the one before up to a cap, of which between half and all is waited, so that
/// those who failed together do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// The first wait is at most `first`, none is longer than `cap`.
    pub(crate) fn new(first: Duration, cap: Duration) -> Self {
        Self { cap, next: first }
    }

    /// How long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * random::fraction());
        self.next = (self.next * 2).min(self.cap);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_are_never_less_than_half() {
        let mut backoff = Backoff::new(Duration::from_millis(400), Duration::from_secs(10));
        let mut full = Duration::from_millis(400);
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait <= full && wait >= full / 2, "{wait:?} of {full:?}");
            full = (full * 2).min(Duration::from_secs(10));
        }
    }
}
