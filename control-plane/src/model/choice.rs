//! Which endpoints of a Service one client gets.

use std::cmp::Reverse;

use super::{PodFacts, ResolvedEndpoint};
use crate::limits;

/// What a Service says about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) near: Near,
    /// `sessionAffinity: ClientIP`: always the same one, as long as it is there.
    pub(super) lasting: bool,
}

/// How near they must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Near {
    /// Wherever they are.
    #[default]
    Anywhere,
    /// `trafficDistribution: PreferSameZone` or `PreferClose`: of the client's zone, while there are any.
    PreferZone,
    /// `trafficDistribution: PreferSameNode`: of the client's node, else of its zone, else any.
    PreferNode,
    /// `internalTrafficPolicy: Local`: of the client's node, or none.
    OnNode,
}

/// At most [`limits::ENDPOINTS`] of them, in the order of their addresses.
pub(super) fn choose(
    mut endpoints: Vec<ResolvedEndpoint>,
    choice: Choice,
    viewer: &str,
    client: Option<&PodFacts>,
) -> Vec<ResolvedEndpoint> {
    let (node, zone) = client.map_or(("", ""), |client| (&*client.node, &*client.zone));
    let on_node = |endpoint: &ResolvedEndpoint| !node.is_empty() && *endpoint.node == *node;
    let in_zone = |endpoint: &ResolvedEndpoint| !zone.is_empty() && *endpoint.zone == *zone;
    match choice.near {
        Near::Anywhere => {}
        Near::OnNode => endpoints.retain(on_node),
        Near::PreferZone => {
            prefer(&mut endpoints, in_zone);
        }
        Near::PreferNode => {
            if !prefer(&mut endpoints, on_node) {
                prefer(&mut endpoints, in_zone);
            }
        }
    }
    if choice.lasting { subset(endpoints, viewer, "", 1) } else { subset(endpoints, viewer, zone, limits::ENDPOINTS) }
}

/// Keeps only those that are near, where one of them may take connections.
fn prefer(endpoints: &mut Vec<ResolvedEndpoint>, near: impl Fn(&ResolvedEndpoint) -> bool) -> bool {
    let found = endpoints.iter().any(|endpoint| near(endpoint) && !endpoint.terminating);
    if found {
        endpoints.retain(near);
    }
    found
}

/// At most `count`, those of the client's zone first; by rendezvous hashing, so that the same client gets the same ones
/// each time, a change of one endpoint moves no other, and clients together load all alike (Thaler and Ravishankar,
/// "Using name-based mappings to increase hit rates", 1998).
fn subset(mut endpoints: Vec<ResolvedEndpoint>, client: &str, zone: &str, count: usize) -> Vec<ResolvedEndpoint> {
    if endpoints.len() <= count {
        return endpoints;
    }
    endpoints.sort_by_cached_key(|endpoint| {
        let elsewhere = zone.is_empty() || *endpoint.zone != *zone;
        let weight = weight(client, &endpoint.backend.name(), endpoint.address.port());
        (endpoint.terminating, elsewhere, Reverse(weight))
    });
    endpoints.truncate(count);
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
