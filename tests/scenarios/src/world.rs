//! Runs one scenario: its runtime, its deadline, its verdict.

use std::future::Future;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use byrnie_netlab::harness::{self, Scenario, Settings, Verdict};
use byrnie_netlab::{Entered, Privileges};

use crate::{Leftovers, binaries_are_built, seed};

/// No scenario may take longer: one that hangs must not take the suite with it.
const LONGEST: Duration = Duration::from_secs(300);

/// What a scenario begins with.
#[derive(Debug, Clone)]
pub struct World {
    pub(crate) entered: Entered,
    pub(crate) name: &'static str,
}

impl World {
    /// The scenario's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether processes have UIDs of their own here.
    pub fn has_uids(&self) -> bool {
        self.entered.privileges() == Privileges::Root
    }
}

/// What a scenario may return: nothing, or that it could not run here.
pub trait Outcome {
    /// The verdict of a scenario that did not panic.
    fn verdict(self) -> Verdict;
}

impl Outcome for () {
    fn verdict(self) -> Verdict {
        Verdict::Passed
    }
}

impl Outcome for Verdict {
    fn verdict(self) -> Verdict {
        self
    }
}

/// The error is what was missing.
impl Outcome for Result<(), String> {
    fn verdict(self) -> Verdict {
        self.map_or_else(Verdict::NotRun, |()| Verdict::Passed)
    }
}

/// Runs `scenario` on a runtime of one thread.
///
/// # Panics
/// With the scenario, and when it does not end.
pub fn run<F>(entered: &Entered, name: &'static str, scenario: impl FnOnce(World) -> F) -> Verdict
where
    F: Future<Output: Outcome>,
{
    let world = World { entered: *entered, name };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // Pinned outside of the timeout, so that a scenario that hangs is dropped by the panic and shows its logs.
        let mut scenario = pin!(scenario(world));
        match tokio::time::timeout(LONGEST, &mut scenario).await {
            Ok(outcome) => outcome.verdict(),
            Err(_) => panic!("the scenario did not end within {LONGEST:?}"),
        }
    })
}

/// Runs the scenarios that the command line chooses, so many at a time; what they have left behind is a failure, too.
pub fn main(scenarios: &[Scenario], at_a_time: usize) -> ExitCode {
    let around = || -> Box<dyn FnOnce() -> Vec<String>> {
        println!("SEED={}", seed());
        if let Err(advice) = binaries_are_built() {
            eprintln!("{advice}");
            std::process::exit(1);
        }
        let before = Leftovers::now();
        Box::new(move || before.since())
    };
    harness::main_with(scenarios, &[], &Settings { threads: at_a_time, around })
}
