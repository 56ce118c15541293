//! Traffic capture in a network namespace.
//!
//! One [`CaptureConfig`] becomes one abstract [`RuleSet`], and a back end
//! ([`Capture`]: [`NfTables`] or [`IpTables`]) puts it into the kernel, shows it
//! and takes it out again. [`backend`] finds the one that works. Everything works on the network namespace of the
//! *calling thread*; whoever wants another one enters it first.
//!
//! [`command`] is that on a command line, and [`prove`] sees it work.
//!
//! The crate also holds the socket calls that capture needs on the other
//! side: where a redirected connection wanted to go ([`original_dst`]), the
//! mark that exempts the proxy's own connections ([`set_mark`]), and what
//! finds dead peers: keepalive ([`set_keepalive`]) while nothing is under way
//! to them, [`stalled_peers`] while something is.

pub mod backend;
mod capture;
pub mod command;
mod config;
mod iptables;
mod nftables;
mod original_dst;
mod proof;
mod rules;
mod socket;
mod stalled;
mod state;

pub use backend::{BackEnd, Choice};
pub use capture::{Applied, Capture, CaptureError, Removed};
pub use config::{CaptureConfig, Exempt, InvalidConfig, PROXY_MARK, PROXY_UID, Problem, UnknownExempt};
pub use iptables::{ENVIRONMENT, IpTables, SEARCHED, Variant};
pub use nftables::NfTables;
pub use original_dst::{NotRedirected, OriginalDestination, original_dst};
pub use proof::{ProofError, prove};
pub use rules::{
    APPLICATIONS_ZONE, Action, CANARY_APPLICATION_PORT, CANARY_GREETING, CANARY_PROXY_PORT, CANARY_V4, CANARY_V6,
    Families, HEALTH_PORT, Hook, METRICS_PORT, Match, PROXY_PRIORITY, Purpose, Rule, RuleSet,
};
pub use socket::{KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, set_keepalive, set_mark, set_priority};
pub use stalled::{Leg, SocketsUnreadable, stalled_peers};
pub use state::{CaptureState, ShownBody, ShownRule};
