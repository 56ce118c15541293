//! Two control planes, one of which writes.

use std::time::Duration;

use byrnie_kubelab::{Cluster, World};
use byrnie_scenarios::eventually;
use serde_json::json;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/byrnie-system/leases/byrnie-control-plane";

pub(crate) async fn when_the_leader_dies_the_other_writes_on(world: World) {
    let (cluster, first, _injector) = Cluster::running(&world).await;
    let second = cluster.control_plane(1).await;
    second.is_ready().await;
    cluster.enrolled("shop").await;
    let web = cluster.pod("shop", "web").await;
    // Any replica is as good as the other, and takes what the other issued.
    let svid = web.svid(first.address).await;
    web.certify(second.address, Some(&web.token().await), Some(&svid)).await.expect("a renewal at the other replica");
    let holder = async || {
        let lease = cluster.api.get(LEASE).await.ok()?;
        Some(lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty())?.to_owned())
    };
    let leader = eventually("a leader", Duration::from_secs(4), holder).await;
    let (dies, lives) = if leader.contains("control-plane-0") { (&first, &second) } else { (&second, &first) };
    dies.child.kill();
    let begun = std::time::Instant::now();
    cluster.namespace("late", &json!({ "byrnie.dev/mesh": "enabled" })).await;
    let path = "/api/v1/namespaces/late/configmaps/byrnie-trust-bundle";
    eventually("the other one leads", Duration::from_secs(12), async || cluster.api.get(path).await.ok()).await;
    println!("figure: another leader wrote {:.1} s after the first was killed", begun.elapsed().as_secs_f64());
    assert_ne!(eventually("another leader", Duration::from_secs(4), holder).await, leader);
    web.certify(lives.address, Some(&web.token().await), Some(&svid)).await.expect("a renewal at the survivor");
}
