//! The API server gone, slow, or come back with another content.

use std::time::Instant;

use byrnie_kubelab::{Cluster, World};
use byrnie_proto::mesh::v1::{Destination, DestinationKind, Meshed};
use nix::sys::signal::Signal;
use serde_json::json;

pub(crate) async fn what_changed_while_nobody_watched_is_seen(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let (web, orders) = (cluster.pod("shop", "web").await, cluster.pod("shop", "orders").await);
    let svid = web.svid(control_plane.address).await;
    let mut watch = web.watch(control_plane.address, &svid, &web.token().await).await.unwrap();
    let of = |pod: &byrnie_kubelab::Pod| format!("{}:8080", pod.ip);
    let meshed = |found: &Destination, uid: &str| {
        found.endpoints.iter().any(|endpoint| endpoint.pod_uid == uid && endpoint.meshed() == Meshed::Yes)
    };
    watch.destination(&of(&orders), |found| meshed(found, &orders.uid)).await.unwrap();
    // The process does not see the API server go, nor what happens then.
    control_plane.child.signal(Signal::SIGSTOP);
    cluster.server.kill();
    cluster.server.start_again().await;
    orders.delete().await;
    let late = cluster.pod("shop", "late").await;
    control_plane.child.signal(Signal::SIGCONT);
    watch.destination(&of(&late), |found| meshed(found, &late.uid)).await.unwrap();
    watch.destination(&of(&orders), |found| found.kind() != DestinationKind::Pod).await.unwrap();
    late.svid(control_plane.address).await;
}

pub(crate) async fn an_api_server_that_hangs_stops_nothing_that_runs(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let (web, orders) = (cluster.pod("shop", "web").await, cluster.pod("shop", "orders").await);
    let (at, token, bundle) = (control_plane.address, web.token().await, web.verifier().await);
    let svid = web.certify_trusting(&bundle, at, Some(&token), None).await.unwrap();
    let known = |found: &Destination| found.endpoints.iter().any(|endpoint| endpoint.pod_uid == orders.uid);
    web.watch(at, &svid, &token).await.unwrap().destination(&format!("{}:8080", orders.ip), known).await.unwrap();
    let mut watch = web.watch(at, &svid, &token).await.unwrap();
    cluster.server.freeze(true);
    let begun = Instant::now();
    let found = watch.destination(&format!("{}:8080", orders.ip), |_| true).await.unwrap();
    assert_eq!(found.endpoints[0].pod_uid, orders.uid, "what is known is answered");
    web.certify_trusting(&bundle, at, Some(&token), Some(&svid)).await.expect("a renewal");
    println!("figure: with a frozen API server, an answer and a renewal took {:.1} s", begun.elapsed().as_secs_f64());
    // The injector answers the API server, not the other way round; it only has to be alive afterwards.
    cluster.server.freeze(false);
    cluster.api.merge(&orders.path(), &json!({ "metadata": { "labels": { "after": "thaw" } } })).await.unwrap();
    cluster.pod("shop", "late").await.svid(at).await;
}
