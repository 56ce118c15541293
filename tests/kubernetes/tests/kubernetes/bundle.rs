//! What the leader keeps for others: the roots that every proxy of a namespace trusts, and an ingress controller's
//! certificate.

use std::time::{Duration, Instant};

use byrnie_kubelab::{Cluster, World};
use byrnie_scenarios::eventually;
use serde_json::{Value, json};
use tonic::Code;

const PATH: &str = "/api/v1/namespaces/shop/configmaps/byrnie-trust-bundle";

pub(crate) async fn nobody_but_the_control_plane_writes_a_namespaces_trust_bundle(world: World) {
    let (cluster, control_plane, injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let good = cluster.trust_bundle("shop").await;
    // The API server alone keeps it.
    injector.child.kill();
    let evil = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "byrnie-trust-bundle" },
        "data": { "bundle.pem": "evil" } });
    let refused = cluster.api.merge(PATH, &json!({ "data": { "bundle.pem": "evil" } })).await.expect_err("a change");
    assert!(refused.code == 403 && refused.message.contains("byrnie-trust-bundle"), "{refused}");
    cluster.namespace("plain", &json!({})).await;
    for namespace in ["plain", "default"] {
        let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
        cluster.api.create(&collection, &evil).await.expect_err("one of somebody else's making");
    }
    assert_eq!(cluster.trust_bundle("shop").await, good);
    let back = async |what: &str, uid: Option<&str>| {
        let begun = Instant::now();
        // Far below the minute after which the leader compares them all.
        let again = eventually(what, Duration::from_secs(2), async || {
            let map = cluster.api.get(PATH).await.ok()?;
            let another = uid.is_none_or(|uid| map["metadata"]["uid"] != uid);
            (another && map["data"]["bundle.pem"] == good.as_str()).then_some(map)
        })
        .await;
        println!("figure: {what} after {:.1} s", begun.elapsed().as_secs_f64());
        again
    };
    let before = cluster.api.get(PATH).await.unwrap();
    cluster.api.delete(PATH).await.unwrap();
    back("what was deleted comes back", before["metadata"]["uid"].as_str()).await;
    // Somebody with the control plane's own credentials.
    let token = cluster.service_account_token("byrnie-system", "byrnie-control-plane").await;
    let impostor = cluster.server.api_as(&token);
    impostor.merge(PATH, &json!({ "data": { "bundle.pem": "evil" } })).await.unwrap();
    back("what was altered is put right", None).await;
    assert!(control_plane.child.ended().is_none());
}

pub(crate) async fn the_trust_bundle_comes_with_enrolment_and_goes_after_the_last_meshed_pod(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.namespace("shop", &json!({})).await;
    cluster.namespace("shop", &json!({ "byrnie.dev/mesh": "enabled" })).await;
    cluster.trust_bundle("shop").await;
    let web = cluster.pod("shop", "web").await;
    let svid = web.svid(control_plane.address).await;
    let label = json!({ "metadata": { "labels": { "byrnie.dev/mesh": Value::Null } } });
    cluster.api.merge("/api/v1/namespaces/shop", &label).await.unwrap();
    // Whoever has no certificate yet gets none where no webhook looks at pods. A proxy that has one keeps the roots and
    // renews, for as long as its pod lives.
    let (token, at) = (web.token().await, control_plane.address);
    eventually("no first certificate", Duration::from_secs(2), async || {
        web.certify(at, Some(&token), None).await.err().filter(|refused| refused.code() == Code::FailedPrecondition)
    })
    .await;
    let renewed = web.certify(at, Some(&token), Some(&svid)).await.expect("a renewal");
    assert_eq!(renewed.id().as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    web.delete().await;
    eventually("the trust bundle is taken away", Duration::from_secs(4), async || {
        cluster.api.get(PATH).await.is_err_and(|error| error.code == 404).then_some(())
    })
    .await;
}

pub(crate) async fn an_ingress_certificate_that_is_lost_or_damaged_is_back_within_seconds(world: World) {
    const SECRET: &str = "/api/v1/namespaces/edge/secrets/byrnie-ingress-client";
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.namespace("edge", &json!({})).await;
    let config = json!({ "apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": { "name": "default" },
        "spec": { "ingressCertificates": [{ "namespace": "edge", "serviceAccount": "nginx" }] } });
    cluster.apply(&config.to_string());
    // Nothing else of the mesh changes, which would be a reason to look.
    let another = async |what: &str, than: &Value| {
        eventually(what, Duration::from_secs(6), async || {
            let data = cluster.api.get(SECRET).await.ok()?["data"].clone();
            (data["tls.key"] != than["tls.key"] && data["tls.key"] != "eA==").then_some(data)
        })
        .await
    };
    let first = another("the certificate", &Value::Null).await;
    cluster.api.delete(SECRET).await.unwrap();
    let second = another("what was deleted comes back", &first).await;
    cluster.api.merge(SECRET, &json!({ "data": { "tls.key": "eA==" } })).await.unwrap();
    another("what was damaged is made anew", &second).await;
}
