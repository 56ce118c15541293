//! One proxy process beside a pod.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use byrnie_netlab::{Host, Privileges, Process, RunAs};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, chown};

use crate::binaries::binary;
use crate::logs::Log;

/// UID of proxies where they have one of their own.
pub(crate) const PROXY_UID: u32 = 1500;

/// How a proxy is started.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// Threads that carry connections.
    pub workers: usize,
    /// How long open connections may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Its limit of open files, where it is not the system's.
    pub files: Option<u32>,
    /// More arguments.
    pub extra: Vec<String>,
    /// More of its environment.
    pub environment: Vec<(&'static str, String)>,
}

impl Default for ProxyOptions {
    fn default() -> Self {
        Self {
            workers: 1,
            drain_timeout: Duration::from_secs(20),
            files: None,
            extra: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// What every proxy of a mesh needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) control_plane: String,
    pub(crate) trust_bundle: PathBuf,
    pub(crate) privileges: Privileges,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    directory: PathBuf,
    site: Site,
    options: ProxyOptions,
    pub(crate) log: Log,
    pub(crate) access_log: Log,
    process: Mutex<Option<Process>>,
}

impl Proxy {
    /// Makes the directory; nothing runs yet.
    pub(crate) fn new(directory: PathBuf, site: Site, options: ProxyOptions) -> Self {
        std::fs::create_dir_all(&directory).expect("a directory for the proxy");
        give_to(&directory, site.privileges, PROXY_UID);
        let log = Log::at(directory.join("proxy.log"));
        let access_log = Log::at(directory.join("access.log"));
        Self { directory, site, options, log, access_log, process: Mutex::default() }
    }

    pub(crate) fn write_token(&self, token: &str) {
        let path = self.directory.join("token");
        std::fs::write(&path, token).expect("a token file");
        give_to(&path, self.site.privileges, PROXY_UID);
    }

    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.directory.join("state/admin.sock")
    }

    pub(crate) fn exempt(&self) -> &'static str {
        match self.site.privileges {
            Privileges::Root => "uid",
            Privileges::SingleUid => "mark",
        }
    }

    pub(crate) fn start(&self, host: &Host) {
        let directory = &self.directory;
        let limit = self.options.files.map_or(String::new(), |files| format!("ulimit -n {files} && "));
        // What is to change how a program runs must not change how it gets there, which root does.
        let environment = self.options.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let command = host.command("sh").arg("-c").arg(format!("{limit}exec env \"$@\"")).arg("sh");
        let command = environment.fold(command, |command, pair| command.arg(pair)).arg(binary("byrnie-proxy"));
        let command = command
            .user(RunAs::Proxy)
            .env_remove("RUST_BACKTRACE")
            .args(["--control-plane", &self.site.control_plane])
            .args(["--exempt", self.exempt(), "--log-level", &crate::logs::filter("debug")])
            .arg("--trust-bundle")
            .arg(&self.site.trust_bundle)
            .arg("--join-token-file")
            .arg(directory.join("token"))
            .arg("--state")
            .arg(directory.join("state"))
            .arg("--access-log")
            .arg(self.access_log.path())
            .args(["--workers", &self.options.workers.to_string()])
            .args(["--drain-timeout", &format!("{}ms", self.options.drain_timeout.as_millis())])
            .args(&self.options.extra)
            .stdout(Stdio::from(self.log.open()))
            .stderr(Stdio::from(self.log.open()));
        *self.lock() = Some(command.spawn().expect("the proxy starts"));
    }

    /// Waits, without blocking the runtime, for the process's end; its exit code.
    pub(crate) async fn ended(&self) -> i32 {
        loop {
            {
                let mut process = self.lock();
                let Some(running) = process.as_mut() else { return 0 };
                if running.try_wait().expect("the state of a child").is_some() {
                    let code = running.wait().expect("the exit code of a child");
                    *process = None;
                    return code;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its ID here, where it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.lock().as_ref().map(Process::id)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.lock().as_ref() {
            Some(process) => process.signal(signal),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(crate) fn kill(&self) {
        if let Some(mut process) = self.lock().take() {
            process.kill();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a path belong to who uses it, where there are several users.
pub(crate) fn give_to(path: &Path, privileges: Privileges, uid: u32) {
    if privileges == Privileges::Root {
        chown(path, Some(Uid::from_raw(uid)), Some(nix::unistd::Gid::from_raw(uid))).expect("a change of owner");
    }
}
