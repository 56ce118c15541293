//! Every parser of bytes that come from a peer or from the control plane, behind one function each that takes any bytes at
//! all. They panic where something is wrong: with the parser's own panic, or with one of what must hold beside it.
//!
//! `fuzz/` calls them with what libFuzzer finds, `tests/mutations.rs` with the checked-in inputs of `fuzz/corpus` and
//! random changes of those, so that they are run without a nightly compiler as well.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod certificates;
mod tunnel;

use std::time::Instant;

use byrnie_identity::{Clock, SpiffeId, TrustBundle, TrustDomain};
use byrnie_proto::mesh::v1::WatchResponse;
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_proxy::config::AccessLog;
use byrnie_proxy::model::{Destination, OwnPod};
use byrnie_proxy::telemetry::{Direction, Telemetry};
use byrnie_proxy::tunnel::client_hello::{ClientHelloReader, FirstBytes};
use prost::Message;

pub use certificates::{certificate, chain, reauth};
pub use tunnel::{tunnel_frames, tunnel_session};

/// A function that takes any bytes, and the directory of its inputs.
pub type Target = (&'static str, fn(&[u8]));

/// All of them; one file in `fuzz/fuzz_targets` for each.
pub const TARGETS: &[Target] = &[
    ("tunnel_frames", tunnel_frames),
    ("tunnel_session", tunnel_session),
    ("client_hello", client_hello),
    ("http", http),
    ("spiffe_id", spiffe_id),
    ("certificate", certificate),
    ("chain", chain),
    ("reauth", reauth),
    ("control_plane", control_plane),
];

/// The first bytes of a connection: the answer does not depend on how they are cut, and once it is known what the
/// connection is, it is known from the same byte on.
pub fn client_hello(bytes: &[u8]) {
    let whole = ClientHelloReader::default().feed(bytes, b"byrnie/1");
    let mut reader = ClientHelloReader::default();
    let one_by_one = bytes
        .iter()
        .map(|byte| reader.feed(&[*byte], b"byrnie/1"))
        .find(|first| *first != FirstBytes::Incomplete)
        .unwrap_or(FirstBytes::Incomplete);
    assert_eq!(whole, one_by_one);
}

/// Requests in HTTP/1.1, a zero byte, and their answers: what is counted does not depend on how they are cut.
pub fn http(bytes: &[u8]) {
    let asked = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let heard = bytes.get(asked.len() + 1..).unwrap_or_default();
    assert_eq!(counted(asked, heard, usize::MAX), counted(asked, heard, 1));
}

/// The lines of the metrics for a conversation whose pieces have `size` bytes.
fn counted(asked: &[u8], heard: &[u8], size: usize) -> Vec<String> {
    let telemetry = Telemetry::new(&AccessLog::Off, Clock::system()).unwrap();
    let [source, destination] = ["10.1.0.5:40000", "10.1.0.6:80"].map(|address| address.parse().unwrap());
    let mut connection = telemetry.connection(Direction::Outbound, source, destination);
    let mut exchanges = connection.follow_http();
    let now = Instant::now();
    asked.chunks(size).for_each(|piece| exchanges.application_said(piece, now));
    heard.chunks(size).for_each(|piece| exchanges.application_hears(piece, now));
    drop(exchanges);
    let text = telemetry.metrics().encode();
    let counters = ["byrnie_http_requests_total{", "byrnie_http_connections_not_followed_total{"];
    let counted = text.lines().filter(|line| counters.iter().any(|counter| line.starts_with(counter)));
    counted.map(str::to_owned).collect()
}

/// A SPIFFE ID is what was written, or is refused.
pub fn spiffe_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.as_str(), text);
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
        assert!(text.is_ascii() && text.len() <= 2048 && !text.ends_with('/'));
        assert!(id.namespace().is_some() == id.service_account().is_some());
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(SpiffeId::of_trust_domain(&domain).trust_domain(), &domain);
    }
}

/// What the control plane says on its stream, as the proxy reads it.
pub fn control_plane(bytes: &[u8]) {
    let Ok(response) = WatchResponse::decode(bytes) else { return };
    for resource in response.resources {
        match resource.body {
            Some(Body::Self_(own)) => {
                if let Ok(own) = OwnPod::try_from(own) {
                    assert_eq!(own.spiffe_id.namespace(), Some(&*own.namespace));
                }
            }
            Some(Body::Destination(destination)) => drop(Destination::try_from(destination)),
            Some(Body::Bundle(bundle)) => {
                if let Ok(read) = TrustBundle::try_from(&bundle) {
                    assert!(!read.roots().is_empty() && read.trust_domain().as_str() == bundle.trust_domain);
                }
            }
            Some(Body::Error(_)) | None => {}
        }
    }
}
