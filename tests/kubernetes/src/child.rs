//! A process that ends when its handle does, or when the thread that started it does, in whatever way.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many lines of its log a process shows when a test fails.
const LAST_LINES: usize = 25;

/// A running process with its log.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    process: Mutex<std::process::Child>,
}

impl Child {
    /// Starts it, in a process group of its own; both outputs go to a file `NAME.log` in `directory`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let process = command
            .process_group(0)
            .stdin(std::process::Stdio::null())
            .stdout(output.try_clone().expect("a log file"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {}: {error}", command.get_program().display()));
        Self { name: name.to_owned(), log, process: Mutex::new(process) }
    }

    /// Everything that it wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.lock().id()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.lock().try_wait().ok().flatten()
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            let id = i32::try_from(self.id()).expect("a process ID");
            kill(Pid::from_raw(id), signal).expect("a signal");
        }
    }

    /// `kill -9`, and waits.
    pub fn kill(&self) {
        let mut process = self.lock();
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it does not within `patience`.
    pub fn stop(&self, patience: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} did not end within {patience:?} of SIGTERM", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its resident memory, in KiB.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the state of a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number of KiB")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, std::process::Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = self.log();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("---- {} ({} lines)", self.name, lines.len());
            for line in lines.iter().skip(lines.len().saturating_sub(LAST_LINES)) {
                eprintln!("{line}");
            }
        }
    }
}
