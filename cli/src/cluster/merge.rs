//! One answer out of those of all replicas. Each knows the proxies that are connected to it, and what they reported.

use std::collections::BTreeMap;

use byrnie_proto::mesh::v1::{Edge, IssuedIdentity, ObjectStatus, ObserveResponse, ObservedProxy};

/// Merges the answers of the replicas.
pub(super) fn merge(answers: Vec<ObserveResponse>) -> ObserveResponse {
    let mut identities: BTreeMap<(String, String, String), IssuedIdentity> = BTreeMap::new();
    let mut proxies: BTreeMap<(String, String), ObservedProxy> = BTreeMap::new();
    let mut edges: BTreeMap<(i32, String, String), Edge> = BTreeMap::new();
    let mut objects: BTreeMap<String, ObjectStatus> = BTreeMap::new();
    let mut merged = ObserveResponse::default();
    for answer in answers {
        for identity in answer.identities {
            let key = (identity.workload.clone(), identity.pod_uid.clone(), identity.spiffe_id.clone());
            keep(&mut identities, key, identity, |old, new| new.not_before > old.not_before);
        }
        for proxy in answer.proxies {
            let key = (proxy.workload.clone(), proxy.pod_uid.clone());
            keep(&mut proxies, key, proxy, |old, new| new.connected && !old.connected);
        }
        for edge in answer.edges {
            let key = (edge.kind, edge.source.clone(), edge.destination.clone());
            match edges.get_mut(&key) {
                Some(known) => join(known, &edge),
                None => drop(edges.insert(key, edge)),
            }
        }
        for object in answer.objects {
            // One replica that could not take an object is worth knowing.
            keep(&mut objects, object.object.clone(), object, |old, new| old.accepted && !new.accepted);
        }
        merged.refusals.extend(answer.refusals);
        merged.egress.extend(answer.egress);
        for bundle in answer.bundles {
            if !merged.bundles.iter().any(|known| known.trust_domain == bundle.trust_domain) {
                merged.bundles.push(bundle);
            }
        }
    }
    merged.refusals.sort_by_key(|refusal| refusal.at_ms);
    merged.identities = identities.into_values().collect();
    merged.proxies = proxies.into_values().collect();
    merged.edges = edges.into_values().collect();
    merged.objects = objects.into_values().collect();
    merged
}

fn keep<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: V, better: impl Fn(&V, &V) -> bool) {
    match map.get(&key) {
        Some(known) if !better(known, &value) => {}
        _ => drop(map.insert(key, value)),
    }
}

/// The two ends of an edge may be connected to different replicas, and both count the same connections: the larger
/// number is the one that has seen more of them. Secured is what everyone who saw connections calls secured, with one
/// mind about who was there.
fn join(known: &mut Edge, other: &Edge) {
    let saw = |edge: &Edge| edge.connections > 0 || edge.plaintext_connections > 0;
    let agree = |one: &str, other: &str| one.is_empty() || other.is_empty() || one == other;
    known.secured = match (saw(known), saw(other)) {
        (true, true) => known.secured && other.secured,
        (true, false) => known.secured,
        (false, _) => other.secured,
    } && agree(&known.source_id, &other.source_id)
        && agree(&known.destination_id, &other.destination_id);
    for (mine, theirs) in [
        (&mut known.source_id, &other.source_id),
        (&mut known.destination_id, &other.destination_id),
        (&mut known.tls_version, &other.tls_version),
        (&mut known.key_exchange, &other.key_exchange),
        (&mut known.cipher, &other.cipher),
    ] {
        if mine.is_empty() {
            mine.clone_from(theirs);
        }
    }
    known.connections = known.connections.max(other.connections);
    known.handshakes = known.handshakes.max(other.handshakes);
    known.plaintext_connections = known.plaintext_connections.max(other.plaintext_connections);
    known.refused = known.refused.max(other.refused);
    known.secured_since_ms = match (known.secured_since_ms, other.secured_since_ms) {
        (0, since) | (since, 0) => since,
        (one, other) => one.min(other),
    };
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn edge(secured: bool, connections: u64) -> Edge {
        Edge { source: "a/b".into(), destination: "c/d".into(), secured, connections, ..Edge::default() }
    }

    fn merged(edges: [Edge; 2]) -> Edge {
        let answers = edges.map(|edge| ObserveResponse { edges: vec![edge], ..ObserveResponse::default() });
        let edges = merge(answers.into()).edges;
        assert_eq!(edges.len(), 1);
        edges[0].clone()
    }

    #[test]
    fn an_edge_that_one_replica_calls_open_is_open() {
        assert!(!merged([edge(true, 4), edge(false, 1)]).secured);
        assert!(!merged([edge(false, 1), edge(true, 4)]).secured);
        assert!(merged([edge(true, 4), edge(true, 1)]).secured);
        assert!(merged([edge(false, 0), edge(true, 1)]).secured, "one that saw nothing says nothing");
    }

    #[test]
    fn connections_that_both_ends_saw_are_not_counted_twice() {
        assert_eq!(merged([edge(true, 4), edge(true, 7)]).connections, 7);
    }

    #[test]
    fn two_identities_for_one_end_are_no_secured_edge() {
        let one = Edge { source_id: "spiffe://x/ns/a/sa/b".into(), ..edge(true, 1) };
        let other = Edge { source_id: "spiffe://x/ns/a/sa/evil".into(), ..edge(true, 1) };
        assert!(!merged([one, other]).secured);
    }

    #[test]
    fn the_newest_certificate_and_the_connected_proxy_are_kept() {
        let answer = |not_before, connected| ObserveResponse {
            identities: vec![IssuedIdentity { workload: "shop/web".into(), not_before, ..Default::default() }],
            proxies: vec![ObservedProxy { workload: "shop/web".into(), connected, ..Default::default() }],
            ..ObserveResponse::default()
        };
        let merged = merge(vec![answer(2, false), answer(1, true)]);
        assert_eq!((merged.identities.len(), merged.identities[0].not_before), (1, 2));
        assert!(merged.proxies.len() == 1 && merged.proxies[0].connected);
    }
}
