//! The way into a host of a lab that another process runs.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use nix::sched::{CloneFlags, setns, unshare};

use crate::command::show_files;

/// Where a host's namespaces are to be found from outside its lab. It can be
/// written down ([`fmt::Display`]) and read again ([`FromStr`]) by another
/// process of the same user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entrance {
    pub(crate) pid: u32,
    pub(crate) network: RawFd,
    pub(crate) user: bool,
}

impl Entrance {
    /// Takes the calling process, which must not have threads yet, into the
    /// lab as its operator: user, network and mount namespace. Processes that
    /// it starts from now on are in the lab's PID namespace and die with it.
    /// They see `files` (path, content) in place of what is at these paths;
    /// the working directory stays.
    ///
    /// # Errors
    /// `ENOENT` when the lab is gone, `EPERM` for a lab of another user, or
    /// `EINVAL` when there are threads.
    pub fn enter(&self, files: &[(PathBuf, String)]) -> io::Result<()> {
        let directory = std::env::current_dir();
        let open = |what: &str| File::open(format!("/proc/{}/{what}", self.pid));
        let user = self.user.then(|| open("ns/user")).transpose()?;
        let network = open(&format!("fd/{}", self.network))?;
        let (processes, mounts) = (open("ns/pid")?, open("ns/mnt")?);
        if let Some(user) = user {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
        }
        setns(network, CloneFlags::CLONE_NEWNET)?;
        setns(processes, CloneFlags::CLONE_NEWPID)?;
        setns(mounts, CloneFlags::CLONE_NEWNS)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        show_files(files)?;
        // Entering a mount namespace leads to its root. A directory that is
        // not there any more was no use before, either.
        let _ = directory.and_then(std::env::set_current_dir);
        Ok(())
    }
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.user { "user" } else { "root" };
        write!(f, "{}:{}:{kind}", self.pid, self.network)
    }
}

/// A text that is no entrance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the entrance of a lab's host (PID:FD:root or PID:FD:user), found `{0}`")]
pub struct NotAnEntrance(String);

impl FromStr for Entrance {
    type Err = NotAnEntrance;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts.as_slice() {
            [pid, network, kind @ ("user" | "root")] => pid
                .parse()
                .ok()
                .zip(network.parse().ok())
                .map(|(pid, network)| Self { pid, network, user: *kind == "user" }),
            _ => None,
        };
        parsed.ok_or_else(|| NotAnEntrance(text.to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn an_entrance_can_be_written_down() {
        for text in ["7:3:user", "12345:10:root"] {
            assert_eq!(text.parse::<Entrance>().unwrap().to_string(), text);
        }
        for wrong in ["", "7:3", "7:3:admin", "x:3:user", "7:3:user:1"] {
            assert!(wrong.parse::<Entrance>().is_err(), "{wrong}");
        }
    }
}
