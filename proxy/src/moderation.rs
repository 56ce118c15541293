//! Rests a thread that never sleeps: as a network card holds its interrupts back when packets come one by one without a
//! pause (Linux' net_dim).
//!
//! An application that answers piece by piece, as HTTP/2 servers do, keeps its proxy in short turns of the event loop: one
//! wait that returns at once, one read, one write, whose cost is that of a write whatever its size. The proxy then has a
//! core for itself, and everything else the rest. A rest of some microseconds lets pieces gather that go out as one
//! (docs/performance.md has the figures). Who waits for a connection's first byte, or asks now and then, never sees it:
//! a thread that has slept within its last turns is not rested. And where other programs want the core, so that a rest
//! lasts for as long as they like, the next one comes a hundred times as long after it.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A turn that is shorter than this moved little, and did not sleep.
const SHORT: Duration = Duration::from_micros(40);

/// So many short turns in a row are a millisecond or two without sleep.
const IN_A_ROW: u32 = 64;

/// Of 10 and 30 µs the one that gave `h2c` more and took nothing from `keepalive`.
const REST: Duration = Duration::from_micros(10);

/// A rest that lasts for longer had to wait for somebody.
const LONG: Duration = Duration::from_micros(500);

/// So much longer than it lasted there is no other rest after one that was too long.
const APART: u32 = 100;

thread_local! {
    static TURNS: Cell<Turns> = const { Cell::new(Turns { begun: None, short: 0, not_before: None }) };
}

/// Lets this thread rest for as short as it asks: by default the kernel adds up to 50 µs.
pub(crate) fn begin() {
    if let Err(error) = nix::sys::prctl::set_timerslack(1) {
        tracing::debug!(%error, "rests of this thread are longer than they should be");
    }
}

/// To be called before the event loop waits.
pub(crate) fn turn_ends() {
    let (mut turns, now) = (TURNS.get(), Instant::now());
    if turns.end(now) {
        std::thread::sleep(REST);
        turns.rested(now, Instant::now());
    }
    TURNS.set(turns);
}

/// The turns of one thread's event loop.
#[derive(Debug, Clone, Copy, Default)]
struct Turns {
    begun: Option<Instant>,
    /// Short ones in a row, up to now.
    short: u32,
    /// When the next rest may be.
    not_before: Option<Instant>,
}

impl Turns {
    /// A turn ends and another one begins. Whether to rest before it.
    fn end(&mut self, now: Instant) -> bool {
        let short = self.begun.is_some_and(|begun| now.saturating_duration_since(begun) < SHORT);
        self.short = if short { (self.short + 1).min(IN_A_ROW) } else { 0 };
        self.begun = Some(now);
        self.short == IN_A_ROW && self.not_before.is_none_or(|time| time <= now)
    }

    /// After a rest.
    fn rested(&mut self, since: Instant, now: Instant) {
        let lasted = now.saturating_duration_since(since);
        self.not_before = (lasted > LONG).then(|| now + lasted * APART);
        self.begun = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the thread is rested after these turns, one after the other.
    fn rested(turns: impl IntoIterator<Item = Duration>) -> bool {
        let (mut now, mut state) = (Instant::now(), Turns::default());
        state.end(now);
        let mut rested = false;
        for turn in turns {
            now += turn;
            rested = state.end(now);
        }
        rested
    }

    #[test]
    fn a_thread_that_never_sleeps_is_rested() {
        assert!(rested([Duration::from_micros(16); 64]));
        assert!(rested([Duration::from_micros(16); 1000]));
    }

    #[test]
    fn a_burst_is_not_yet_a_reason() {
        assert!(!rested([Duration::from_micros(16); 63]));
    }

    #[test]
    fn a_thread_that_has_slept_or_moved_much_is_not_rested() {
        let slept = [Duration::from_micros(16); 100].into_iter().chain([Duration::from_millis(1)]);
        assert!(!rested(slept.clone()));
        assert!(!rested(slept.chain([Duration::from_micros(16); 63])));
        assert!(!rested([Duration::from_micros(60); 1000]));
    }

    #[test]
    fn where_others_want_the_core_rests_are_a_hundred_times_as_far_apart_as_they_last() {
        let (begun, mut state) = (Instant::now(), Turns { short: IN_A_ROW, ..Turns::default() });
        let woken = begun + Duration::from_millis(3);
        state.rested(begun, woken);
        let turn = Duration::from_micros(16);
        let mut now = woken;
        while now < woken + Duration::from_millis(300) {
            assert!(!state.end(now), "rested after {:?}", now - woken);
            now += turn;
        }
        assert!(state.end(now));
        state.rested(now, now + REST * 2);
        assert!(state.end(now + REST * 2 + turn), "nobody wanted it this time");
    }
}
