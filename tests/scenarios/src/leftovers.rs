//! Nothing may stay behind: no process, no namespace, no mount, no file.

use std::collections::BTreeSet;
use std::fs;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Begins the name of every temporary directory of this run. Runs beside each other have the same process ID, each in a
/// PID namespace of its own.
pub(crate) fn temporary() -> &'static str {
    static PREFIX: OnceLock<String> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        format!("byrnie-scenarios-{:x}-", now % 0xffff_ffff)
    })
}

/// What there was before the scenarios ran.
#[derive(Debug)]
pub struct Leftovers {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    namespaces: usize,
    files: BTreeSet<String>,
}

impl Leftovers {
    /// Looks at what there is now.
    pub fn now() -> Self {
        Self { processes: processes(), mounts: mounts(), namespaces: namespaces(), files: files() }
    }

    /// What there is now and was not before: one line each.
    pub fn since(&self) -> Vec<String> {
        let now = Self::now();
        let mut left = Vec::new();
        left.extend(now.processes.difference(&self.processes).map(|process| format!("left behind: process {process}")));
        left.extend(now.mounts.difference(&self.mounts).map(|mount| format!("left behind: mount {mount}")));
        left.extend(now.files.difference(&self.files).map(|file| format!("left behind: {file}")));
        if now.namespaces > self.namespaces {
            left.push(format!("left behind: {} network namespaces", now.namespaces - self.namespaces));
        }
        left
    }
}

/// Where `/proc` is the inner one, these are the processes of this PID namespace alone.
fn processes() -> BTreeSet<String> {
    let ours = std::process::id().to_string();
    let inner = fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == ours.as_str());
    if !inner {
        return BTreeSet::new();
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.parse::<u32>().is_ok());
    let described = numbers.filter(|pid| *pid != ours).map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("{pid}: {}", String::from_utf8_lossy(&line).replace('\0', " "))
    });
    described.collect()
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// A lab's namespaces live as long as this process has them open.
fn namespaces() -> usize {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("net:["))
        .count()
}

fn files() -> BTreeSet<String> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(temporary()));
    names.map(|entry| entry.path().display().to_string()).collect()
}
