//! What the design promises of connections, identities, policies and outages, one sentence per scenario, on real proxies,
//! a real control plane and real capture. `cargo build && cargo test -p byrnie-scenarios`; an argument chooses scenarios
//! by a part of their names; `SEED=NUMBER` repeats random inputs; `BYRNIE_HOLD=1` keeps a failed one for a look inside.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_netlab::harness::{self, Scenario, Settings};
use byrnie_scenarios::{Leftovers, run, seed};

mod reach;

/// Scenarios at a time: most of their time is spent waiting.
const AT_A_TIME: usize = 4;

macro_rules! sentences {
    ($($module:ident: [$($name:ident),* $(,)?]),* $(,)?) => {
        &[$($(Scenario { name: stringify!($name), run: |entered| run(entered, stringify!($name), $module::$name) }),*),*]
    };
}

fn main() -> ExitCode {
    let scenarios = sentences![
        reach: [
            two_meshed_pods_talk_and_the_wire_shows_only_tls,
        ],
    ];
    let around = || -> Box<dyn FnOnce() -> Vec<String>> {
        println!("SEED={}", seed());
        let before = Leftovers::now();
        Box::new(move || before.since())
    };
    harness::main_with(scenarios, &[], &Settings { threads: AT_A_TIME, around })
}
