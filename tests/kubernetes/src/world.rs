//! Runs one scenario: in a network namespace of its own, where Byrnie's ports are free, with a deadline.

use std::future::Future;
use std::net::Ipv4Addr;
use std::pin::pin;
use std::time::Duration;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Lab};
use byrnie_scenarios::Outcome;

/// No scenario may take longer: one that hangs must not take the suite with it.
const LONGEST: Duration = Duration::from_secs(240);

/// What a scenario begins with.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// The address that everything in the scenario listens at; it is no loopback address, because endpoints may not have
    /// one.
    pub address: Ipv4Addr,
}

/// Runs `scenario` on a runtime of one thread.
///
/// # Panics
/// With the scenario, and when it does not end.
pub fn run<F>(entered: &Entered, name: &str, scenario: fn(World) -> F) -> Verdict
where
    F: Future<Output: Outcome>,
{
    let lab = match Lab::new(entered, name) {
        Ok(lab) => lab,
        Err(reason) => return Verdict::NotRun(reason.to_string()),
    };
    let world = World { address: lab.node().ipv4().expect("the node's address") };
    // Processes are started by this thread, and so are in the namespace with it.
    lab.node()
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut scenario = pin!(scenario(world));
                match tokio::time::timeout(LONGEST, &mut scenario).await {
                    Ok(outcome) => outcome.verdict(),
                    Err(_) => panic!("the scenario did not end within {LONGEST:?}"),
                }
            })
        })
        .expect("a thread on the node")
}
