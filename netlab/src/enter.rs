//! Into namespaces of our own, before the program has threads.
//!
//! The program starts itself twice. The first process (the one the user
//! started) stays outside, passes signals on and waits. The second is the
//! first process of a new PID namespace and only reaps. The third is the
//! program proper, with its own mount and network namespace. When any of the
//! three ends, in whatever way, the kernel kills everything inside.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getgid, getppid, getuid};

use crate::links;

mod refusal;

pub use refusal::CannotRun;

/// Tells a restarted program which of the three processes it is. Children
/// that the lab starts do not get it.
pub(crate) const STAGE: &str = "BYRNIE_NETLAB_STAGE";

/// What the kernel lets us do inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// Real root: processes can have different UIDs.
    Root,
    /// A user namespace with one UID: everyone is UID 0 inside, and
    /// applications are told apart by their lack of capabilities.
    SingleUid,
}

impl Privileges {
    fn label(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::SingleUid => "single-uid",
        }
    }

    fn from_label(label: &str) -> Option<Self> {
        [Self::Root, Self::SingleUid].into_iter().find(|privileges| privileges.label() == label)
    }
}

/// Proof that this process is inside; labs are made only with it.
#[derive(Debug, Clone, Copy)]
pub struct Entered {
    privileges: Privileges,
    host_pid: Option<u32>,
}

impl Entered {
    /// What the kernel lets us do inside.
    pub fn privileges(&self) -> Privileges {
        self.privileges
    }

    /// This process's ID as seen from outside, for `nsenter`; `None` when
    /// `/proc` did not tell.
    pub fn host_pid(&self) -> Option<u32> {
        self.host_pid
    }
}

/// Restarts the current program inside namespaces of its own. To be called
/// first in `main`, after [`crate::shim::maybe_run`] and before any thread
/// exists.
///
/// Returns only inside. Outside, this call passes `SIGINT`, `SIGTERM`,
/// `SIGHUP` and `SIGQUIT` on, waits, and exits with the inner program's code
/// (128 + signal when a signal killed it).
///
/// # Errors
/// [`CannotRun`] when the kernel or its policy refuses, with the sysctl that
/// does.
pub fn enter() -> Result<Entered, CannotRun> {
    let stage = std::env::var(STAGE).unwrap_or_default();
    let mut parts = stage.split(':');
    let (role, privileges, parent) = (parts.next(), parts.next(), parts.next());
    match (role, privileges.and_then(Privileges::from_label)) {
        (Some("init"), Some(privileges)) => be_init(privileges, parent),
        // Inside a PID namespace only our own init has the ID 1; a variable
        // that leaked out of an earlier run does not pass.
        (Some("program"), Some(privileges)) if getppid() == Pid::from_raw(1) => settle_in(privileges),
        _ => stay_outside(),
    }
}

/// Whether this process is the one that the user started: [`enter`] has yet to
/// restart the program. For what needs the outside, such as installing what is
/// missing.
pub fn is_outside() -> bool {
    std::env::var_os(STAGE).is_none()
}

fn stay_outside() -> Result<Entered, CannotRun> {
    let privileges = make_namespaces()?;
    let stage = format!("init:{}:{}", privileges.label(), std::process::id());
    let child = restart(&stage).map_err(|e| CannotRun::new("start itself again", &e))?;
    std::process::exit(supervise(&child));
}

fn make_namespaces() -> Result<Privileges, CannotRun> {
    let refused = |step: &'static str| move |errno: Errno| CannotRun::new(step, &errno.into());
    if is_real_root() {
        unshare(CloneFlags::CLONE_NEWPID).map_err(refused("make a PID namespace"))?;
        return Ok(Privileges::Root);
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)
        .map_err(refused("make a user and a PID namespace"))?;
    // Without this, the kernel takes no group map from a user (user_namespaces(7)).
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
    {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|e| CannotRun::new("map its user into the user namespace", &e))?;
    }
    Ok(Privileges::SingleUid)
}

/// Root with the capabilities to do it all, over more than one UID.
fn is_real_root() -> bool {
    use caps::{CapSet, Capability};
    let needed = [
        Capability::CAP_SYS_ADMIN,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_NET_RAW,
        Capability::CAP_SETUID,
        Capability::CAP_SETGID,
        Capability::CAP_SETPCAP,
    ];
    let has = |cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false);
    let mapped: u64 = fs::read_to_string("/proc/self/uid_map")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .sum();
    getuid().is_root() && needed.into_iter().all(has) && mapped > 65_000
}

fn restart(stage: &str) -> io::Result<Child> {
    Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(STAGE, stage).spawn()
}

fn be_init(privileges: Privileges, parent: Option<&str>) -> ! {
    if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
        eprintln!("cannot tie itself to its parent: {errno}");
        std::process::exit(3);
    }
    // The parent may have died before the line above; `/proc` is still the
    // outer one and shows who it is now.
    if outer_parent().as_deref() != parent {
        std::process::exit(3);
    }
    match restart(&format!("program:{}", privileges.label())) {
        Ok(child) => std::process::exit(supervise(&child)),
        Err(error) => {
            eprintln!("cannot start itself again inside the new namespaces: {error}");
            std::process::exit(3);
        }
    }
}

fn outer_parent() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(line.trim().to_owned())
}

/// Waits for `child`, reaping whatever else comes, and passes signals on.
/// Returns the exit code to end with.
fn supervise(child: &Child) -> i32 {
    let child = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    // After the child has been started, because it would inherit the mask.
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        mask.add(signal);
    }
    let signals = mask.thread_block().and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC));
    loop {
        if let Some(code) = reap(child) {
            return code;
        }
        let Ok(Ok(Some(info))) = signals.as_ref().map(SignalFd::read_signal) else {
            return wait_without_signals(child);
        };
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        // The terminal (SI_KERNEL) sends to the whole foreground group, so
        // the child has the signal already.
        let from_terminal = info.ssi_code == SI_KERNEL;
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(_) if from_terminal => {}
            Ok(signal) => {
                // A child that is gone already is found by the next reap.
                let _ = kill(child, signal);
            }
        }
    }
}

/// `SI_KERNEL` of `siginfo.h`.
const SI_KERNEL: i32 = 0x80;

fn reap(child: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return Some(1),
        }
    }
}

fn wait_without_signals(child: Pid) -> i32 {
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 1,
        }
    }
}

fn settle_in(privileges: Privileges) -> Result<Entered, CannotRun> {
    let refused = |step: &'static str| move |errno: Errno| CannotRun::new(step, &errno.into());
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(refused("make a mount and a network namespace"))?;
    // Read before /proc is replaced: the outer one knows our outer ID.
    let host_pid = fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse().ok());
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(refused("make its mounts private"))?;
    // Refused in containers that mask parts of /proc; the old one does, with
    // process IDs of the outside.
    let _ = mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    );
    links::loopback_up().map_err(|error| CannotRun::new("bring up loopback", &io::Error::other(error)))?;
    Ok(Entered { privileges, host_pid })
}

/// The exit code of a process as a shell would give it.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}
