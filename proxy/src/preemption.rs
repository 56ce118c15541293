//! Whether a thread that is woken interrupts whoever runs.
//!
//! It does by default (`SCHED_OTHER`): an application that sends is stopped within its `send`, for the proxy that its bytes
//! have woken. The kernel then often moves one of the two to another core, which it has to wake, and whose caches know
//! nothing of either. A thread that is `SCHED_BATCH` waits until the one before it has gone to sleep, some microseconds
//! later, and works from caches that are warm: at 1,000 requests per second a fifth to a third of the proxies' CPU is saved,
//! and as much of what they add to the median latency (docs/performance.md). But where programs that never sleep want all
//! cores, it waits for the end of their time slice, which is milliseconds.
//!
//! So a thread interrupts nobody for as long as it does not have to wait for that. What it waited, the kernel counts
//! (`/proc/thread-self/schedstat`). Once that was too long, it interrupts for the next thousand turns of its event loop, and
//! for many thousands where it is too long again soon after: a moment in which the machine is busy is soon over, and on one
//! that stays busy few of all turns are lost in finding that out.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use preempt_rt::sched::{Pid, Scheduler, SchedulerParams, get_scheduler, set_scheduler};

/// What the thread has waited is looked at after so many turns of the event loop: a system call in a hundred.
const TURNS: u32 = 32;

/// To wait for longer than this in them is long. Where no other program wants the cores it is 0.5 ms under 1,000 requests
/// per second, and 1.2 under as many as two cores can do; each wait for a program that wants a core for itself is 2 to 4 ms.
const LONG: Duration = Duration::from_millis(8);

/// So many looks in a row that find it long are too many. One is what a virtual machine sees now and then, whose host has
/// taken a core away for some milliseconds: who interrupts waits for that, too.
const IN_A_ROW: u32 = 2;

/// A thread that waited too long interrupts for so many turns at first: half a second of 1,000 requests per second, for
/// what may have been a moment.
const APART_AT_FIRST: u32 = 16 * TURNS * IN_A_ROW;

/// And for so many times as many if it waits too long again soon after.
const LONGER: u32 = 4;

/// In the end for so many: 1 turn in 257 is lost where it always is too long.
const APART_AT_MOST: u32 = 256 * TURNS * IN_A_ROW;

thread_local! {
    static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// Makes this thread one that interrupts nobody. Where the kernel does not count what threads wait, or forbids it, nothing
/// changes.
pub(crate) fn begin() {
    match Thread::this() {
        Ok(thread) => THREAD.set(Some(thread)),
        Err(error) => tracing::debug!(%error, "this thread interrupts others when it is woken"),
    }
}

/// Makes this thread one that never interrupts anybody, whose work can wait.
pub(crate) fn never() {
    if let Err(error) = schedule(Scheduler::SCHED_BATCH) {
        tracing::debug!(%error, "this thread interrupts others when it is woken");
    }
}

/// To be called whenever the event loop is about to wait.
pub(crate) fn turn_ends() {
    THREAD.with_borrow_mut(|slot| {
        if let Some(Err(error)) = slot.as_mut().map(|thread| thread.turn_ends()) {
            tracing::debug!(%error, "this thread interrupts others when it is woken from now on");
            *slot = None;
            let _ = schedule(Scheduler::SCHED_NORMAL);
        }
    });
}

/// A thread, what the kernel counts of it, and how it is scheduled because of that.
#[derive(Debug)]
struct Thread {
    counts: File,
    manners: Manners,
}

impl Thread {
    fn this() -> std::io::Result<Self> {
        let counts = File::open("/proc/thread-self/schedstat")?;
        let manners = Manners::begun(ever_waited(&counts)?);
        schedule(Scheduler::SCHED_BATCH)?;
        Ok(Self { counts, manners })
    }

    fn turn_ends(&mut self) -> std::io::Result<()> {
        if !self.manners.turn_ends() {
            return Ok(());
        }
        let before = self.manners;
        self.manners = before.having_waited(ever_waited(&self.counts)?);
        match (before, self.manners) {
            (Manners::Waits { .. }, Manners::Interrupts { .. }) => schedule(Scheduler::SCHED_NORMAL),
            (Manners::Interrupts { .. }, Manners::Waits { .. }) => schedule(Scheduler::SCHED_BATCH),
            _ => Ok(()),
        }
    }
}

/// How long the thread of these counts has been ready to run and did not, ever.
fn ever_waited(counts: &File) -> std::io::Result<Duration> {
    let mut text = [0; 64];
    let length = counts.read_at(&mut text, 0)?;
    let unknown = || std::io::Error::other("the kernel does not count what this thread waits");
    waited(text.get(..length).unwrap_or_default()).ok_or_else(unknown)
}

/// Schedules this thread so, unless whoever started the proxy has made it a real-time one, or one for idle times.
fn schedule(so: Scheduler) -> std::io::Result<()> {
    let thread = Pid::current_thread();
    match get_scheduler(thread).map_err(std::io::Error::other)? {
        Scheduler::SCHED_NORMAL | Scheduler::SCHED_BATCH => {
            set_scheduler(thread, so, SchedulerParams { priority: 0 }).map_err(std::io::Error::other)
        }
        other => Err(std::io::Error::other(format!("it was made {other:?} from outside"))),
    }
}

/// Of what proc_pid_schedstat(5) shows, the time waited; nothing where the kernel does not count, and shows noughts.
fn waited(schedstat: &[u8]) -> Option<Duration> {
    let mut numbers = std::str::from_utf8(schedstat).ok()?.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (waited, times_run) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (times_run > 0).then(|| Duration::from_nanos(waited))
}

/// What a woken thread does to whoever runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    /// Waits for them. What it had waited at the last look, ever; the turns until the next one; how many were long in a row;
    /// the turns for which it interrupts once that is too many.
    Waits { waited: Duration, turns: u32, long: u32, apart: u32 },
    /// Interrupts them. The turns until it no longer does; and all of them.
    Interrupts { turns: u32, apart: u32 },
}

impl Manners {
    /// Of a thread that has waited for so long, ever.
    fn begun(ever: Duration) -> Self {
        Self::Waits { waited: ever, turns: TURNS, long: 0, apart: APART_AT_FIRST }
    }

    /// A turn ends. Whether to look now at what the thread has waited.
    fn turn_ends(&mut self) -> bool {
        let (Self::Waits { turns, .. } | Self::Interrupts { turns, .. }) = self;
        *turns = turns.saturating_sub(1);
        *turns == 0
    }

    /// What follows from having waited for so long, ever.
    fn having_waited(self, ever: Duration) -> Self {
        let waits = |long, apart| Self::Waits { waited: ever, turns: TURNS, long, apart };
        match self {
            Self::Interrupts { apart, .. } => waits(0, (LONGER * apart).min(APART_AT_MOST)),
            Self::Waits { waited, long, apart, .. } if ever.saturating_sub(waited) > LONG => match long + 1 {
                IN_A_ROW => Self::Interrupts { turns: apart, apart },
                long => waits(long, apart),
            },
            // To have interrupted is forgotten as slowly as it happened.
            Self::Waits { apart, .. } => waits(0, apart.saturating_sub(TURNS).max(APART_AT_FIRST)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::time::Instant;

    /// The turns until the next look, by which the thread has waited for so long, ever.
    fn turns_until_a_look(manners: &mut Manners, ever: Duration) -> u32 {
        let mut turns = 1;
        while !manners.turn_ends() {
            turns += 1;
        }
        *manners = manners.having_waited(ever);
        turns
    }

    #[test]
    fn a_thread_that_waits_little_interrupts_nobody() {
        let (mut manners, mut waited) = (Manners::begun(Duration::ZERO), Duration::ZERO);
        for _ in 0..1000 {
            waited += LONG;
            assert_eq!(turns_until_a_look(&mut manners, waited), TURNS);
            assert_eq!(manners, Manners::begun(waited));
        }
    }

    #[test]
    fn a_thread_that_waits_long_now_and_then_interrupts_nobody() {
        let (mut manners, mut waited) = (Manners::begun(Duration::ZERO), Duration::ZERO);
        for look in 0..1000 {
            if look % IN_A_ROW > 0 {
                waited += Duration::from_secs(1);
            }
            turns_until_a_look(&mut manners, waited);
            assert!(matches!(manners, Manners::Waits { .. }));
        }
    }

    #[test]
    fn a_thread_that_waits_long_again_and_again_interrupts_for_longer_and_longer() {
        let (mut manners, mut waited) = (Manners::begun(Duration::ZERO), Duration::ZERO);
        for expected in [1_024, 4_096, 16_384, 16_384, 16_384] {
            for _ in 0..IN_A_ROW {
                waited += LONG * 2;
                assert_eq!(turns_until_a_look(&mut manners, waited), TURNS);
            }
            // What it waits while it interrupts is not held against it.
            waited += Duration::from_secs(1);
            assert_eq!(turns_until_a_look(&mut manners, waited), expected);
        }
    }

    #[test]
    fn a_thread_that_has_waited_well_for_long_enough_interrupts_for_a_moment_only() {
        let mut manners = Manners::Interrupts { turns: 1, apart: APART_AT_MOST };
        for _ in 0..=APART_AT_MOST / TURNS {
            turns_until_a_look(&mut manners, LONG);
        }
        assert_eq!(manners, Manners::begun(LONG));
    }

    #[test]
    fn what_the_kernel_shows_is_read_or_refused() {
        assert_eq!(waited(b"1209 345 6\n"), Some(Duration::from_nanos(345)));
        assert_eq!(waited(b"0 0 1\n"), Some(Duration::ZERO), "a thread that has just begun");
        for unusable in [&b""[..], b"0 0 0\n", b"12", b"12 3", b"12 x 6", b"1 -2 3", b"\xff 1 1"] {
            assert_eq!(waited(unusable), None, "{unusable:?}");
        }
    }

    fn scheduler() -> Scheduler {
        get_scheduler(Pid::current_thread()).unwrap()
    }

    #[test]
    fn a_thread_made_to_run_in_idle_times_stays_one() {
        std::thread::spawn(|| {
            set_scheduler(Pid::current_thread(), Scheduler::SCHED_IDLE, SchedulerParams { priority: 0 }).unwrap();
            begin();
            never();
            turn_ends();
            assert_eq!(scheduler(), Scheduler::SCHED_IDLE);
        })
        .join()
        .unwrap();
    }

    /// On a core that another thread never leaves.
    #[test]
    fn a_thread_interrupts_nobody_until_it_waits_for_one_that_never_sleeps() {
        let mut cores = CpuSet::new();
        let allowed = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        cores.set((0..CpuSet::count()).find(|core| allowed.is_set(*core).unwrap()).unwrap()).unwrap();
        let (cores, ended) = (&cores, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                sched_setaffinity(nix::unistd::Pid::from_raw(0), cores).unwrap();
                while !ended.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
            let waiting = scope.spawn(move || {
                begin();
                let at_first = scheduler();
                sched_setaffinity(nix::unistd::Pid::from_raw(0), cores).unwrap();
                let deadline = Instant::now() + Duration::from_secs(30);
                while scheduler() == Scheduler::SCHED_BATCH && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_micros(100));
                    turn_ends();
                }
                (at_first, scheduler())
            });
            let seen = waiting.join();
            ended.store(true, Relaxed);
            assert_eq!(seen.unwrap(), (Scheduler::SCHED_BATCH, Scheduler::SCHED_NORMAL));
        });
    }
}
