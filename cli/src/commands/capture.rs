//! `byrnie capture …`: the rules of the network namespace that the command runs in.

use byrnie_redirect::command::{self, CaptureCommand, CommandError, Done};
use byrnie_redirect::{BackEnd, CaptureError, CaptureState, Families, ShownBody, ShownRule};
use serde::Serialize;

use crate::args::ListArgs;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Row, print_list};

#[derive(Serialize)]
struct RuleView {
    back_end: String,
    families: &'static str,
    chain: String,
    rule: String,
    connections: u64,
    bytes: u64,
}

pub(super) fn run(command: CaptureCommand<ListArgs>) -> Result<Exit, Failure> {
    match command::run(command).map_err(failure)? {
        Done::Said(text) => anstream::println!("{text}"),
        Done::Shown(args, states) => {
            let views = |state: &CaptureState| -> Vec<_> {
                state.rules().iter().map(|shown| RuleView::of(state.back_end(), shown)).collect()
            };
            let rules: Vec<_> = states.iter().flat_map(views).collect();
            print_list(&rules, args.output, "There is no capture in this network namespace.")?;
            command::require_whole(&states).map_err(|error| failure(error).next("byrnie capture apply"))?;
        }
    }
    Ok(Exit::Success)
}

fn failure(error: CommandError) -> Failure {
    let exit = match &error {
        CommandError::Capture(CaptureError::Invalid(_)) => Exit::Usage,
        CommandError::Capture(CaptureError::Differs { .. }) | CommandError::Proof(_) | CommandError::NotWhole => {
            Exit::Negative
        }
        CommandError::Capture(CaptureError::Refused { .. } | CaptureError::NoBackEnd { .. }) => Exit::KernelCannot,
        CommandError::Capture(_) => Exit::Refused,
    };
    Failure::new(exit, error.to_string())
}

impl RuleView {
    fn of(back_end: BackEnd, shown: &ShownRule) -> Self {
        let rule = match &shown.body {
            ShownBody::Ours(rule) => rule.to_string(),
            ShownBody::Foreign(text) => format!("not ours: {text}"),
        };
        let families = match shown.families {
            Families::Both => "both",
            Families::V4 => "ipv4",
            Families::V6 => "ipv6",
        };
        Self {
            back_end: back_end.to_string(),
            families,
            chain: shown.chain.clone(),
            rule,
            connections: shown.connections,
            bytes: shown.bytes,
        }
    }
}

impl Row for RuleView {
    const HEADINGS: &'static [&'static str] = &["CHAIN", "CONNECTIONS", "RULE"];
    const WIDE_HEADINGS: &'static [&'static str] = &["BYTES", "BACK END", "FAMILIES"];
    fn cells(&self) -> Vec<Cell> {
        vec![self.chain.as_str().into(), self.connections.into(), self.rule.as_str().into()]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        vec![self.bytes.into(), self.back_end.as_str().into(), self.families.into()]
    }
}
