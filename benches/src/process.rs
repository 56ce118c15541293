//! What the kernel says of processes: their CPU time, their memory, their listening ports.

use std::path::Path;

use crate::failure::{Failure, Result, doing};

/// Clock ticks per second in `/proc` (`USER_HZ`): 100 on every architecture that Linux knows for user space.
pub(crate) const TICKS: f64 = 100.0;

/// The times of a process, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// The process ID of its parent.
    pub(crate) parent: u32,
    /// Its own time, in user space and in the kernel, all threads.
    pub(crate) own: u64,
    /// The time of its children that ended and were waited for.
    pub(crate) children: u64,
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    /// What is in RAM.
    pub(crate) rss: f64,
    /// The same, with shared pages divided among those who share them.
    pub(crate) pss: f64,
}

/// The times that a line of `/proc/PID/stat` says (proc_pid_stat(5)). The second field, a name in parentheses, may
/// contain anything.
pub(crate) fn times(stat: &str) -> Option<Times> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Times {
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        children: number(13)? + number(14)?,
    })
}

/// CPU seconds that these processes have used so far.
pub(crate) fn cpu_seconds(ids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for id in ids {
        let path = format!("/proc/{id}/stat");
        let stat = std::fs::read_to_string(&path).map_err(doing(&path))?;
        ticks += times(&stat).ok_or_else(|| Failure::new(format!("{path} is not as expected")))?.own;
    }
    #[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^53 ticks")]
    Ok(ticks as f64 / TICKS)
}

/// The memory of a process.
pub(crate) fn memory(id: u32) -> Result<Memory> {
    let path = format!("/proc/{id}/smaps_rollup");
    let text = std::fs::read_to_string(&path).map_err(doing(&path))?;
    rollup(&text).ok_or_else(|| Failure::new(format!("{path} is not as expected")))
}

fn rollup(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()
    };
    Some(Memory { rss: field("Rss")?, pss: field("Pss")? })
}

/// Whether somebody listens on a TCP port in the network namespace of a process. Nothing is connected, so that the first
/// connection of a measurement is the first.
pub(crate) fn listens(id: u32, port: u16) -> bool {
    ["tcp", "tcp6"].into_iter().any(|table| {
        let path = Path::new("/proc").join(id.to_string()).join("net").join(table);
        std::fs::read_to_string(path).is_ok_and(|text| has_listener(&text, port))
    })
}

fn has_listener(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&port)) && state == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b (c) R 3 7 7 0 -1 4194304 100 0 0 0 41 9 5 2 20 0 1 0 100 1000 10";
        assert_eq!(times(stat), Some(Times { parent: 3, own: 50, children: 7 }));
        assert_eq!(times("7 (a) R 3"), None);
    }

    #[test]
    fn memory_is_read_from_the_rollup() {
        let text = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:            6528 kB\nPss:            3041 kB\n";
        assert_eq!(rollup(text), Some(Memory { rss: 6528.0, pss: 3041.0 }));
        assert_eq!(rollup("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let table = "  sl  local_address rem_address   st\n   \
            0: 0100007F:3A99 00000000:0000 0A 00000000:00000000\n   \
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000\n";
        assert!(has_listener(table, 15_001));
        assert!(!has_listener(table, 8080));
    }

    #[test]
    fn this_process_has_times_and_memory() {
        let own = std::process::id();
        assert!(cpu_seconds(&[own]).is_ok_and(|seconds| seconds < 600.0));
        assert!(memory(own).is_ok_and(|memory| memory.rss > 100.0 && memory.pss <= memory.rss));
    }
}
