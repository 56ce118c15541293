//! What is inside of the cluster, as the cluster itself says.

use std::time::Duration;

use byrnie_kubelab::{Cluster, World};
use byrnie_proto::mesh::v1::{DestinationKind, Meshed, resource::Body};
use byrnie_scenarios::eventually;
use serde_json::json;

const MESH_CONFIG: &str = "/apis/byrnie.dev/v1alpha1/meshconfigs/default";

pub(crate) async fn the_clusters_networks_are_learnt_and_open_egress_waits_for_them(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let web = cluster.pod("shop", "web").await;
    let svid = web.svid(control_plane.address).await;
    let mut watch = web.watch(control_plane.address, &svid, &web.token().await).await.unwrap();
    let accepted = async |status: &str| {
        eventually("the condition Accepted", Duration::from_secs(3), async || {
            let stored = cluster.api.get(MESH_CONFIG).await.ok()?;
            let conditions = stored["status"]["conditions"].as_array()?.clone();
            conditions.into_iter().find(|condition| {
                condition["observedGeneration"] == stored["metadata"]["generation"] && condition["status"] == status
            })
        })
        .await
    };
    let open = json!({ "apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": { "name": "default" },
        "spec": { "egress": { "default": "Allow" } } });
    cluster.api.apply(MESH_CONFIG, &open).await.unwrap();
    let message = accepted("False").await["message"].as_str().unwrap().to_owned();
    assert!(message.contains("spec.networks.podCIDRs") && message.contains("no Node"), "{message}");
    let unknown = "10.244.99.9:80";
    watch.destination(unknown, |found| found.kind() == DestinationKind::External).await.unwrap();

    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-1" },
        "spec": { "podCIDRs": ["10.244.0.0/16"], "podCIDR": "10.244.0.0/16" } });
    cluster.api.create("/api/v1/nodes", &node).await.unwrap();
    let addresses = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.7" }] } });
    cluster.api.merge("/api/v1/nodes/node-1/status", &addresses).await.unwrap();
    let more = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "more" },
        "spec": { "cidrs": ["10.98.0.0/24"] } });
    cluster.api.create("/apis/networking.k8s.io/v1/servicecidrs", &more).await.unwrap();
    watch.destination(unknown, |found| found.kind() == DestinationKind::UnknownInternal).await.unwrap();
    watch.destination("10.98.0.9:80", |found| found.kind() == DestinationKind::UnknownInternal).await.unwrap();
    watch.subscribe(&["self"]).await;
    let learnt = |body: &Body| {
        let Body::Self_(own) = body else { return false };
        let both = ["10.96.0.0/16", "10.98.0.0/24"].map(str::to_owned);
        own.pod_cidrs == ["10.244.0.0/16"] && both.iter().all(|network| own.service_cidrs.contains(network))
    };
    watch.until("self", Duration::from_secs(2), learnt).await.unwrap();
    accepted("True").await;

    // A node on which no pod runs leads to the Service as well.
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "type": "NodePort", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080, "nodePort": 30080 }] } });
    cluster.api.create("/api/v1/namespaces/shop/services", &service).await.unwrap();
    let meshed = |found: &byrnie_proto::mesh::v1::Destination| {
        found.kind() == DestinationKind::Service && found.endpoints.iter().any(|one| one.meshed() == Meshed::Yes)
    };
    watch.destination("192.0.2.7:30080", meshed).await.unwrap();
}
