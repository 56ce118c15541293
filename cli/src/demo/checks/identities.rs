//! Every edge of the story: both ends proved who they are, with TLS 1.3 and a key exchange that outlasts quantum
//! computers.

use std::time::Duration;

use byrnie_proto::mesh::v1::ObserveResponse;

use super::Scene;
use crate::demo::story::observe_until;
use crate::demo::topology::{INGRESS, ORDERS, Pod, STOCK, WEB};
use crate::failure::Failure;
use crate::view::{Edge, edges};

/// The edges of the story: kind, source, destination.
const EDGES: [(&str, Pod, Pod); 3] = [("ingress", INGRESS, WEB), ("mesh", WEB, ORDERS), ("mesh", ORDERS, STOCK)];

/// The hybrid of X25519 and ML-KEM-768.
const KEY_EXCHANGE: &str = "X25519MLKEM768";

/// Longest that proxies take to report.
const PATIENCE: Duration = Duration::from_secs(8);

/// `edge-identities`
pub(in crate::demo) async fn edge_identities(scene: &mut Scene<'_>) -> Result<(), Failure> {
    // What is not there when the time is over shows as what was found.
    let waited =
        observe_until(scene, "seeing the edges", PATIENCE, |observed| problems(observed).is_empty().then_some(()))
            .await;
    let problems = match waited {
        Ok(()) => Vec::new(),
        Err(_) => problems(&crate::demo::mesh::observe(scene.world).await?),
    };
    let found = if problems.is_empty() {
        format!("{} edges with both SPIFFE IDs, TLSv1.3, {KEY_EXCHANGE}", EDGES.len())
    } else {
        problems.join("; ")
    };
    let expected = format!(
        "ingress/ingress -> shop/web -> shop/orders -> shop/stock, each with both exact SPIFFE IDs, TLSv1.3 with \
         {KEY_EXCHANGE}, no plaintext"
    );
    scene.check("edge-identities", problems.is_empty(), &expected, found);
    Ok(())
}

fn problems(observed: &ObserveResponse) -> Vec<String> {
    let edges = edges(observed);
    EDGES.iter().filter_map(|(kind, source, destination)| problem(&edges, kind, *source, *destination)).collect()
}

fn problem(edges: &[Edge], kind: &str, source: Pod, destination: Pod) -> Option<String> {
    let name = format!("{} -> {}", source.name, destination.name);
    let of_pair =
        |edge: &&Edge| edge.kind == kind && edge.source == source.name && edge.destination == destination.name;
    let Some(edge) = edges.iter().find(of_pair) else {
        return Some(format!("{name}: no such edge was reported"));
    };
    let good = edge.secured
        && edge.source_id.as_deref() == Some(&source.spiffe_id())
        && edge.destination_id.as_deref() == Some(&destination.spiffe_id())
        && edge.tls_version.as_deref() == Some("TLSv1.3")
        && edge.key_exchange.as_deref() == Some(KEY_EXCHANGE)
        && edge.connections > 0
        && edge.plaintext_connections == 0;
    (!good).then(|| format!("{name}: {edge:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use byrnie_proto::mesh::v1 as proto;

    fn good() -> proto::Edge {
        proto::Edge {
            kind: proto::EdgeKind::Mesh as i32,
            source: WEB.name.into(),
            destination: ORDERS.name.into(),
            source_id: WEB.spiffe_id(),
            destination_id: ORDERS.spiffe_id(),
            secured: true,
            tls_version: "TLSv1.3".into(),
            key_exchange: KEY_EXCHANGE.into(),
            connections: 1,
            handshakes: 1,
            ..Default::default()
        }
    }

    fn is_good(edge: proto::Edge) -> bool {
        problem(&[Edge::from(&edge)], "mesh", WEB, ORDERS).is_none()
    }

    #[test]
    fn an_edge_passes_with_both_identities_and_no_plaintext_only() {
        assert!(is_good(good()));
        assert!(!is_good(proto::Edge { destination_id: STOCK.spiffe_id(), ..good() }));
        assert!(!is_good(proto::Edge { source_id: String::new(), ..good() }));
        assert!(!is_good(proto::Edge { plaintext_connections: 1, ..good() }));
        assert!(!is_good(proto::Edge { secured: false, ..good() }));
        assert!(!is_good(proto::Edge { key_exchange: "X25519".into(), ..good() }));
    }
}
