//! `byrnie capture …`: the rules of the network namespace that the command runs in.

use byrnie_redirect::{Applied, Capture, CaptureConfig, CaptureError, NfTables, Removed, ShownBody, ShownRule};
use serde::Serialize;

use crate::args::{CaptureArgs, CaptureCommand};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Row, print_list};

#[derive(Serialize)]
struct RuleView {
    chain: String,
    rule: String,
    connections: u64,
    bytes: u64,
}

pub(super) fn run(command: CaptureCommand) -> Result<Exit, Failure> {
    let capture = NfTables;
    match command {
        CaptureCommand::Apply(args) => match capture.apply(&config(args)).map_err(failure)? {
            Applied::Changed => anstream::println!("capture is in place"),
            Applied::Unchanged => anstream::println!("capture was in place already; nothing changed"),
        },
        CaptureCommand::Remove => match capture.remove().map_err(failure)? {
            Removed::Removed => anstream::println!("capture is gone"),
            Removed::NothingThere => anstream::println!("there was no capture"),
        },
        CaptureCommand::Show(args) => {
            let state = capture.show().map_err(failure)?;
            let rules: Vec<_> = state.rules().iter().map(RuleView::from).collect();
            print_list(&rules, args.output, "There is no capture in this network namespace.")?;
            if state.is_present() && !state.is_complete() {
                return Err(Failure::new(Exit::Negative, "the rules are not a whole rule set of any configuration")
                    .next("byrnie capture apply"));
            }
        }
    }
    Ok(Exit::Success)
}

fn config(args: CaptureArgs) -> CaptureConfig {
    CaptureConfig {
        exempt: args.exempt,
        outbound_port: args.outbound_port,
        inbound_port: args.inbound_port,
        exclude_inbound_ports: args.exclude_inbound_ports,
        exclude_outbound_ports: args.exclude_outbound_ports,
        exclude_outbound_cidrs: args.exclude_outbound_cidrs,
        exclude_uids: args.exclude_uids,
        exclude_interfaces: args.exclude_interfaces,
    }
}

fn failure(error: CaptureError) -> Failure {
    let exit = match &error {
        CaptureError::Invalid(_) => Exit::Usage,
        CaptureError::Differs { .. } => Exit::Negative,
        CaptureError::Refused { .. } => Exit::KernelCannot,
        _ => Exit::Refused,
    };
    Failure::new(exit, error.to_string())
}

impl From<&ShownRule> for RuleView {
    fn from(shown: &ShownRule) -> Self {
        let rule = match &shown.body {
            ShownBody::Ours(rule) => rule.to_string(),
            ShownBody::Foreign(text) => format!("not ours: {text}"),
        };
        Self { chain: shown.chain.clone(), rule, connections: shown.connections, bytes: shown.bytes }
    }
}

impl Row for RuleView {
    const HEADINGS: &'static [&'static str] = &["CHAIN", "CONNECTIONS", "RULE"];
    const WIDE_HEADINGS: &'static [&'static str] = &["BYTES"];
    fn cells(&self) -> Vec<Cell> {
        vec![self.chain.as_str().into(), self.connections.into(), self.rule.as_str().into()]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        vec![self.bytes.into()]
    }
}
