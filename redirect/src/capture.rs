//! What every back end can do, and how it fails.

use nix::errno::Errno;

use crate::{CaptureConfig, CaptureState, InvalidConfig};

/// A way to put the rules into the kernel. All methods block for as long as
/// the kernel takes (milliseconds), may be called from any thread, inside an
/// async runtime or not, and act on the network namespace of the calling
/// thread.
pub trait Capture {
    /// Puts the rules of `config` in place of whatever rules of ours there
    /// are, in one transaction: the namespace has all of the old or all of the
    /// new rules at any moment. When something changed, the namespace's
    /// connection tracking is flushed, so that connections from before do not
    /// slip past. Applying the same configuration again changes nothing.
    ///
    /// # Errors
    /// See [`CaptureError`]. After [`CaptureError::NotFlushed`] the rules are
    /// in place; after any other error the namespace is as it was.
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
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOENT => {
            "This kernel lacks a part of nf_tables: it needs CONFIG_NF_TABLES_INET, NFT_NAT, \
             NFT_REDIR and NF_CT_NETLINK (modules nf_tables, nft_chain_nat, nft_redir, \
             nf_conntrack_netlink; try `modprobe` on the node)"
        }
        Errno::EBUSY | Errno::ERESTART => "Something else changes the rules just now: try again",
        Errno::ENOBUFS | Errno::ENOMEM => "The kernel is short of memory: try again",
        _ => "Look in the kernel's log (`dmesg`) for the reason",
    }
}

fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
