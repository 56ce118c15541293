//! The demo's processes: started with their output in files, watched, and quoted when they die.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use byrnie_netlab::{HostCommand, Process};

use crate::failure::{Exit, Failure};

/// How much of a log's end is looked at.
const TAIL_BYTES: u64 = 16 * 1024;

/// How many lines of it are shown.
const TAIL_LINES: usize = 12;

/// How often a condition is looked at again.
const AGAIN: Duration = Duration::from_millis(20);

/// A running process and its log.
#[derive(Debug)]
pub(super) struct ChildProcess {
    name: String,
    log: PathBuf,
    process: Process,
}

impl ChildProcess {
    /// Starts `command`, its standard output and error in `log`.
    pub(super) fn start(name: &str, command: HostCommand, log: PathBuf) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(Exit::Refused, format!("cannot start {name}")).found(error);
        let output = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let process = command.stdout(output).stderr(errors).spawn().map_err(failed)?;
        Ok(Self { name: name.to_owned(), log, process })
    }

    /// Its process ID in the demo's PID namespace.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its log.
    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// That it still runs.
    ///
    /// # Errors
    /// With the last lines of its log, where it does not.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.died(&status)),
            Err(error) => Err(self.died(&error)),
        }
    }

    /// Ends it without asking, as a crash would.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }

    /// The end of its log.
    pub(super) fn last_lines(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("(its log can't be read: {error})"))
    }

    fn died(&self, how: &dyn std::fmt::Display) -> Failure {
        Failure::new(Exit::Negative, format!("{} ended", self.name))
            .expected("it to run until the demo ends")
            .found(format!("{how}; its last lines:\n{}", self.last_lines()))
    }
}

/// Looks at `condition` again and again until it holds; `what` is in the error when it does not in time.
///
/// # Errors
/// When the time is over, or as `condition`.
pub(super) async fn until<T>(
    what: &str,
    patience: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(Failure::new(Exit::Negative, format!("{what} took too long"))
                .expected(format!("it within {} s", patience.as_secs())));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let shown = tail(&path).unwrap();
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.ends_with("line 9999"));
    }
}
