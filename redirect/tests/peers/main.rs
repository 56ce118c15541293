//! Which peers count as gone, asked of a real kernel: those that vanish, and
//! not those that merely do not read.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_netlab::harness::{self, Role};
use byrnie_netlab::scenarios;

mod rig;
mod stalled;

fn main() -> ExitCode {
    let scenarios = scenarios![
        stalled: [
            a_peer_that_vanishes_with_data_under_way_is_found,
            a_peer_that_vanishes_with_its_window_closed_is_found,
            a_peer_that_does_not_read_is_left_alone_for_ever,
            a_peer_that_reads_again_gets_all_that_waited,
            a_program_with_no_privilege_sees_the_same,
        ],
    ];
    harness::main(scenarios, &[Role { name: "look", run: rig::look_role }])
}
