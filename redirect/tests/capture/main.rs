//! The rules at work in a real kernel: who is captured, who is not, and what
//! the kernel says when it refuses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_netlab::harness::{self, Role};
use byrnie_netlab::scenarios;

mod captured;
mod changes;
mod passing;
mod proof;
mod rig;
mod roles;

fn main() -> ExitCode {
    let scenarios = scenarios![
        captured: [
            an_applications_connection_lands_on_the_outbound_port_with_its_original_destination,
            a_connection_to_the_pod_lands_on_the_inbound_port_with_its_original_destination,
            ipv4_inside_an_ipv6_socket_has_its_original_destination_as_ipv4,
            a_connection_made_to_the_outbound_port_itself_is_told_apart,
            one_canary_answers_applications_and_the_other_the_proxy_too,
            canaries_answer_whatever_is_excluded,

        ],
        passing: [
            a_marked_connection_passes,
            the_proxys_uid_passes_and_no_other,
            loopback_and_the_pods_own_address_are_not_captured,
            the_proxys_own_inbound_ports_are_reached_directly,
            what_is_excluded_passes_and_the_rest_does_not,
            an_excluded_interface_is_not_captured_in_either_direction,
            an_excluded_uid_passes,
            without_rules_a_connection_is_not_redirected,
        ],
        proof: [
            capture_that_was_just_applied_is_seen_to_work_and_leaves_the_port_free,
            without_rules_or_with_others_the_proof_fails_and_says_what_was_seen,
            a_port_that_somebody_has_proves_capture_only_if_it_is_a_proxy,
        ],
        changes: [
            applying_twice_changes_nothing_and_keeps_open_connections,
            a_new_configuration_replaces_the_old_one,
            removing_gives_the_network_back,
            applying_to_a_running_namespace_cuts_connections_from_before,
            what_the_kernel_has_is_shown_with_its_counters,
            a_missing_rule_and_a_foreign_one_are_noticed,
            a_process_without_net_admin_gets_a_clear_refusal,
            capture_may_be_called_inside_an_async_runtime,
        ],
    ];
    let roles = [Role { name: "ask", run: roles::ask_role }, Role { name: "apply", run: roles::apply_role }];
    harness::main(scenarios, &roles)
}
