//! Many pods.

use std::time::{Duration, Instant};

use byrnie_kubelab::{Cluster, Pod, World};
use byrnie_proto::mesh::v1::Meshed;
use futures::StreamExt;
use serde_json::json;

const PODS: usize = 1_000;

/// Requests at a time.
const AT_ONCE: usize = 16;

/// How many pods are created one after the other, to see what one costs.
const ONE_BY_ONE: usize = 200;

/// What the control plane may need for all of them, without a proxy connected: some 20 KiB for each, and what it is made of.
const MEMORY_KIB: u64 = 128 * 1024;

pub(crate) async fn a_thousand_pods_come_and_go(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let observer = cluster.pod("shop", "observer").await;
    let at = control_plane.address;
    let svid = observer.svid(at).await;
    let mut watch = observer.watch(at, &svid, &observer.token().await).await.unwrap();
    cluster.namespace("legacy", &json!({})).await;
    for (namespace, way) in [("shop", "through the injector"), ("legacy", "past it")] {
        let [median, most] = creation(&cluster, namespace).await;
        println!("figure: one pod created {way}, nothing else going on: p50 {median:?}, p99 {most:?}");
    }
    let before = control_plane.child.resident_kib();
    let begun = Instant::now();
    let made: Vec<(Pod, Duration)> = futures::stream::iter(0..PODS)
        .map(async |number| {
            let begun = Instant::now();
            let pod = Pod::create(&cluster.api, "shop", &format!("web-{number}"), "web").await.unwrap();
            (pod, begun.elapsed())
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let took = begun.elapsed().as_secs_f64();
    let mut each: Vec<Duration> = made.iter().map(|(_, took)| *took).collect();
    each.sort_unstable();
    println!(
        "figure: {PODS} pods injected in {took:.1} s ({:.0}/s); account, pod and status together p50 {:?}, p99 {:?}",
        PODS as f64 / took,
        each[PODS / 2],
        each[PODS * 99 / 100]
    );
    let last = Pod::create(&cluster.api, "shop", "last", "last").await.unwrap();
    let begun = Instant::now();
    let address = format!("{}:8080", last.ip);
    let meshed = |uid: &str, found: &byrnie_proto::mesh::v1::Destination| {
        found.endpoints.iter().any(|endpoint| endpoint.pod_uid == uid && endpoint.meshed() == Meshed::Yes)
    };
    watch.destination(&address, |found| meshed(&last.uid, found)).await.unwrap();
    println!(
        "figure: with {PODS} pods, one more was published {:.0} ms after its status",
        begun.elapsed().as_secs_f64() * 1e3
    );
    let after = control_plane.child.resident_kib();
    println!("figure: the control plane's memory: {before} KiB before, {after} KiB with {PODS} pods");
    assert!(after < MEMORY_KIB, "{after} KiB");
    let begun = Instant::now();
    futures::stream::iter(&made).for_each_concurrent(AT_ONCE, async |(pod, _)| pod.delete().await).await;
    let gone = format!("{}:8080", made[0].0.ip);
    watch.destination(&gone, |found| found.endpoints.is_empty()).await.unwrap();
    println!("figure: {PODS} pods deleted and forgotten in {:.1} s", begun.elapsed().as_secs_f64());
    let again = control_plane.child.resident_kib();
    println!("figure: the control plane's memory afterwards: {again} KiB");
    cluster.api.merge(&last.path(), &json!({ "metadata": { "labels": { "still": "here" } } })).await.unwrap();
}

/// Median and 99th percentile of a pod's creation that is not stored.
async fn creation(cluster: &Cluster, namespace: &str) -> [Duration; 2] {
    let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
    let mut each = Vec::with_capacity(ONE_BY_ONE);
    for _ in 0..ONE_BY_ONE {
        let begun = Instant::now();
        cluster.api.create(&path, &Pod::manifest("web", "web")).await.unwrap();
        each.push(begun.elapsed());
    }
    each.sort_unstable();
    [each[ONE_BY_ONE / 2], each[ONE_BY_ONE * 99 / 100]]
}
