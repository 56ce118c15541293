//! What every back end can do, and how it fails.

use std::path::PathBuf;
use std::process::ExitStatus;

use nix::errno::Errno;

use crate::{CaptureConfig, CaptureState, InvalidConfig};

/// A way to put the rules into the kernel. All methods block for as long as
/// the kernel takes (milliseconds), may be called from any thread, inside an
/// async runtime or not, and act on the network namespace of the calling
/// thread.
pub trait Capture {
    /// Puts the rules of `config` in place of whatever rules of ours there
    /// are, in one transaction, or as few as the back end can do it in: the
    /// namespace has all of the old or all of the new rules at any moment.
    /// When something changed, the namespace's
    /// connection tracking is flushed, so that connections from before do not
    /// slip past. Applying the same configuration again changes nothing.
    ///
    /// # Errors
    /// See [`CaptureError`]. After [`CaptureError::NotFlushed`] the rules are
    /// in place, after [`CaptureError::HalfApplied`] a part of them; after any
    /// other error the namespace is as it was.
    fn apply(&self, config: &CaptureConfig) -> Result<Applied, CaptureError>;

    /// Takes all our rules away.
    ///
    /// # Errors
    /// [`CaptureError::Refused`]; rules that are not there are no error.
    fn remove(&self) -> Result<Removed, CaptureError>;

    /// The rules as the kernel has them.
    ///
    /// # Errors
    /// [`CaptureError::Refused`]: reading them takes `CAP_NET_ADMIN` too.
    fn show(&self) -> Result<CaptureState, CaptureError>;

    /// Whether the kernel has exactly the rules of `config`.
    ///
    /// # Errors
    /// [`CaptureError::Differs`] with every difference, or
    /// [`CaptureError::Refused`].
    fn verify(&self, config: &CaptureConfig) -> Result<(), CaptureError> {
        let differences = self.show()?.differences(&crate::RuleSet::of(config)?);
        if differences.is_empty() { Ok(()) } else { Err(CaptureError::Differs { differences }) }
    }
}

/// What [`Capture::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The rules are new or different now; connection tracking was flushed.
    Changed,
    /// They were there already; nothing was touched.
    Unchanged,
}

/// What [`Capture::remove`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The rules are gone.
    Removed,
    /// There were none.
    NothingThere,
}

/// Why capture could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The configuration is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// The kernel said no.
    #[error("the kernel refused to {tried}: {errno}{detail}. {}", advice(*.errno))]
    Refused {
        /// What was tried.
        tried: &'static str,
        /// The kernel's answer.
        errno: Errno,
        /// What the kernel said besides the number, if anything.
        detail: String,
    },
    /// The rules are in place, but connections from before could not be made
    /// to obey them.
    #[error(
        "the capture rules are in place, but the kernel refused to flush connection tracking: \
         {errno}{detail}. Connections opened before may go on uncaptured until they end: \
         restart the applications. {}",
        advice(*.errno)
    )]
    NotFlushed {
        /// The kernel's answer.
        errno: Errno,
        /// What the kernel said besides the number, if anything.
        detail: String,
    },
    /// The kernel's rules are not those of the configuration.
    #[error("the capture rules are not as configured:{}; run `byrnie capture apply`", list(.differences))]
    Differs {
        /// One line each.
        differences: Vec<String>,
    },
    /// A program of iptables is missing.
    #[error("found no `{missing}` in {searched}: install iptables 1.8 or newer")]
    NoPrograms {
        /// Its name.
        missing: String,
        /// The directories.
        searched: String,
    },
    /// A program of iptables failed.
    #[error(
        "{} could not {tried} ({status}): {}. {}",
        .program.display(),
        if .said.is_empty() { "it did not say why" } else { .said },
        program_advice(*.may_not)
    )]
    Program {
        /// What was tried.
        tried: &'static str,
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
        /// Whether it said that it may not.
        may_not: bool,
    },
    /// One address family got its rules, the other did not, and the first
    /// could not be given back what it had.
    #[error(
        "only a part of the capture rules is in place: {error}\nThe other part could not be taken away again: {also}\n\
         Do not start applications here; run `byrnie capture remove`, then `byrnie capture apply` again"
    )]
    HalfApplied {
        /// Why it was given up.
        error: Box<CaptureError>,
        /// Why it could not be undone.
        also: Box<CaptureError>,
    },
    /// No back end works here.
    #[error(
        "nothing here can capture:{}\nCapture needs a kernel with nf_tables, or the programs of iptables (which \
         Byrnie's images do not hold) and a kernel with what they need",
        list(.reasons)
    )]
    NoBackEnd {
        /// Of each one that was tried.
        reasons: Vec<String>,
    },
    /// Something that is neither the caller's nor the kernel's doing.
    #[error("cannot {tried}: {detail}")]
    Failed {
        /// What was tried.
        tried: &'static str,
        /// What went wrong.
        detail: String,
    },
}

impl CaptureError {
    pub(crate) fn from_nlink(tried: &'static str, error: &nlink::Error) -> Self {
        match error.errno() {
            Some(number) => Self::Refused { tried, errno: Errno::from_raw(number), detail: detail(error) },
            None => Self::Failed { tried, detail: error.to_string() },
        }
    }

    /// Whether the back end is not to be had here: the kernel lacks it, or its
    /// programs are missing or find the kernel lacking. Another one may work.
    pub(crate) fn is_not_here(&self) -> bool {
        match self {
            // A kernel without nf_tables does not know the messages: EINVAL.
            Self::Refused { errno, .. } => *errno == Errno::EINVAL || lacks(*errno),
            Self::NoPrograms { .. } => true,
            Self::Program { may_not, .. } => !may_not,
            _ => false,
        }
    }

    pub(crate) fn not_flushed(error: &nlink::Error) -> Self {
        Self::NotFlushed { errno: Errno::from_raw(error.errno().unwrap_or(0)), detail: detail(error) }
    }
}

fn detail(error: &nlink::Error) -> String {
    format!(" ({error})")
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            "Capture needs CAP_NET_ADMIN in the user namespace that owns this network namespace: \
             run as root, or give the container that capability"
        }
        errno if lacks(errno) => {
            "This kernel lacks a part of nf_tables: it needs CONFIG_NF_TABLES_INET, NFT_NAT, \
             NFT_REDIR and NF_CT_NETLINK (modules nf_tables, nft_chain_nat, nft_redir, \
             nf_conntrack_netlink; try `modprobe` on the node)"
        }
        Errno::EBUSY | Errno::ERESTART => "Something else changes the rules just now: try again",
        Errno::ENOBUFS | Errno::ENOMEM => "The kernel is short of memory: try again",
        _ => "Look in the kernel's log (`dmesg`) for the reason",
    }
}

fn lacks(errno: Errno) -> bool {
    matches!(errno, Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOENT)
}

fn program_advice(may_not: bool) -> &'static str {
    if may_not {
        "Capture needs CAP_NET_ADMIN in the user namespace that owns this network namespace, and iptables-legacy \
         besides to write /run/xtables.lock: run as root"
    } else {
        "It needs the kernel's tables nat and raw with matches owner, mark and comment and targets REDIRECT and CT \
         (modules iptable_nat, iptable_raw, ip6table_nat, ip6table_raw, xt_owner, xt_mark, xt_comment, xt_CT, \
         xt_REDIRECT, or nft_compat; try `modprobe` on the node). Where another program has the lock, try again"
    }
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
