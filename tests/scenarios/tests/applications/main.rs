//! Real applications, each with its own client, from Debian or PyPI: two pods with capture and strict mutual TLS between
//! them, of which neither application knows. What arrives is compared with what was sent, byte by byte; the wire between
//! the pods and the logs of both proxies are looked at afterwards.
//!
//! `tests/run` installs the applications; what is missing is said, and its scenario not run. Their configuration is in
//! `tests/scenarios/applications`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::ExitCode;

use byrnie_netlab::harness::Scenario;
use byrnie_netlab::sentences;
use byrnie_scenarios::run;

mod databases;
mod packages;
mod servers;
mod stage;
mod streams;

/// Scenarios at a time: most of their time is spent waiting for processes to start.
const AT_A_TIME: usize = 4;

const SENTENCES: &[Scenario] = sentences![
    databases: [
        mariadb_speaks_first_and_its_megabytes_come_through_whole,
        postgresql_negotiates_tls_of_its_own_copies_megabytes_and_notifies_after_a_silence,
        redis_is_pipelined_subscribed_to_and_waited_for,
    ],
    servers: [
        a_mail_with_an_attachment_arrives_as_it_was_sent,
        nginx_serves_thousands_of_streams_of_http_2_without_tls_and_takes_an_upload,
        an_upload_beside_a_slow_download_arrives_whole_and_holds_little_memory,
        ssh_runs_commands_carries_files_and_forwards_a_port,
    ],
    streams: [
        grpc_streams_both_ways_and_keeps_deadlines_and_errors,
        a_websocket_carries_megabytes_pings_after_a_silence_and_its_closing_code,
    ],
];

fn main() -> ExitCode {
    byrnie_scenarios::main(SENTENCES, AT_A_TIME)
}
