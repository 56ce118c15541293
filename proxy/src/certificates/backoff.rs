//! Capped exponential backoff with jitter.

use std::time::Duration;

/// Waits between attempts: each twice the one before up to a cap, of which between half and all is waited, so that
/// those who failed together do not come back together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// The first wait is at most `first`, none is longer than `cap`.
    pub(crate) fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, next: first }
    }

    /// How long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next.mul_f64(0.5 + 0.5 * random_fraction());
        self.next = (self.next * 2).min(self.cap);
        wait
    }

    /// An attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// From 0 to 1, uniformly. Without a random source it is a half: jitter is lost, nothing else.
pub(crate) fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
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
        backoff.reset();
        assert!(backoff.next() <= Duration::from_millis(400));
    }
}
