//! Who gets which identity, and who gets none.

use std::time::Duration;

use byrnie_api::labels::TOKEN_AUDIENCE;
use byrnie_kubelab::{Cluster, Pod, World};
use byrnie_proto::mesh::v1::resource::Body;
use byrnie_scenarios::eventually;
use serde_json::{Value, json};
use tonic::Code;

use crate::forged::with_claims;
use crate::pods::annotated;

pub(crate) async fn a_pods_token_gets_it_the_identity_of_its_service_account_and_a_stream(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let web = cluster.pod("shop", "web").await;
    let (at, token) = (control_plane.address, web.token().await);
    let svid = web.certify(at, Some(&token), None).await.unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    let renewed = web.certify(at, Some(&token), Some(&svid)).await.unwrap();
    assert_ne!(renewed.serial(), svid.serial());
    let mut watch = web.watch(at, &renewed, &token).await.unwrap();
    watch.subscribe(&["self"]).await;
    let Body::Self_(own) = watch.until("self", Duration::from_secs(2), |_| true).await.unwrap() else { panic!() };
    assert_eq!((own.workload.as_str(), own.pod_uid.as_str()), ("shop/web", web.uid.as_str()));
}

pub(crate) async fn a_token_of_another_kind_opens_nothing(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let web = cluster.pod("shop", "web").await;
    let good = web.token().await;
    let expired = |claims: &mut Value| {
        claims["exp"] = json!(claims["exp"].as_i64().unwrap() - 7200);
        claims["iat"] = json!(claims["iat"].as_i64().unwrap() - 7200);
        claims["nbf"] = claims["iat"].clone();
    };
    let another_uid = |claims: &mut Value| {
        claims["kubernetes.io"]["pod"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
    };
    // In the midst of it: the last character of a signature has but two bits.
    let (before, after) = good.split_at(good.len() - 20);
    let bad_signature = format!("{before}{}{}", if after.starts_with('A') { 'B' } else { 'A' }, &after[1..]);
    let tokens = [
        (
            "no audience of ours",
            web.try_token(&["https://kubernetes.default.svc"], Some(&web.uid), 3600).await.unwrap(),
        ),
        ("another audience", web.try_token(&["byrnie.dev/other"], Some(&web.uid), 3600).await.unwrap()),
        ("bound to no pod", web.try_token(&[TOKEN_AUDIENCE], None, 3600).await.unwrap()),
        ("the control plane's own", cluster.service_account_token("byrnie-system", "byrnie-control-plane").await),
        ("expired", with_claims(&cluster, &good, expired)),
        ("another pod's UID", with_claims(&cluster, &good, another_uid)),
        ("a damaged signature", bad_signature),
        ("no token", "x".to_owned()),
        ("nothing", String::new()),
        ("too much", "x".repeat(100_000)),
        ("no text of ASCII", "é.\u{0}.\n".to_owned()),
    ];
    for (kind, token) in tokens {
        let refused = web.certify(control_plane.address, Some(&token), None).await.expect_err(kind);
        let codes = [Code::Unauthenticated, Code::PermissionDenied, Code::InvalidArgument, Code::OutOfRange];
        assert!(codes.contains(&refused.code()), "{kind}: {refused:?}");
        assert!(!refused.message().contains(&good), "{kind}: a token in a message");
    }
    let log = control_plane.child.log();
    assert!(!log.contains(good.split('.').nth(2).unwrap()), "a token's signature in the log");
    web.certify(control_plane.address, None, None).await.expect_err("no credential");
    web.certify(control_plane.address, Some(&good), None).await.expect("the token itself is good");
}

pub(crate) async fn the_token_of_a_pod_that_is_gone_opens_nothing_even_under_its_name(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let first = cluster.pod("shop", "web").await;
    let (at, stolen) = (control_plane.address, first.token().await);
    let svid = first.certify(at, Some(&stolen), None).await.unwrap();
    first.delete().await;
    // The review's result is remembered; the pod is known to be gone as soon as the watch says so.
    let refused = eventually("the pod is known to be gone", Duration::from_secs(1), async || {
        first.certify(at, Some(&stolen), None).await.err()
    })
    .await;
    assert!(matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated), "{refused:?}");
    let second = cluster.pod("shop", "web").await;
    assert_ne!(first.uid, second.uid);
    for svid in [None, Some(&svid)] {
        let refused = second.certify(at, Some(&stolen), svid).await.expect_err("the token of the pod before");
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated), "{refused:?}");
    }
    second.certify(at, Some(&second.token().await), None).await.expect("the new pod has a token of its own");
}

pub(crate) async fn a_pod_without_a_proxy_of_ours_gets_no_identity(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let opted_out = annotated("byrnie.dev/inject", "false");
    let plain = Pod::create_with(&cluster.api, "shop", "plain", "plain", &opted_out).await.unwrap();
    let refused = plain.certify(control_plane.address, Some(&plain.token().await), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    let done = cluster.pod("shop", "done").await;
    let token = done.token().await;
    let path = format!("{}/status", done.path());
    cluster.api.merge(&path, &json!({ "status": { "phase": "Succeeded" } })).await.unwrap();
    eventually("a pod that has ended gets no identity", Duration::from_secs(2), async || {
        done.certify(control_plane.address, Some(&token), None).await.err()
    })
    .await;
}

pub(crate) async fn a_pod_can_not_speak_for_a_pod_of_another_service_account(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let (web, orders) = (cluster.pod("shop", "web").await, cluster.pod("shop", "orders").await);
    let at = control_plane.address;
    let (web_svid, orders_token) = (web.svid(at).await, orders.token().await);
    web.certify(at, Some(&orders_token), Some(&web_svid)).await.expect_err("a renewal with another pod's token");
    let refused = match web.watch(at, &web_svid, &orders_token).await {
        Err(_) => true,
        Ok(mut watch) => {
            watch.subscribe(&["self"]).await;
            watch.until("self", Duration::from_secs(2), |_| true).await.is_err()
        }
    };
    assert!(refused, "a stream with another pod's token was opened");
}

pub(crate) async fn a_replica_renews_without_the_api_server_and_issues_nothing_new(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let (web, orders) = (cluster.pod("shop", "web").await, cluster.pod("shop", "orders").await);
    let (at, token, unused) = (control_plane.address, web.token().await, orders.token().await);
    let bundle = web.verifier().await;
    let svid = web.certify_trusting(&bundle, at, Some(&token), None).await.unwrap();
    cluster.server.kill();
    let renewed = web.certify_trusting(&bundle, at, Some(&token), Some(&svid)).await.expect("a renewal");
    assert_eq!(renewed.id(), svid.id());
    let refused = orders.certify_trusting(&bundle, at, Some(&unused), None).await.expect_err("a first issuance");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    cluster.server.start_again().await;
    eventually("issuance goes on", Duration::from_secs(4), async || {
        orders.certify_trusting(&bundle, at, Some(&unused), None).await.ok()
    })
    .await;
}
