//! `byrnie edges`

use crate::args::{EdgesArgs, MeshArgs};
use crate::failure::{Exit, Failure};
use crate::output::print_list;
use crate::view::{Edge, in_namespace};

pub(super) fn run(mesh: &MeshArgs, options: &EdgesArgs) -> Result<Exit, Failure> {
    let mut edges = crate::view::edges(&super::observe(mesh)?);
    if let Some(namespace) = &options.namespace {
        edges.retain(|edge| in_namespace(&edge.source, namespace) || in_namespace(&edge.destination, namespace));
    }
    print_list(&edges, options.output, "No proxy has seen a connection yet.")?;
    if options.require_mtls {
        let open = unsecured(&edges);
        if !open.is_empty() {
            return Err(Failure::new(
                Exit::Negative,
                format!("{} of {} edges are not secured", open.len(), edges.len()),
            )
            .expected("every edge inside the mesh, or from an ingress into it, over mutual TLS")
            .found(open.join("\n"))
            .next("byrnie proxy status   (a proxy that is missing or does not capture is the usual reason)"));
        }
    }
    Ok(Exit::Success)
}

/// The edges that should be secured and are not. What leaves the mesh is not the mesh's to secure.
fn unsecured(edges: &[Edge]) -> Vec<String> {
    let describe = |edge: &Edge| {
        format!("{} -> {} ({} plaintext connections)", edge.source, edge.destination, edge.plaintext_connections)
    };
    edges.iter().filter(|edge| !edge.is_egress() && !edge.secured).map(describe).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use byrnie_proto::mesh::v1 as proto;

    fn edge(kind: proto::EdgeKind, secured: bool) -> Edge {
        Edge::from(&proto::Edge { kind: kind as i32, secured, ..Default::default() })
    }

    #[test]
    fn an_edge_inside_or_from_an_ingress_must_be_secured() {
        assert_eq!(unsecured(&[edge(proto::EdgeKind::Mesh, false)]).len(), 1);
        assert_eq!(unsecured(&[edge(proto::EdgeKind::Ingress, false)]).len(), 1);
        assert_eq!(unsecured(&[edge(proto::EdgeKind::Unspecified, false)]).len(), 1);
        assert!(unsecured(&[edge(proto::EdgeKind::Mesh, true)]).is_empty());
    }

    #[test]
    fn what_leaves_the_mesh_is_not_the_meshs_to_secure() {
        assert!(unsecured(&[edge(proto::EdgeKind::Egress, false)]).is_empty());
    }
}
