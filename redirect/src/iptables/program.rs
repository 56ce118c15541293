//! Running the programs: found in a fixed path, with a fixed environment, no
//! shell, bounded in time and in what is read.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{Variant, is_permission};
use crate::{CaptureError, Families};

/// Where the programs are looked for, in this order; `$PATH` is not asked.
pub const SEARCHED: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// All that their environment holds: they load modules by `modprobe`, and say
/// what is wrong in English.
pub const ENVIRONMENT: [(&str, &str); 2] = [("PATH", SEARCHED), ("LC_ALL", "C")];

/// For another program that holds `/run/xtables.lock`: kube-proxy on a node
/// with many Services has it for seconds.
const LOCK_WAIT: &str = "10";

/// Longer than the wait for the lock.
const PATIENCE: Duration = Duration::from_secs(20);

/// Of a table. Our rules are at most five lists of 256 entries; a node's own
/// table may have tens of thousands of lines.
const MOST_READ: u64 = 64 << 20;

/// Of a complaint, in the error.
const MOST_SAID: usize = 2_000;

/// Restore and save of one family.
#[derive(Debug)]
pub(super) struct Programs {
    families: Families,
    restore: PathBuf,
    save: PathBuf,
}

impl Programs {
    pub(super) fn find(families: Families, variant: Variant, directories: &str) -> Result<Self, CaptureError> {
        let stem = match families {
            Families::V6 => "ip6tables",
            Families::V4 | Families::Both => "iptables",
        };
        let kind = match variant {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        };
        let find = |what: &str| {
            let name = format!("{stem}-{kind}-{what}");
            let mut places = directories.split(':').map(|directory| Path::new(directory).join(&name));
            places
                .find(|path| path.is_file())
                .ok_or(CaptureError::NoPrograms { missing: name, searched: directories.to_owned() })
        };
        Ok(Self { families, restore: find("restore")?, save: find("save")? })
    }

    pub(super) fn families(&self) -> Families {
        self.families
    }

    /// Carries the text out. Nothing to do is no error.
    pub(super) fn restore(&self, text: &str, tried: &'static str) -> Result<(), CaptureError> {
        if text.is_empty() {
            return Ok(());
        }
        run(&self.restore, &["--noflush", "--wait", LOCK_WAIT], text, tried).map(drop)
    }

    /// A table with its counters, as `iptables-save` prints it.
    pub(super) fn save(&self, table: &str, tried: &'static str) -> Result<String, CaptureError> {
        run(&self.save, &["--counters", "--table", table], "", tried)
    }
}

/// Whether this network namespace has tables of the legacy variant, where that
/// may be known: only real root may read their names. To ask the program would
/// make them.
pub(super) fn has_legacy_tables() -> Option<bool> {
    let names = ["ip", "ip6"].map(|family| {
        match std::fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names")) {
            Ok(names) => Some(!names.trim().is_empty()),
            // The kernel has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
        }
    });
    if names.contains(&Some(true)) { Some(true) } else { names.into_iter().collect::<Option<Vec<_>>>().map(|_| false) }
}

fn run(program: &Path, args: &[&str], input: &str, tried: &'static str) -> Result<String, CaptureError> {
    let failed = |detail: String| CaptureError::Failed { tried, detail: format!("{}: {detail}", program.display()) };
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .envs(ENVIRONMENT)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        // A program that ends before it has read all says why itself.
        scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        let out = scope.spawn(move || stdout.map_or(Ok(String::new()), read));
        let said = scope.spawn(move || stderr.map_or(Ok(String::new()), read));
        let status = wait(&mut child).map_err(|error| failed(error.to_string()))?;
        let joined = |text: std::thread::ScopedJoinHandle<'_, io::Result<String>>| {
            let text = text.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")));
            text.map_err(|error| failed(error.to_string()))
        };
        let (out, said) = (joined(out)?, joined(said)?);
        let Some(status) = status else {
            return Err(failed(format!("did not end within {} s", PATIENCE.as_secs())));
        };
        if status.success() { Ok(out) } else { Err(complaint(program, tried, status, &said)) }
    })
}

fn complaint(program: &Path, tried: &'static str, status: ExitStatus, said: &str) -> CaptureError {
    let said: String = said.trim().chars().take(MOST_SAID).collect();
    CaptureError::Program { tried, program: program.to_owned(), may_not: is_permission(&said), status, said }
}

fn read(pipe: impl Read) -> io::Result<String> {
    let mut text = Vec::new();
    pipe.take(MOST_READ + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST_READ {
        return Err(io::Error::other(format!("printed more than {} MiB", MOST_READ >> 20)));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `None`: it was ended because it took too long.
fn wait(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
