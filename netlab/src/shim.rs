//! The last step before a program starts in a lab: giving up privileges.
//!
//! A child cannot be made to drop capabilities from outside without unsafe
//! code between fork and exec. So the lab starts the *current* program once
//! more, already in the right namespaces; [`maybe_run`] sees that, drops what
//! the program may not have, and replaces itself with it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::Privileges;
use crate::enter::STAGE;

/// Carries what to drop to the restarted program.
const SHIM: &str = "BYRNIE_NETLAB_SHIM";

/// As whom a program runs in a lab. Where only one UID exists, the UIDs are
/// ignored and the capabilities alone make the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// An application: this UID and GID, no capability, no way to get one.
    Application {
        /// Its UID and GID.
        uid: u32,
    },
    /// A mesh proxy: UID and GID 1500 and no capability, as in a cluster;
    /// where only one UID exists, `CAP_NET_ADMIN` alone, which it needs to
    /// mark its connections.
    Proxy,
    /// A mesh proxy that marks its connections although there are several
    /// UIDs: UID and GID 1500, and `CAP_NET_ADMIN` alone.
    MarkingProxy,
    /// An operator's tool, which may do in its namespaces whatever the lab
    /// may: for `byrnie capture apply`.
    Operator,
}

/// UID of proxies where they have one of their own.
const PROXY_UID: u32 = 1500;

/// To be called at the very top of `main` of every program that uses
/// [`crate::Lab`], before anything reads arguments. When the program was
/// started by a lab in order to become another one, this does not return.
pub fn maybe_run() {
    let Ok(text) = std::env::var(SHIM) else {
        return;
    };
    let mut args = std::env::args_os().skip(1).collect::<VecDeque<_>>();
    let (Ok(drop), Some(program)) = (text.parse::<Drop>(), args.pop_front()) else {
        eprintln!("netlab: {SHIM} is set by hand; unset it");
        std::process::exit(126);
    };
    // A program in a directory that only root may enter (a home directory)
    // can still be run by others through a file that is open already.
    let open = std::fs::File::open(&program).ok();
    if let Err(reason) = drop.apply() {
        eprintln!("netlab: cannot drop privileges: {reason}");
        std::process::exit(126);
    }
    let become_it =
        |path: &OsStr| Command::new(path).arg0(&program).args(&args).env_remove(SHIM).env_remove(STAGE).exec();
    let mut error = become_it(&program);
    if let (std::io::ErrorKind::PermissionDenied, Some(file)) = (error.kind(), &open) {
        error = become_it(OsStr::new(&format!("/proc/self/fd/{}", file.as_raw_fd())));
    }
    eprintln!("netlab: cannot run {}: {error}", program.display());
    std::process::exit(127);
}

/// The command that becomes `program` by way of the shim.
pub(crate) fn command(program: &std::ffi::OsStr, run_as: RunAs, privileges: Privileges) -> std::io::Result<Command> {
    let drop = Drop::of(run_as, privileges);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(program).env(SHIM, drop.to_string());
    Ok(command)
}

/// What to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drop {
    uid: Option<u32>,
    keep: Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    NetAdmin,
    Everything,
}

impl Drop {
    fn of(run_as: RunAs, privileges: Privileges) -> Self {
        let (uid, keep) = match (run_as, privileges) {
            (RunAs::Application { uid }, Privileges::Root) => (Some(uid), Keep::Nothing),
            (RunAs::Application { .. }, Privileges::SingleUid) => (None, Keep::Nothing),
            (RunAs::Proxy, Privileges::Root) => (Some(PROXY_UID), Keep::Nothing),
            (RunAs::MarkingProxy, Privileges::Root) => (Some(PROXY_UID), Keep::NetAdmin),
            (RunAs::Proxy | RunAs::MarkingProxy, Privileges::SingleUid) => (None, Keep::NetAdmin),
            (RunAs::Operator, _) => (None, Keep::Everything),
        };
        Self { uid, keep }
    }

    fn apply(self) -> Result<(), String> {
        let kept: CapsHashSet = match self.keep {
            Keep::Nothing => CapsHashSet::new(),
            Keep::NetAdmin => [Capability::CAP_NET_ADMIN].into(),
            Keep::Everything => return Ok(()),
        };
        let failed = |what: &'static str| move |error: caps::errors::CapsError| format!("{what}: {error}");
        // UID 0 regains at exec whatever the bounding set holds, also inside
        // a user namespace; so that goes first, while we still may.
        for cap in caps::all() {
            let bounded = caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false);
            if bounded && !kept.contains(&cap) {
                caps::drop(None, CapSet::Bounding, cap).map_err(failed("bounding set"))?;
            }
        }
        caps::clear(None, CapSet::Ambient).map_err(failed("ambient set"))?;
        if let Some(uid) = self.uid {
            // Else the change of UID takes what is to be kept, too.
            prctl::set_keepcaps(!kept.is_empty()).map_err(|errno| format!("keepcaps: {errno}"))?;
            switch_user(uid).map_err(|errno| format!("switching to UID {uid}: {errno}"))?;
        }
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
            caps::set(None, set, &kept).map_err(failed("capabilities"))?;
        }
        for cap in &kept {
            caps::raise(None, CapSet::Ambient, *cap).map_err(failed("ambient set"))?;
        }
        prctl::set_no_new_privs().map_err(|errno| format!("no_new_privs: {errno}"))
    }
}

fn switch_user(uid: u32) -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "{uid}")?,
            None => f.write_str("same")?,
        }
        f.write_str(match self.keep {
            Keep::Nothing => ":nothing",
            Keep::NetAdmin => ":net-admin",
            Keep::Everything => ":everything",
        })
    }
}

impl FromStr for Drop {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (uid, keep) = text.split_once(':').ok_or(())?;
        let uid = match uid {
            "same" => None,
            number => Some(number.parse().map_err(|_| ())?),
        };
        let keep = match keep {
            "nothing" => Keep::Nothing,
            "net-admin" => Keep::NetAdmin,
            "everything" => Keep::Everything,
            _ => return Err(()),
        };
        Ok(Self { uid, keep })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn what_to_drop_survives_the_trip_through_the_environment() {
        for run_as in [RunAs::Application { uid: 33 }, RunAs::Proxy, RunAs::MarkingProxy, RunAs::Operator] {
            for privileges in [Privileges::Root, Privileges::SingleUid] {
                let drop = Drop::of(run_as, privileges);
                assert_eq!(drop.to_string().parse(), Ok(drop));
            }
        }
        assert!("33".parse::<Drop>().is_err());
        assert!("x:nothing".parse::<Drop>().is_err());
        assert!("33:all".parse::<Drop>().is_err());
    }

    #[test]
    fn only_an_operator_keeps_privileges_that_could_undo_capture() {
        let application = RunAs::Application { uid: 33 };
        for privileges in [Privileges::Root, Privileges::SingleUid] {
            assert_eq!(Drop::of(application, privileges).keep, Keep::Nothing);
            assert_ne!(Drop::of(RunAs::Proxy, privileges).keep, Keep::Everything);
        }
        assert_eq!(Drop::of(RunAs::Proxy, Privileges::Root).keep, Keep::Nothing);
    }
}
