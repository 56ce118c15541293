//! What the processes wrote.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What the processes log: `otherwise`, unless `BYRNIE_SCENARIOS_LOG` says more.
pub(crate) fn filter(otherwise: &str) -> String {
    std::env::var("BYRNIE_SCENARIOS_LOG").unwrap_or_else(|_| otherwise.to_owned())
}

/// How many lines of each log a failed scenario shows; `BYRNIE_SCENARIOS_LINES` asks for more.
fn last_lines() -> usize {
    std::env::var("BYRNIE_SCENARIOS_LINES").ok().and_then(|text| text.parse().ok()).unwrap_or(25)
}

/// A log file of a process.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self) -> File {
        OpenOptions::new().create(true).append(true).open(&self.path).expect("a log file")
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// Its lines as access-log entries; a line that is still being written is left out.
    pub fn lines(&self) -> Vec<AccessLine> {
        let text = self.text();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(AccessLine).collect()
    }

    pub(crate) fn show(&self, title: &str) {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("---- {title} ({} lines)", lines.len());
        for line in lines.iter().skip(lines.len().saturating_sub(last_lines())) {
            eprintln!("{line}");
        }
    }
}

/// One line of a proxy's access log.
#[derive(Debug, Clone)]
pub struct AccessLine(Value);

impl AccessLine {
    /// A field as text; empty where it is not there.
    pub fn text(&self, field: &str) -> &str {
        self.0.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A field as a number; 0 where it is not there.
    pub fn number(&self, field: &str) -> u64 {
        self.0.get(field).and_then(Value::as_u64).unwrap_or_default()
    }

    /// A field as a truth; `None` where it is not there.
    pub fn truth(&self, field: &str) -> Option<bool> {
        self.0.get(field).and_then(Value::as_bool)
    }
}
