//! Waiting for what must come. A scenario never sleeps for a guess: it waits for a condition, and its deadline is five
//! times the bound that the design promises, so that a slow machine is no failure and a broken promise is one.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How many times the promised bound a scenario waits.
const PATIENCE: u32 = 5;

/// For what has no bound of its own: processes that start, certificates that come.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What `work` gives, if it comes within five times `bound`.
///
/// # Panics
/// When it does not.
pub async fn within<T>(what: &str, bound: Duration, work: impl Future<Output = T>) -> T {
    match timeout(bound * PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {:?} (promised: {bound:?})", bound * PATIENCE),
    }
}

/// Asks again until `condition` gives something.
///
/// # Panics
/// When it does not within five times `bound`.
pub async fn eventually<T>(what: &str, bound: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound * PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left.max(Duration::from_millis(1)), condition()).await {
            Ok(Some(value)) => return value,
            Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(10)).await,
            _ => panic!("{what}: not within {:?} (promised: {bound:?})", bound * PATIENCE),
        }
    }
}

/// Asks again for `time`: the condition must hold all along.
///
/// # Panics
/// At the first time that it does not.
pub async fn holds_for(what: &str, time: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(condition().await, "{what}: did not hold");
        sleep(Duration::from_millis(20)).await;
    }
}
