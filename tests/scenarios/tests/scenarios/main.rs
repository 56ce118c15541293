//! What the design promises of connections, identities, policies and outages, one sentence per scenario, on real proxies,
//! a real control plane and real capture. `cargo build && cargo test -p byrnie-scenarios`; an argument chooses scenarios
//! by a part of their names; `SEED=NUMBER` repeats random inputs; `BYRNIE_HOLD=1` keeps a failed one for a look inside.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use byrnie_netlab::harness::Scenario;
use byrnie_netlab::sentences;
use byrnie_scenarios::run;

mod abuse;
mod bytes;
mod capture;
mod counts;
mod faults;
mod frames;
mod identity;
mod life;
mod outage;
mod policy;
mod probes;
mod reach;
mod strict;
mod tunnels;

/// Scenarios at a time: most of their time is spent waiting.
const AT_A_TIME: usize = 4;

/// The life of an SVID that does not matter to a scenario.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

const SENTENCES: &[Scenario] = sentences![
    reach: [
        two_meshed_pods_talk_and_the_wire_shows_only_tls,
        a_service_is_reached_by_cluster_ip_and_its_pods_by_their_own,
        a_pod_that_calls_itself_through_its_service_obeys_its_own_policy,
        a_server_that_speaks_first_is_heard_and_an_idle_client_is_left_alone,
        a_half_closed_connection_still_carries_the_other_direction,
        requests_to_a_port_that_is_declared_http_are_counted_by_both_proxies,
        bulk_goes_both_ways_at_once_and_arrives_whole,
        the_applications_own_tls_goes_through,
        a_pod_outside_of_the_mesh_is_called_in_plaintext,
        a_reader_that_stops_for_a_while_then_gets_every_byte,
    ],
    strict: [
        an_unmeshed_pod_is_refused_before_the_application_is_dialled,
        permissive_lets_plaintext_in_until_it_ends_and_cuts_it_then,
        a_meshed_pods_address_is_never_classed_as_plaintext,
        a_meshed_endpoint_is_never_called_in_plaintext,
        an_unmeshed_endpoint_in_the_mesh_is_called_only_while_permissive,
        a_connection_straight_to_the_proxys_ports_is_refused,
        a_pod_is_ready_only_with_capture_and_an_svid,
    ],
    capture: [
        a_port_that_was_the_applications_leads_the_proxy_out_and_the_other_way_round,
    ],
    policy: [
        a_denied_identity_is_refused_and_both_logs_name_the_event,
        the_rules_name_is_for_the_same_namespace_only,
        an_enforced_allow_shuts_out_everyone_else_and_an_audited_one_nobody,
        a_policy_change_cuts_what_no_longer_passes_within_a_second_and_nothing_else,
        an_ingress_is_let_in_by_the_principal_that_it_proves,
        a_policy_that_closes_an_ingress_cuts_its_open_connections,
        egress_is_allowed_by_network_and_port_and_keeps_the_address,
        a_policy_that_cannot_be_read_keeps_everyone_out,
        the_mesh_may_be_default_deny,
    ],
    identity: [
        a_hijacked_pod_address_is_refused_by_the_client,
        an_expired_certificate_is_refused_by_both_sides,
        a_foreign_trust_domain_is_refused_by_both_sides,
        a_client_without_a_certificate_is_refused,
        streams_outlive_renewals_and_a_bundle_change_unless_their_peer_stays_silent,
        short_lived_certificates_are_renewed_by_themselves,
    ],
    tunnels: [
        two_hundred_connections_one_after_another_cost_at_most_four_handshakes,
        two_hundred_connections_cost_as_little_with_four_workers,
        a_reset_reaches_the_other_application_as_a_reset_and_never_as_an_end,
        bytes_of_one_connection_never_reach_another,
        a_server_that_dies_between_open_and_accept_costs_no_connection_that_has_said_nothing,
        a_goaway_that_crosses_an_open_costs_nothing,
        an_endpoint_that_refuses_for_now_is_left_for_another,
        peers_that_break_off_or_talk_nonsense_harm_nobody_else,
        an_end_of_the_tunnel_without_fin_is_a_reset_to_the_application,
    ],
    bytes: [
        a_client_hello_gets_in_however_it_is_cut,
        a_client_hello_beyond_all_bounds_is_refused,
        garbage_inside_and_after_the_handshake_ends_that_connection_alone,
    ],
    frames: [
        a_server_takes_no_frame_where_it_does_not_belong,
        a_client_takes_no_frame_where_it_does_not_belong,
    ],
    probes: [
        a_probe_passes_through_the_proxy_where_mtls_is_strict_and_fails_with_the_application,
        probes_of_every_kind_reach_the_application_past_capture,
    ],
    life: [
        a_drain_under_load_costs_no_connection,
        a_pod_that_is_deleted_drains_by_itself_and_goes_on_serving,
        pods_that_go_while_they_are_still_endpoints_cost_no_request,
        a_connection_under_way_to_a_pod_that_is_gone_ends_at_one_that_was_heard_of_meanwhile,
        a_proxy_that_is_told_to_end_does_when_its_connections_have,
        a_drain_that_takes_too_long_cuts_what_is_open,
        connections_to_a_machine_that_vanished_are_reset_with_what_was_under_way,
        without_its_proxy_a_pods_traffic_is_refused_and_not_passed_by,
        a_port_that_is_taken_and_a_wrong_option_are_said_at_once,
    ],
    abuse: [
        half_open_handshakes_cost_their_sender_and_nobody_else,
        who_says_a_byte_at_a_time_has_the_time_of_a_handshake_and_no_more,
        a_proxy_without_file_descriptors_answers_its_own_ports_and_recovers,
        idle_connections_give_back_what_they_took,
        readers_that_stop_hold_a_bounded_amount_and_delay_nobody,
    ],
    counts: [
        fixed_work_costs_the_system_calls_that_are_written_down,
        an_answer_in_two_small_writes_waits_for_no_acknowledgement,
    ],
    faults: [
        a_certificate_that_can_not_be_renewed_is_used_until_its_end_which_is_announced,
        a_clock_that_is_set_a_day_on_or_back_refuses_everything_until_it_is_right_again,
        a_disk_that_is_full_stops_new_certificates_and_nothing_else,
        processes_that_are_killed_at_random_cost_only_what_ran_through_them,
    ],
    outage: [
        without_the_control_plane_what_is_known_goes_on_and_the_unknown_is_refused,
        a_change_of_endpoints_arrives_within_a_second,
        a_file_that_is_half_written_or_no_yaml_keeps_its_last_good_content,
        a_join_token_is_good_once_in_time_and_for_its_pod,
        nothing_secret_is_in_any_log,
        a_private_key_is_in_memory_only_where_it_is_used_and_then_nowhere,
        capture_that_the_kernel_refuses_says_why,
    ],
];

fn main() -> ExitCode {
    byrnie_scenarios::main(SENTENCES, AT_A_TIME)
}

/// A moment without a fraction of a second, which Kubernetes' times don't have.
pub(crate) fn whole_seconds_from_now(seconds: u64) -> SystemTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs() + 1 + seconds)
}

/// A time as Kubernetes writes it (RFC 3339).
pub(crate) fn rfc3339(time: SystemTime) -> String {
    time::OffsetDateTime::from(time).format(&time::format_description::well_known::Rfc3339).unwrap()
}
