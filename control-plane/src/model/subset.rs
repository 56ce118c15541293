//! Which endpoints of a large Service one client gets.

use std::cmp::Reverse;

use super::ResolvedEndpoint;
use crate::limits;

/// At most [`limits::ENDPOINTS`], those of the client's zone first; by rendezvous hashing, so that the same client
/// gets the same ones each time, a change of one endpoint moves no other, and clients together load all alike
/// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
pub(super) fn subset(mut endpoints: Vec<ResolvedEndpoint>, client: &str, zone: &str) -> Vec<ResolvedEndpoint> {
    if endpoints.len() <= limits::ENDPOINTS {
        return endpoints;
    }
    endpoints.sort_by_cached_key(|endpoint| {
        let elsewhere = zone.is_empty() || *endpoint.pod.zone != *zone;
        (endpoint.terminating, elsewhere, Reverse(weight(client, &endpoint.pod.uid, endpoint.address.port())))
    });
    endpoints.truncate(limits::ENDPOINTS);
    endpoints.sort_by_key(|endpoint| endpoint.address);
    endpoints
}

/// FNV-1a with a finalizer: fixed for all time, unlike the standard library's hasher.
fn weight(client: &str, endpoint: &str, port: u16) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in client.bytes().chain([0]).chain(endpoint.bytes()).chain(port.to_be_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}
