//! The rules at work in a real kernel: who is captured, who is not, and what
//! the kernel says when it refuses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_netlab::harness::{self, Role, Scenario};
use byrnie_netlab::scenarios;
use byrnie_redirect::BackEnd;

mod captured;
mod changes;
mod crowd;
mod endings;
mod passing;
mod programs;
mod proof;
mod rig;
mod roles;
mod tampered;

/// The scenarios, once for every back end, as `NAME_by_nf_tables` and so on.
macro_rules! by_every_back_end {
    ($($module:ident: [$($name:ident),* $(,)?]),* $(,)?) => {
        [$($(
            Scenario {
                name: concat!(stringify!($name), "_by_nf_tables"),
                run: |entered| rig::with(BackEnd::NfTables, entered, $module::$name),
            },
            Scenario {
                name: concat!(stringify!($name), "_by_iptables_nft"),
                run: |entered| rig::with(BackEnd::IptablesNft, entered, $module::$name),
            },
            Scenario {
                name: concat!(stringify!($name), "_by_iptables_legacy"),
                run: |entered| rig::with(BackEnd::IptablesLegacy, entered, $module::$name),
            },
        )*)*]
    };
}

fn main() -> ExitCode {
    let mut scenarios = by_every_back_end![
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
            a_network_excluded_as_ipv4_inside_ipv6_passes,
            an_excluded_interface_is_not_captured_in_either_direction,
            an_excluded_uid_passes,
            without_rules_a_connection_is_not_redirected,
        ],
        endings: [what_an_application_wrote_before_it_closed_arrives_whole],
        changes: [
            applying_twice_changes_nothing_and_keeps_open_connections,
            a_new_configuration_replaces_the_old_one,
            removing_gives_the_network_back,
            applying_to_a_running_namespace_cuts_connections_from_before,
            what_the_kernel_has_is_shown_with_its_counters,
            a_process_without_net_admin_gets_a_clear_refusal,
            capture_may_be_called_inside_an_async_runtime,
        ],
        tampered: [
            a_missing_rule_and_a_foreign_one_are_noticed,
            rules_that_somebody_flushed_are_noticed_and_put_back,
        ],
    ]
    .to_vec();
    scenarios.extend_from_slice(scenarios![
        endings: [what_the_proxy_wrote_before_it_closed_arrives_whole],
        proof: [
            capture_that_was_just_applied_is_seen_to_work_and_leaves_the_port_free,
            the_program_of_the_first_container_applies_shows_removes_and_refuses,
            without_rules_or_with_others_the_proof_fails_and_says_what_was_seen,
            a_port_that_somebody_has_proves_capture_only_if_it_is_a_proxy,
        ],
        programs: [
            a_back_end_that_takes_over_leaves_nothing_of_the_other,
            what_somebody_else_has_in_iptables_stays,
            where_ipv6_fails_ipv4_is_as_it_was,
            where_it_cant_be_undone_it_is_said,
            a_program_that_says_nothing_wrong_and_does_nothing_is_found_out,
        ],
        crowd: [
            a_crowd_of_connections_to_one_port_is_captured_whole,
            where_no_port_is_left_a_connection_fails_and_none_passes,
            a_proxy_that_accepts_nothing_is_not_passed_by,
        ],
    ]);
    let roles = [
        Role { name: "ask", run: roles::ask_role },
        Role { name: "apply", run: roles::apply_role },
        Role { name: "pour", run: roles::pour_role },
        Role { name: "accept", run: crowd::accept_role },
        Role { name: "crowd", run: crowd::crowd_role },
    ];
    harness::main(&scenarios, &roles)
}
