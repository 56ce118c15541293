//! Two control planes, one of which writes.

use std::time::Duration;

use byrnie_identity::Svid;
use byrnie_kubelab::{Cluster, World};
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_scenarios::eventually;
use serde_json::{Value, json};
use tonic::Code;

use crate::forged::with_claims;

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

pub(crate) async fn what_one_replica_issued_another_renews_while_the_api_server_is_away(world: World) {
    let (cluster, first, _injector) = Cluster::running(&world).await;
    let second = cluster.control_plane(1).await;
    second.is_ready().await;
    cluster.enrolled("shop").await;
    let (web, orders) = (cluster.pod("shop", "web").await, cluster.pod("shop", "orders").await);
    let (token, of_orders, trusted) = (web.token().await, orders.token().await, web.verifier().await);
    let svid = web.certify_trusting(&trusted, first.address, Some(&token), None).await.expect("a first one");
    // Both pods are in the model of the second one.
    let mut watch = web.watch(second.address, &svid, &token).await.unwrap();
    for pod in [&web, &orders] {
        let there =
            |found: &byrnie_proto::mesh::v1::Destination| found.endpoints.iter().any(|one| one.pod_uid == pod.uid);
        watch.destination(&format!("{}:8080", pod.ip), there).await.unwrap();
    }
    drop(watch);
    let expired = with_claims(&cluster, &token, |claims| {
        let hours_ago = |claim: &Value| json!(claim.as_i64().unwrap() - 7200);
        for name in ["exp", "iat", "nbf"] {
            claims[name] = hours_ago(&claims[name]);
        }
    });
    let borrowed = with_claims(&cluster, &token, |claims| claims["kubernetes.io"]["pod"]["uid"] = json!(orders.uid));
    cluster.server.kill();

    let at = second.address;
    let ask = async |token: &str, svid: Option<&Svid>| web.certify_trusting(&trusted, at, Some(token), svid).await;
    let renewed = ask(&token, Some(&svid)).await.expect("a renewal at the other replica");
    assert_eq!(renewed.id(), svid.id());
    let mut stream = web.watch_trusting(&trusted, at, &renewed, &token).await.expect("a stream at the other replica");
    stream.subscribe(&["self"]).await;
    let Body::Self_(own) = stream.until("self", Duration::from_secs(2), |_| true).await.unwrap() else { panic!() };
    assert_eq!(own.pod_uid, web.uid);
    for (what, token, svid, code) in [
        ("a first certificate", &of_orders, None, Code::Unavailable),
        ("another service account's token", &of_orders, Some(&svid), Code::PermissionDenied),
        ("an expired token", &expired, Some(&svid), Code::Unavailable),
        ("another pod's UID", &borrowed, Some(&svid), Code::PermissionDenied),
    ] {
        let refused = ask(token, svid).await.expect_err(what);
        assert_eq!(refused.code(), code, "{what}: {refused:?}");
    }
}
