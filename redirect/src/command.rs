//! `capture apply|remove|show`, once for both programs that have it: `byrnie` for people, and `byrnie-capture` for
//! the container that sets a pod's capture up.

use clap::{Args, Subcommand};
use ipnet::IpNet;

use crate::proof::{ProofError, prove};
use crate::{Applied, BackEnd, CaptureConfig, CaptureError, CaptureState, Choice, Exempt, Removed, backend};

/// What to do with the rules of the network namespace that the program runs in. `S`: how `show` is to look.
#[derive(Debug, Subcommand)]
pub enum CaptureCommand<S: Args> {
    /// Send this namespace's TCP connections to the proxy's ports. Applying the same again changes nothing.
    Apply(ApplyArgs),
    /// Take the rules away.
    Remove,
    /// The rules as the kernel has them, with what they have caught.
    Show(S),
}

/// What to capture.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Whose connections pass by, the proxy's own: `uid`, `uid:NUMBER`, `mark` or `mark:NUMBER`.
    #[arg(long, value_name = "WHO", default_value = "uid")]
    pub exempt: Exempt,
    /// The proxy's port for what leaves the pod.
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    pub outbound_port: u16,
    /// The proxy's port for what enters the pod.
    #[arg(long, value_name = "PORT", default_value_t = 15003)]
    pub inbound_port: u16,
    /// Ports of the pod that stay reachable without the proxy (comma-separated).
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub exclude_inbound_ports: Vec<u16>,
    /// Ports of others that are dialled without the proxy (comma-separated).
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub exclude_outbound_ports: Vec<u16>,
    /// Networks that are dialled without the proxy (comma-separated).
    #[arg(long, value_name = "CIDRS", value_delimiter = ',')]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// UIDs whose connections go out without the proxy (comma-separated).
    #[arg(long, value_name = "UIDS", value_delimiter = ',')]
    pub exclude_uids: Vec<u32>,
    /// Interfaces on which nothing is captured (comma-separated).
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub exclude_interfaces: Vec<String>,
    /// Who is to have the rules. One that had them before loses them; `remove` and `show` look at all.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    pub backend: Choice,
    /// Then dial as an application would, and fail unless the connection arrives at the proxy's port.
    #[arg(long)]
    pub prove: bool,
}

impl ApplyArgs {
    fn config(self) -> CaptureConfig {
        CaptureConfig {
            exempt: self.exempt,
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            exclude_inbound_ports: self.exclude_inbound_ports,
            exclude_outbound_ports: self.exclude_outbound_ports,
            exclude_outbound_cidrs: self.exclude_outbound_cidrs,
            exclude_uids: self.exclude_uids,
            exclude_interfaces: self.exclude_interfaces,
        }
    }
}

/// What came of a command.
#[derive(Debug)]
pub enum Done<S> {
    /// One line for people.
    Said(String),
    /// The rules, to be shown in this way: of each back end that has some, or one state that says that none has.
    Shown(S, Vec<CaptureState>),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The rules could not be changed or read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// They are in place, and do not do what they should.
    #[error("the capture rules are in place, but were not seen to work: {0}")]
    Proof(#[from] ProofError),
    /// Somebody has changed them.
    #[error("the rules are not a whole rule set of any configuration")]
    NotWhole,
}

/// Whether the rules that `show` has found are whole, where there are some: to be asked when they have been shown.
///
/// # Errors
/// [`CommandError::NotWhole`].
pub fn require_whole(states: &[CaptureState]) -> Result<(), CommandError> {
    let damaged = states.iter().any(|state| state.is_present() && !state.is_complete());
    if damaged { Err(CommandError::NotWhole) } else { Ok(()) }
}

/// Does it, in the network namespace of the calling thread.
///
/// # Errors
/// See [`CommandError`].
pub fn run<S: Args>(command: CaptureCommand<S>) -> Result<Done<S>, CommandError> {
    let said = |text: &str| Ok(Done::Said(text.to_owned()));
    match command {
        CaptureCommand::Apply(args) => apply(args).map(Done::Said),
        CaptureCommand::Remove => match backend::remove()? {
            Removed::Removed => said("capture is gone"),
            Removed::NothingThere => said("there was no capture"),
        },
        CaptureCommand::Show(how) => Ok(Done::Shown(how, backend::show()?)),
    }
}

fn apply(args: ApplyArgs) -> Result<String, CommandError> {
    let (proving, choice) = (args.prove, args.backend);
    let config = args.config();
    let (applied, back_end) = backend::apply(choice, &config)?;
    let by = if back_end == BackEnd::NfTables { String::new() } else { format!(" by {back_end}") };
    let text = match applied {
        Applied::Changed => format!("capture is in place{by}"),
        Applied::Unchanged => format!("capture was in place already{by}; nothing changed"),
    };
    if !proving {
        return Ok(text);
    }
    let proved: Vec<String> = prove(&config)?.iter().map(ToString::to_string).collect();
    Ok(format!("{text}, and was seen to work (a connection to {} arrived at the proxy's port)", proved.join(" and ")))
}
