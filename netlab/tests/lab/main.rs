//! The lab itself: what hosts reach, what programs may do, what the tap sees,
//! and that nothing is left.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_netlab::harness::{self, Role};
use byrnie_netlab::scenarios;

mod life;
mod programs;
mod reach;
mod roles;
mod support;
mod wire;

fn main() -> ExitCode {
    let scenarios = scenarios![
        reach: [
            pods_reach_each_other_over_ipv4_and_ipv6,
            an_external_host_sees_the_pods_own_address_and_is_not_on_the_bridge,
            a_cable_between_two_pods_goes_past_the_bridge,
            two_labs_with_the_same_addresses_do_not_meet,
            a_new_pod_with_an_old_address_is_found_at_once,
            sockets_stay_on_their_host_in_async_code,
        ],
        programs: [
            an_application_has_no_capability_and_cannot_get_one,
            a_proxy_has_its_own_uid_or_net_admin_alone,
            an_operator_may_change_the_network,
            a_program_sees_the_hosts_file_it_was_given,
            a_program_that_does_not_exist_says_so,
            a_program_in_a_private_directory_can_be_run_by_another_uid,
            a_dropped_process_is_dead_with_its_children,
        ],
        wire: [
            the_tap_counts_every_frame_once_and_finds_the_marker,
            the_tap_writes_what_it_counts_as_pcap,
            the_tap_counts_only_the_chosen_addresses,
        ],
        life: [
            killing_the_outer_process_leaves_nothing,
            the_exit_code_and_signals_pass_through,
            the_enter_hint_enters,
            another_process_enters_through_the_entrance,
            a_refusal_of_the_kernel_names_the_sysctl,
        ],
    ];
    let roles = [
        Role { name: "status", run: roles::status },
        Role { name: "linger", run: roles::linger },
        Role { name: "exit", run: roles::exit_with },
        Role { name: "through", run: roles::through },
        Role { name: "refused", run: roles::refused },
    ];
    harness::main(scenarios, &roles)
}
