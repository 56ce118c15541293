//! One source of time: wall, boot and monotonic.
//!
//! Certificates live by wall time, which steps; a machine that slept shows it by boot time, which monotonic time
//! hides. Everything that looks at a certificate's validity takes its time from a [`Clock`], so that tests step it
//! there and never touch the machine's.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

use crate::time_format::unix_seconds;

/// Tells the time. Cheap to clone; clones of a manual clock share their time.
#[derive(Clone)]
pub struct Clock(Source);

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `wall` until the returned [`ManualClock`] moves it.
    pub fn manual(wall: SystemTime) -> (Self, ManualClock) {
        let times = Arc::new(Mutex::new(Times { wall, boot: MANUAL_UPTIME, monotonic: MANUAL_UPTIME }));
        (Self(Source::Manual(Arc::clone(&times))), ManualClock(times))
    }

    /// Wall-clock time: what certificates speak of. Steps when the machine's clock is set.
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            Source::System => SystemTime::now(),
            Source::Manual(times) => lock(times).wall,
        }
    }

    /// Time since boot, suspended time included (`CLOCK_BOOTTIME`). Never steps.
    pub fn boot(&self) -> Duration {
        match &self.0 {
            Source::System => read(ClockId::CLOCK_BOOTTIME),
            Source::Manual(times) => lock(times).boot,
        }
    }

    /// Time since boot without suspended time (`CLOCK_MONOTONIC`). Never steps.
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            Source::System => read(ClockId::CLOCK_MONOTONIC),
            Source::Manual(times) => lock(times).monotonic,
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::System => f.write_str("Clock::system"),
            Source::Manual(times) => write!(f, "Clock::manual({:?})", lock(times).wall),
        }
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(unix_seconds(self.wall()))))
    }
}

/// Moves the clock that [`Clock::manual`] returned with it.
#[derive(Clone)]
pub struct ManualClock(Arc<Mutex<Times>>);

impl ManualClock {
    /// Time passes: all three clocks go forward.
    pub fn advance(&self, by: Duration) {
        let mut times = lock(&self.0);
        times.wall += by;
        times.boot += by;
        times.monotonic += by;
    }

    /// Somebody sets the wall clock, forward or (negative) back.
    pub fn step_wall(&self, seconds: i64) {
        let by = Duration::from_secs(seconds.unsigned_abs());
        let mut times = lock(&self.0);
        times.wall = if seconds < 0 { times.wall - by } else { times.wall + by };
    }

    /// The machine sleeps: wall and boot time go on, monotonic time does not.
    pub fn suspend(&self, for_time: Duration) {
        let mut times = lock(&self.0);
        times.wall += for_time;
        times.boot += for_time;
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManualClock({:?})", lock(&self.0).wall)
    }
}

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<Mutex<Times>>),
}

struct Times {
    wall: SystemTime,
    boot: Duration,
    monotonic: Duration,
}

/// A manual clock's machine has been up for an hour, so that a test may look back without an underflow.
const MANUAL_UPTIME: Duration = Duration::from_secs(3600);

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(clock: ClockId) -> Duration {
    // Linux has had both clocks since 2.6.39, and reading them has no other way to fail.
    #[allow(clippy::expect_used)]
    clock_gettime(clock).map(Duration::from).expect("CLOCK_BOOTTIME and CLOCK_MONOTONIC exist on every Linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_until_it_is_moved() {
        let start = SystemTime::now();
        let (clock, hand) = Clock::manual(start);
        assert_eq!(clock.wall(), start);
        hand.advance(Duration::from_secs(5));
        assert_eq!(clock.wall(), start + Duration::from_secs(5));
        assert_eq!(clock.boot(), MANUAL_UPTIME + Duration::from_secs(5));
        assert_eq!(clock.monotonic(), MANUAL_UPTIME + Duration::from_secs(5));
    }

    #[test]
    fn a_stepped_wall_clock_moves_alone_and_suspend_leaves_monotonic_time() {
        let start = SystemTime::now();
        let (clock, hand) = Clock::manual(start);
        hand.step_wall(-30);
        assert_eq!(clock.wall(), start - Duration::from_secs(30));
        assert_eq!(clock.boot(), MANUAL_UPTIME);
        hand.suspend(Duration::from_secs(30));
        assert_eq!(clock.wall(), start);
        assert_eq!(clock.boot(), MANUAL_UPTIME + Duration::from_secs(30));
        assert_eq!(clock.monotonic(), MANUAL_UPTIME);
    }

    #[test]
    fn the_system_clock_reads_all_three() {
        let clock = Clock::system();
        assert!(unix_seconds(clock.wall()) > 1_700_000_000);
        // In this order: boot time is monotonic time and what the machine slept.
        let monotonic = clock.monotonic();
        assert!(clock.boot() >= monotonic);
    }
}
