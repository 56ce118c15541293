//! What Byrnie promises of its dealings with the API server, one sentence per scenario, on a real etcd and kube-apiserver,
//! with the installed objects and the permissions of the installed ServiceAccounts. `cargo build && cargo test -p
//! byrnie-kubelab`; an argument chooses scenarios by a part of their names.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_kubelab::{programs, run};
use byrnie_netlab::harness::{self, Scenario, Settings};
use byrnie_netlab::sentences;
use byrnie_scenarios::{binaries_are_built, binary_is_built};

mod admission;
mod bundle;
mod chart;
mod churn;
mod forged;
mod networks;
mod objects;
mod outage;
mod permissions;
mod pods;
mod replicas;
mod tokens;

/// An API server takes a processor while it starts.
const AT_A_TIME: usize = 2;

const SENTENCES: &[Scenario] = sentences![
    tokens: [
        a_pods_token_gets_it_the_identity_of_its_service_account_and_a_stream,
        a_token_of_another_kind_opens_nothing,
        the_token_of_a_pod_that_is_gone_opens_nothing_even_under_its_name,
        a_pod_without_a_proxy_of_ours_gets_no_identity,
        a_pod_can_not_speak_for_a_pod_of_another_service_account,
        a_replica_renews_without_the_api_server_and_issues_nothing_new,
    ],
    admission: [
        a_pod_of_an_enrolled_namespace_comes_back_with_its_proxy_and_of_another_as_it_was,
        a_pod_without_an_api_token_of_its_own_gets_the_proxy_with_its_token,
        a_namespace_of_an_adopted_open_service_mesh_is_in_the_mesh,
        a_dry_run_shows_the_proxy_and_leaves_nothing,
        a_pod_on_its_nodes_network_passes_by_with_a_warning,
        what_can_not_work_or_tries_to_get_around_is_refused_with_its_field,
        what_is_added_after_the_proxy_is_looked_at_too,
        a_dead_injector_stops_enrolled_namespaces_only,
        an_expired_serving_certificate_is_replaced_by_the_control_plane,
        the_namespaces_that_bring_the_mesh_up_can_not_be_enrolled,
    ],
    objects: [
        an_invalid_object_is_refused_with_the_name_of_its_field,
        a_valid_object_says_in_its_status_that_it_holds,
        an_object_that_stops_to_hold_says_so_in_its_status_and_an_event,
        a_definition_that_is_missing_is_named_and_taken_up_when_it_comes,
    ],
    networks: [
        the_clusters_networks_are_learnt_and_open_egress_waits_for_them,
    ],
    bundle: [
        nobody_but_the_control_plane_writes_a_namespaces_trust_bundle,
        the_trust_bundle_comes_with_enrolment_and_goes_after_the_last_meshed_pod,
        an_ingress_certificate_that_is_lost_or_damaged_is_back_within_seconds,
    ],
    permissions: [
        the_service_accounts_may_do_what_they_need_and_nothing_more,
    ],
    replicas: [
        when_the_leader_dies_the_other_writes_on,
        what_one_replica_issued_another_renews_while_the_api_server_is_away,
        a_leader_hands_over_to_a_newer_version_and_leads_again_where_none_is_left,
        a_replica_asks_an_older_leader_for_the_lease_and_writes_when_it_has_it,
    ],
    outage: [
        what_changed_while_nobody_watched_is_seen,
        an_api_server_that_hangs_stops_nothing_that_runs,
    ],
    chart: [
        helm_renders_the_objects_that_install_applies,
    ],
    churn: [
        a_thousand_pods_come_and_go,
    ],
];

fn main() -> ExitCode {
    let built = binaries_are_built().and_then(|()| binary_is_built("byrnie-injector"));
    // Before the namespaces: a build needs the network.
    if let Err(advice) = built.and_then(|()| programs().map(|_| ())) {
        eprintln!("{advice}");
        return ExitCode::FAILURE;
    }
    harness::main_with(SENTENCES, &[], &Settings { threads: AT_A_TIME, ..Settings::default() })
}
