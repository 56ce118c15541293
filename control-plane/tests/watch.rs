//! What proxies are told, when, and who is told nothing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod rig;

use byrnie_identity::{KeyPair, Svid};
use byrnie_proto::mesh::v1::{
    Ack, Destination, DestinationKind, Direction, Edge, EdgeKind, Meshed, Nack, ProxyStatus, Refusal, Report,
    resource::Body, watch_request::Message,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tonic::Code;

use rig::{MESH, Rig, eventually, pod};

fn destination(body: &Body) -> &Destination {
    match body {
        Body::Destination(destination) => destination,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_proxy_gets_its_own_pod_the_bundle_and_what_it_dials() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    watch.subscribe(&["self", "bundle/cluster.local", "destination/10.1.0.1:80", "nonsense"]).await;

    let own = watch.until("self", |_| true).await;
    let Some(Body::Self_(own)) = own.body else { panic!("{own:?}") };
    assert_eq!((own.workload.as_str(), own.pod_uid.as_str()), ("shop/web-0", "uid-web-0"));
    assert_eq!(own.spiffe_id, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(own.service_cidrs, ["10.1.0.0/16"]);

    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    watch.subscribe(&["bundle/cluster.local", "nonsense", "destination/10.1.0.1:80"]).await;
    watch.until("bundle/cluster.local", |body| matches!(body, Body::Bundle(bundle) if bundle.roots.len() == 1)).await;
    let found = watch.until("destination/10.1.0.1:80", |_| true).await.body.unwrap();
    let found = destination(&found);
    assert_eq!((found.kind(), found.service.as_str()), (DestinationKind::Service, "shop/orders"));
    assert_eq!((found.endpoints[0].port, found.endpoints[0].meshed()), (8080, Meshed::EnrolledUnmeshed));
    watch.until("nonsense", |body| matches!(body, Body::Error(reason) if reason.contains("expected"))).await;
}

#[tokio::test]
async fn a_pod_that_joins_becomes_meshed_for_those_who_dial_it() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    let name = "destination/10.1.0.1:80";
    watch.subscribe(&[name]).await;
    let before = watch.until(name, |body| destination(body).endpoints[0].meshed() == Meshed::EnrolledUnmeshed).await;
    rig.join("orders", "orders-0").await;
    let after = watch.until(name, |body| destination(body).endpoints[0].meshed() == Meshed::Yes).await;
    assert!(after.version > before.version);
    let body = after.body.unwrap();
    assert_eq!(destination(&body).endpoints[0].spiffe_id, "spiffe://cluster.local/ns/shop/sa/orders");
}

#[tokio::test]
async fn a_changed_file_reaches_its_subscribers() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    let name = "destination/10.1.0.1:80";
    watch.subscribe(&[name, "self"]).await;
    watch.until("self", |_| true).await;
    rig.write("more.yaml", &pod("orders-1", "orders", "10.0.0.3"));
    watch.until(name, |body| destination(body).endpoints.len() == 2).await;
    let policy = "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: none, namespace: shop}\nspec: {action: Deny, rules: [{}]}\n";
    rig.write("policy.yaml", policy);
    watch
        .until(
            "self",
            |body| matches!(body, Body::Self_(own) if own.policies.as_ref().unwrap().authorization.len() == 1),
        )
        .await;
    std::fs::remove_file(rig.path("source/more.yaml")).unwrap();
    watch.until(name, |body| destination(body).endpoints.len() == 1).await;
}

#[tokio::test]
async fn a_half_written_file_keeps_its_last_good_objects_and_says_so() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    let pods = pod("web-0", "web", "10.0.0.1") + &pod("orders-0", "orders", "10.0.0.2");
    let half = &pods[..pods.len() - 60];
    rig.write("pods.yaml", half);
    let status = eventually("the mistake is shown", async || {
        rig.observe().await.objects.into_iter().find(|object| object.file == "pods.yaml" && !object.accepted)
    })
    .await;
    assert!(status.message.starts_with("pods.yaml:") && status.message.contains("last good"), "{}", status.message);
    let name = "destination/10.1.0.1:80";
    watch.subscribe(&[name]).await;
    watch.until(name, |body| destination(body).endpoints.len() == 1).await;

    rig.write("pods.yaml", &(pods + &pod("orders-1", "orders", "10.0.0.3")));
    watch.until(name, |body| destination(body).endpoints.len() == 2).await;
    assert!(rig.observe().await.objects.iter().all(|object| object.accepted));
}

#[tokio::test]
async fn watch_wants_a_pods_certificate_and_hello_first() {
    let rig = Rig::start().await;
    assert_eq!(rig.watch(None).await.err().unwrap().code(), Code::Unauthenticated);
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.open(Some(&svid)).await.unwrap();
    watch.subscribe(&["self"]).await;
    assert_eq!(watch.end().await.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_ingress_certificate_opens_neither_watch_nor_certify() {
    let rig = Rig::start().await;
    let folder = rig.path("state/ingress/ingress/nginx");
    let chain: Vec<_> = CertificateDer::pem_file_iter(folder.join("tls.crt")).unwrap().map(Result::unwrap).collect();
    let key = KeyPair::from_pem(&std::fs::read_to_string(folder.join("tls.key")).unwrap()).unwrap();
    let svid = Svid::new(chain, key).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/ingress/sa/nginx");
    assert!(rig.verifier().verify(svid.chain()).unwrap().is_outside_mesh());
    assert!(!rig.verifier().verify(rig.join("web", "web-0").await.chain()).unwrap().is_outside_mesh());
    assert_eq!(std::fs::read(folder.join("ca.crt")).unwrap(), std::fs::read(rig.path("state/bundle.pem")).unwrap());

    assert_eq!(rig.watch(Some(&svid)).await.err().unwrap().code(), Code::PermissionDenied);
    assert_eq!(rig.certify(None, Some(&svid)).await.unwrap_err().code(), Code::PermissionDenied);
    let observed = rig.observe().await;
    assert!(observed.refusals.iter().any(|refusal| refusal.cause == "not-a-proxy"));
    assert!(
        observed.identities.iter().any(|identity| identity.workload == "ingress/nginx" && identity.pod_uid.is_empty())
    );
}

#[tokio::test]
async fn the_identity_of_an_enrolled_pod_is_given_to_no_ingress() {
    let rig = Rig::start().await;
    let both = "[{namespace: shop, serviceAccount: orders}, {namespace: ingress, serviceAccount: other}]";
    rig.write("mesh.yaml", &MESH.replace("[{namespace: ingress, serviceAccount: nginx}]", both));
    let written = |path: &str| rig::exists(&rig.path("state/ingress").join(path)).then_some(());
    eventually("the other one is written", async || written("ingress/other/tls.crt")).await;
    assert!(written("shop/orders/tls.crt").is_none());
    assert!(rig.observe().await.identities.iter().all(|identity| identity.workload != "shop/orders"));
}

#[tokio::test]
async fn a_folder_that_takes_no_ingress_certificate_costs_none() {
    let mut rig = Rig::start().await;
    let issued = || async {
        let identities = rig.observe().await.identities;
        identities.into_iter().find(|identity| identity.workload == "ingress/nginx").unwrap().serial
    };
    let before = issued().await;
    let folder = rig.path("state/ingress/ingress/nginx");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "in the way").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(issued().await, before);
    rig.down().await;
}

#[tokio::test]
async fn an_ingress_certificate_is_renewed_at_half_its_life_and_removed_with_its_entry() {
    let rig = Rig::start().await;
    let certificate = rig.path("state/ingress/ingress/nginx/tls.crt");
    let before = std::fs::read(&certificate).unwrap();
    rig.time.advance(std::time::Duration::from_secs(13 * 3600));
    eventually("it is renewed", async || (std::fs::read(&certificate).unwrap() != before).then_some(())).await;
    rig.write("mesh.yaml", &MESH.replace("  ingressCertificates: [{namespace: ingress, serviceAccount: nginx}]\n", ""));
    eventually("it is removed", async || (!rig::exists(&certificate)).then_some(())).await;
}

#[tokio::test]
async fn the_certificate_of_another_pod_speaks_for_that_pod_only() {
    let rig = Rig::start().await;
    let orders = rig.join("orders", "orders-0").await;
    let mut watch = rig.watch(Some(&orders)).await.unwrap();
    watch.subscribe(&["self"]).await;
    let own = watch.until("self", |_| true).await;
    assert!(matches!(own.body, Some(Body::Self_(own)) if own.pod_uid == "uid-orders-0"));

    // Another pod with the same service account has the same SPIFFE ID, and is another pod all the same.
    rig.write("more.yaml", &pod("orders-1", "orders", "10.0.0.3"));
    let token = rig.token("orders", "orders-1", 0).await;
    let second = eventually("the pod is known", async || rig.certify(Some(token.clone()), None).await.ok()).await;
    assert_eq!(second.id(), orders.id());
    let mut watch = rig.watch(Some(&second)).await.unwrap();
    watch.subscribe(&["self"]).await;
    let own = watch.until("self", |_| true).await;
    assert!(matches!(own.body, Some(Body::Self_(own)) if own.pod_uid == "uid-orders-1"));
}

#[tokio::test]
async fn the_stream_ends_with_its_pod_and_with_a_newer_stream() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut first = rig.watch(Some(&svid)).await.unwrap();
    first.subscribe(&["self"]).await;
    first.until("self", |_| true).await;
    let mut second = rig.watch(Some(&svid)).await.unwrap();
    assert_eq!(first.end().await.code(), Code::Aborted);
    rig.write("pods.yaml", &pod("orders-0", "orders", "10.0.0.2"));
    assert_eq!(second.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_stream_ends_when_its_certificate_expires() {
    let rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    rig.time.advance(std::time::Duration::from_secs(25 * 3600));
    assert_eq!(watch.end().await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn the_control_planes_own_certificate_is_renewed_while_it_serves() {
    let rig = Rig::start().await;
    let serial = async || {
        let identities = rig.observe().await.identities;
        let own = identities.into_iter().find(|identity| identity.workload == "byrnie-system/byrnie-control-plane");
        own.unwrap().serial
    };
    let before = serial().await;
    rig.time.advance(std::time::Duration::from_secs(11 * 3600));
    rig.join("orders", "orders-0").await;
    assert_eq!(serial().await, before, "not before half of its life");
    rig.time.advance(std::time::Duration::from_secs(2 * 3600));
    eventually("it is renewed", async || (serial().await != before).then_some(())).await;
    rig.time.advance(std::time::Duration::from_secs(12 * 3600));
    // The first one has expired by now.
    rig.join("web", "web-0").await;
}

#[tokio::test]
async fn a_restarted_control_plane_sends_everything_again() {
    let mut rig = Rig::start().await;
    let svid = rig.join("web", "web-0").await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    watch.subscribe(&["self"]).await;
    let before = watch.until("self", |_| true).await;
    rig.down().await;
    assert_eq!(watch.end().await.code(), Code::Unavailable);
    rig.up().await;
    let mut watch = rig.watch(Some(&svid)).await.unwrap();
    watch.subscribe(&["self"]).await;
    let after = watch.until("self", |_| true).await;
    assert_eq!(before.body, after.body);
}

#[tokio::test]
async fn reports_of_both_ends_are_one_edge_and_a_nack_shows() {
    let rig = Rig::start().await;
    let (web, orders) = (rig.join("web", "web-0").await, rig.join("orders", "orders-0").await);
    let (client, server) = (rig.watch(Some(&web)).await.unwrap(), rig.watch(Some(&orders)).await.unwrap());
    let edge = |direction: Direction, source: &str, destination: &str| Edge {
        kind: EdgeKind::Mesh.into(),
        direction: direction.into(),
        source: source.to_owned(),
        destination: destination.to_owned(),
        source_id: web.id().to_string(),
        destination_id: orders.id().to_string(),
        secured: true,
        connections: 3,
        handshakes: 1,
        ..Edge::default()
    };
    let refusal = Refusal {
        source: "10.0.0.9:5".to_owned(),
        cause: "plaintext".to_owned(),
        at_ms: 1,
        direction: Direction::Inbound.into(),
        ..Refusal::default()
    };
    let status = Some(ProxyStatus { ready: true, ..ProxyStatus::default() });
    // The server's proxy knows an address only; and a proxy can't speak for a third.
    client
        .send(Message::Report(Report {
            status: status.clone(),
            edges: vec![edge(Direction::Outbound, "shop/bank", "shop/orders-0")],
            ..Report::default()
        }))
        .await;
    server
        .send(Message::Report(Report {
            status,
            edges: vec![edge(Direction::Inbound, "10.0.0.1", "shop/orders-0")],
            refusals: vec![refusal],
            ..Report::default()
        }))
        .await;
    client.send(Message::Nack(Nack { name: "self".to_owned(), version: 1, reason: "malformed".to_owned() })).await;
    let observed = eventually("all is observed", async || {
        let observed = rig.observe().await;
        let nacked = observed.proxies.iter().any(|proxy| proxy.nacks == ["self: malformed"] && proxy.connected);
        (nacked && observed.refusals.len() == 1 && observed.edges.first().is_some_and(|edge| edge.connections == 3))
            .then_some(observed)
    })
    .await;
    assert_eq!(observed.edges.len(), 1, "{:?}", observed.edges);
    let edge = &observed.edges[0];
    assert_eq!((edge.source.as_str(), edge.destination.as_str(), edge.secured), ("shop/web-0", "shop/orders-0", true));
    assert_eq!(
        (observed.refusals[0].source.as_str(), observed.refusals[0].destination.as_str()),
        ("10.0.0.9:5", "shop/orders-0")
    );
    client.send(Message::Ack(Ack { name: "self".to_owned(), version: 2 })).await;
    eventually("the nack is gone", async || {
        rig.observe().await.proxies.iter().all(|proxy| proxy.nacks.is_empty()).then_some(())
    })
    .await;
}
