//! Two control planes, one of which writes. Where they are to be of different versions, the scenario is the other one: it
//! does with the Lease what that one would.

use std::time::Duration;

use byrnie_identity::Svid;
use byrnie_kubelab::{Cluster, World};
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_scenarios::eventually;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tonic::Code;

use crate::forged::with_claims;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/byrnie-system/leases/byrnie-control-plane";

/// What a leader writes for a namespace `late`.
const LATE: &str = "/api/v1/namespaces/late/configmaps/byrnie-trust-bundle";

const WANTED_BY: &str = "/metadata/annotations/byrnie.dev~1wanted-by";

/// Who holds the Lease.
async fn leader(cluster: &Cluster) -> String {
    let holder = async || {
        let lease = cluster.api.get(LEASE).await.ok()?;
        Some(lease["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty())?.to_owned())
    };
    eventually("a leader", Duration::from_secs(4), holder).await
}

pub(crate) async fn when_the_leader_dies_the_other_writes_on(world: World) {
    let (cluster, first, _injector) = Cluster::running(&world).await;
    let second = cluster.control_plane(1).await;
    second.is_ready().await;
    cluster.enrolled("shop").await;
    let web = cluster.pod("shop", "web").await;
    // Any replica is as good as the other, and takes what the other issued.
    let svid = web.svid(first.address).await;
    web.certify(second.address, Some(&web.token().await), Some(&svid)).await.expect("a renewal at the other replica");
    let leader = leader(&cluster).await;
    let (dies, lives) = if leader.contains("control-plane-0") { (&first, &second) } else { (&second, &first) };
    dies.child.kill();
    let begun = std::time::Instant::now();
    cluster.namespace("late", &json!({ "byrnie.dev/mesh": "enabled" })).await;
    eventually("the other one leads", Duration::from_secs(12), async || cluster.api.get(LATE).await.ok()).await;
    println!("figure: another leader wrote {:.1} s after the first was killed", begun.elapsed().as_secs_f64());
    assert_ne!(self::leader(&cluster).await, leader);
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
    // One that no replica has had reviewed: the result of a review counts for a minute.
    let unseen = web.token().await;
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
    let renewed = ask(&unseen, Some(&svid)).await.expect("a renewal at the other replica");
    assert_eq!(renewed.id(), svid.id());
    let mut stream = web.watch_trusting(&trusted, at, &renewed, &unseen).await.expect("a stream at the other replica");
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

pub(crate) async fn a_leader_hands_over_to_a_newer_version_and_leads_again_where_none_is_left(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let web = cluster.pod("shop", "web").await;
    let own = leader(&cluster).await;
    let wish = |replica: &str| json!({ "metadata": { "annotations": { "byrnie.dev/wanted-by": replica } } });
    // Older ones, and those of its own version, have nothing to wish.
    for replica in ["older_0.0.1_00000000", &own.replace("control-plane-0", "another")] {
        cluster.api.merge(LEASE, &wish(replica)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(leader(&cluster).await, own, "{replica}");
    }
    cluster.api.merge(LEASE, &wish("newer_99.0.0_00000000")).await.unwrap();
    let handed = eventually("the Lease is handed over", Duration::from_secs(4), async || {
        let lease = cluster.api.get(LEASE).await.ok()?;
        (lease["spec"]["holderIdentity"] == "newer_99.0.0_00000000").then_some(lease)
    })
    .await;
    assert_eq!(handed.pointer(WANTED_BY), None);
    // What is the newer one's to write, this one leaves alone; it serves as before.
    cluster.namespace("late", &json!({ "byrnie.dev/mesh": "enabled" })).await;
    web.svid(control_plane.address).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(cluster.api.get(LATE).await.is_err_and(|error| error.code == 404), "it writes without the Lease");
    let free = json!({ "spec": { "holderIdentity": Value::Null, "acquireTime": Value::Null, "renewTime": Value::Null,
        "leaseDurationSeconds": Value::Null } });
    cluster.api.merge(LEASE, &free).await.unwrap();
    cluster.trust_bundle("late").await;
    assert_eq!(leader(&cluster).await, own);
}

pub(crate) async fn a_replica_asks_an_older_leader_for_the_lease_and_writes_when_it_has_it(world: World) {
    let cluster = Cluster::installed(&world).await;
    let held = |holder: &str, seconds: u32| {
        let now = MicroTime(Timestamp::now());
        json!({ "spec": { "holderIdentity": holder, "acquireTime": now, "renewTime": now,
            "leaseDurationSeconds": seconds } })
    };
    let mut older = held("older_0.0.1_00000000", 3600);
    older["apiVersion"] = json!("coordination.k8s.io/v1");
    older["kind"] = json!("Lease");
    older["metadata"] = json!({ "name": "byrnie-control-plane" });
    let leases = LEASE.rsplit_once('/').unwrap().0;
    cluster.api.create(leases, &older).await.expect("a Lease");
    let control_plane = cluster.control_plane(0).await;
    control_plane.is_ready().await;
    cluster.namespace("late", &json!({ "byrnie.dev/mesh": "enabled" })).await;
    let wish = eventually("it asks for the Lease", Duration::from_secs(4), async || {
        Some(cluster.api.get(LEASE).await.ok()?.pointer(WANTED_BY)?.as_str()?.to_owned())
    })
    .await;
    assert!(wish.starts_with(concat!("control-plane-0_", env!("CARGO_PKG_VERSION"), "_")), "{wish}");
    assert!(cluster.api.get(LATE).await.is_err_and(|error| error.code == 404), "it writes without the Lease");
    let mut handed = held(&wish, 30);
    handed["metadata"] = json!({ "annotations": { "byrnie.dev/wanted-by": Value::Null } });
    cluster.api.merge(LEASE, &handed).await.unwrap();
    cluster.trust_bundle("late").await;
    assert_eq!(leader(&cluster).await, wish);
}
