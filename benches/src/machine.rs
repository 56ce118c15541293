//! Whether this machine has something else to do. A load on two cores that share them with a compiler says little, and
//! whoever reads the report must know.
//!
//! The benchmark runs in a PID namespace, where `/proc` shows its own processes only. The outer `/proc` is opened before
//! it enters, and shows all: whatever is in another PID namespace is somebody else's.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::failure::{Result, doing};
use crate::process::{TICKS, times};

/// From this share of all cores on, somebody else's work is said in the report: about the noise of a quiet machine that
/// still writes its disk and answers its terminal.
const BUSY: f64 = 0.05;

/// How long it is looked whether the machine is quiet.
const LOOK: Duration = Duration::from_millis(300);

/// The thread that starts kernel threads; their work is ours as well as anyone's.
const KTHREADD: u32 = 2;

/// A view of everything that runs.
#[derive(Debug)]
pub(crate) struct Machine {
    outer: File,
    own: Option<PathBuf>,
    cores: f64,
}

/// What was used until some moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    at: Instant,
    foreign: HashMap<u32, u64>,
    steal: u64,
}

/// What others used of this machine for a while, as shares of all its cores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Others {
    /// Other programs.
    pub(crate) foreign: f64,
    /// Whoever else is on the same hardware (`steal` of `/proc/stat`).
    pub(crate) steal: f64,
}

impl Others {
    /// Whether that shows in figures.
    pub(crate) fn are_busy(self) -> bool {
        self.foreign > BUSY || self.steal > BUSY
    }
}

/// The `/proc` of the outside: to be opened before the program enters its namespaces.
pub(crate) fn outer_proc() -> io::Result<File> {
    File::open("/proc")
}

/// Date and time, for a report.
pub(crate) fn now() -> Result<String> {
    let format = time::format_description::parse_borrowed::<2>("[year]-[month]-[day] [hour]:[minute] UTC");
    let format = format.map_err(doing("a date's format"))?;
    time::OffsetDateTime::now_utc().format(&format).map_err(doing("the date"))
}

impl Machine {
    /// With the outer `/proc`, once inside.
    pub(crate) fn new(outer: File) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            outer,
            own: fs::read_link("/proc/self/ns/pid").ok(),
            cores: f64::from(u32::try_from(cores).unwrap_or(1)),
        }
    }

    /// Cores, processor, memory and kernel, for a report.
    pub(crate) fn words(&self) -> String {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let processor = field(&read("/proc/cpuinfo"), "model name");
        let memory = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
        let kernel = read("/proc/sys/kernel/osrelease");
        format!("{} × {processor}, {:.0} GiB, Linux {}", self.cores, memory / 1024.0 / 1024.0, kernel.trim())
    }

    /// What was used until now.
    pub(crate) fn read(&self) -> Result<Reading> {
        let root = PathBuf::from(format!("/proc/self/fd/{}", self.outer.as_raw_fd()));
        let entries = fs::read_dir(&root).map_err(doing("reading the outer /proc"))?;
        let mut foreign = HashMap::new();
        for id in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
            let directory = root.join(id.to_string());
            let ours = fs::read_link(directory.join("ns/pid")).is_ok_and(|link| Some(link) == self.own);
            let stat = fs::read_to_string(directory.join("stat")).unwrap_or_default();
            if let (false, Some(times)) = (ours, times(&stat))
                && id != KTHREADD
                && times.parent != KTHREADD
            {
                foreign.insert(id, times.own + times.children);
            }
        }
        let stat = fs::read_to_string("/proc/stat").map_err(doing("/proc/stat"))?;
        Ok(Reading { at: Instant::now(), foreign, steal: steal(&stat).unwrap_or(0) })
    }

    /// What others used since `earlier`.
    pub(crate) fn since(&self, earlier: &Reading) -> Result<Others> {
        let now = self.read()?;
        let seconds = now.at.duration_since(earlier.at).as_secs_f64().max(0.01);
        // A process that ended has left its time with its parent, so that only sums can be compared.
        let sum = |reading: &Reading| reading.foreign.values().sum::<u64>();
        let ticks = sum(&now).saturating_sub(sum(earlier));
        let steal = now.steal.saturating_sub(earlier.steal);
        #[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^53 ticks")]
        let share = |ticks: u64| ticks as f64 / TICKS / seconds / self.cores;
        Ok(Others { foreign: share(ticks), steal: share(steal) })
    }

    /// What others use just now.
    pub(crate) fn look(&self) -> Result<Others> {
        let before = self.read()?;
        sleep(LOOK);
        self.since(&before)
    }

    /// Waits until nobody else needs the machine, but no longer than `patience`.
    pub(crate) fn wait_until_quiet(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && self.look()?.are_busy() {
            sleep(Duration::from_secs(1));
        }
        Ok(())
    }
}

/// The ninth field of the line of all processors together (proc_stat(5)).
fn steal(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("cpu "))?.split_ascii_whitespace().nth(7)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_number_of_all_processors() {
        assert_eq!(steal("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 0 0 0 0 0 0 0 9 0 0\n"), Some(8));
        assert_eq!(steal("intr 5\n"), None);
    }

    #[test]
    fn a_process_of_another_pid_namespace_is_somebody_elses() {
        let here = Machine::new(outer_proc().expect("/proc"));
        let elsewhere = Machine { own: Some("pid:[0]".into()), ..Machine::new(outer_proc().expect("/proc")) };
        let id = std::process::id();
        assert!(!here.read().expect("a reading").foreign.contains_key(&id));
        assert!(elsewhere.read().expect("a reading").foreign.contains_key(&id));
    }

    #[test]
    fn a_twentieth_of_the_machine_shows() {
        assert!(!Others { foreign: 0.04, steal: 0.01 }.are_busy());
        assert!(Others { foreign: 0.06, steal: 0.0 }.are_busy());
        assert!(Others { foreign: 0.0, steal: 0.06 }.are_busy());
    }
}
