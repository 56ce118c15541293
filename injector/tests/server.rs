//! The webhooks as the API server meets them: over TLS on loopback, with a certificate that changes under them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

mod support;

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use byrnie_injector::limits;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use support::{Injector, pod, review};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn message(answer: &Value) -> &str {
    answer["response"]["status"]["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_pod_comes_back_with_a_patch_that_adds_the_proxy() {
    let injector = Injector::start().await;
    let sent = pod(json!({"name": "web", "newField": 1}));
    let answer = injector.post("/mutate", &review("Pod", "shop", &sent)).await.json();
    let response = &answer["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("1"), &json!(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut patched = sent.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(patched["spec"]["initContainers"][1]["name"], "byrnie-proxy");
    let mut containers = patched["spec"]["containers"].clone();
    assert!(containers[0].as_object_mut().unwrap().remove("lifecycle").is_some(), "it waits before it ends");
    assert_eq!(containers, sent["spec"]["containers"]);
    let again = injector.post("/mutate", &review("Pod", "shop", &patched)).await.json();
    assert_eq!(again["response"], json!({"uid": "1", "allowed": true}));
    injector.end().await;
}

#[tokio::test]
async fn a_refusal_names_the_object_the_field_and_the_next_step() {
    let injector = Injector::start().await;
    let sent = pod(json!({"name": "web", "securityContext": {"runAsUser": 1500}}));
    let answer = injector.post("/mutate", &review("Pod", "shop", &sent)).await.json();
    assert_eq!(answer["response"]["allowed"], false);
    let text = message(&answer);
    for part in ["Pod shop/web-0", "spec.containers[0].securityContext.runAsUser", "expected", "found `1500`"] {
        assert!(text.contains(part), "{text}");
    }
    injector.end().await;
}

#[tokio::test]
async fn a_pod_that_stays_outside_is_let_in_with_a_warning() {
    let injector = Injector::start().await;
    let mut sent = pod(json!({"name": "web"}));
    sent["spec"]["hostNetwork"] = json!(true);
    let answer = injector.post("/mutate", &review("Pod", "shop", &sent)).await.json();
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("hostNetwork"));
    let elsewhere = injector.post("/mutate", &review("Pod", "other", &pod(json!({"name": "web"})))).await.json();
    assert_eq!(elsewhere["response"], json!({"uid": "1", "allowed": true}));
    injector.end().await;
}

#[tokio::test]
async fn nothing_is_admitted_until_mesh_and_namespaces_were_seen() {
    let injector = Injector::start_knowing_nothing().await;
    assert_eq!(injector.health("/healthz").await.status, 503);
    let answer = injector.post("/mutate", &review("Pod", "shop", &pod(json!({"name": "web"})))).await.json();
    assert_eq!(answer["response"]["allowed"], false);
    assert!(message(&answer).contains("has not seen the MeshConfig yet"), "{}", message(&answer));
    injector.learn();
    assert_eq!(injector.health("/healthz").await.status, 200);
    let answer = injector.post("/mutate", &review("Pod", "shop", &pod(json!({"name": "web"})))).await.json();
    assert_eq!(answer["response"]["allowed"], true);
    injector.end().await;
}

#[tokio::test]
async fn a_mesh_config_with_a_mistake_leaves_in_force_what_held_before() {
    let injector = Injector::start_knowing_nothing().await;
    let config = |domain: &str| {
        json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"},
            "spec": {"trustDomain": domain}, "status": {"conditions": []}})
    };
    injector.mesh.set_mesh_config(Some(config("example.org")));
    injector.mesh.set_mesh_config(Some(config("NO DOMAIN")));
    assert_eq!(injector.mesh.settings().unwrap().trust_domain.to_string(), "example.org");
    injector.end().await;
    let unknowing = Injector::start_knowing_nothing().await;
    unknowing.mesh.set_mesh_config(Some(config("NO DOMAIN")));
    let reason = unknowing.mesh.settings().unwrap_err();
    assert!(reason.contains("spec.trustDomain") && reason.contains("mend it"), "{reason}");
    // What mends it is admitted.
    let answer = unknowing.post("/validate", &review("MeshConfig", "", &config("example.org"))).await.json();
    assert_eq!(answer["response"]["allowed"], true);
    unknowing.end().await;
}

#[tokio::test]
async fn the_trust_domain_of_a_mesh_does_not_change_under_its_pods() {
    let injector = Injector::start().await;
    let config = |spec: Value| json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"}, "spec": spec});
    let before = injector.mesh.settings().unwrap().trust_domain;
    let same = config(json!({"trustDomain": before.as_str(), "svidTtl": "2h"}));
    let answer = injector.post("/validate", &review("MeshConfig", "", &same)).await.json();
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"].get("warnings").is_none(), "{answer}");
    let open = config(json!({"egress": {"default": "Allow"}}));
    let answer = injector.post("/validate", &review("MeshConfig", "", &open)).await.json();
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("spec.networks.podCIDRs") && warning.ends_with("says whether"), "{warning}");
    let other = config(json!({"trustDomain": "other.example"}));
    let answer = injector.post("/validate", &review("MeshConfig", "", &other)).await.json();
    assert_eq!(answer["response"]["allowed"], false);
    for part in ["MeshConfig default", "spec.trustDomain", "expected `cluster.local`", "found `other.example`"] {
        assert!(message(&answer).contains(part), "{}", message(&answer));
    }
    // It comes by another way: a webhook that was not there, or a MeshConfig that was deleted.
    injector.mesh.set_mesh_config(Some(other.clone()));
    assert_eq!(injector.mesh.settings().unwrap().trust_domain, before);
    injector.end().await;
    let named = Injector::start_knowing_nothing().await;
    named.mesh.set_mesh_config(Some(other));
    let nameless = config(json!({"adoptedMeshes": ["osm"]}));
    let answer = named.post("/validate", &review("MeshConfig", "", &nameless)).await.json();
    assert!(message(&answer).contains("found none, which is `cluster.local`"), "{}", message(&answer));
    named.mesh.set_mesh_config(None);
    assert_eq!(named.mesh.settings().unwrap().trust_domain.as_str(), "other.example");
    named.end().await;
}

#[tokio::test]
async fn a_mesh_config_is_not_deleted_where_its_defaults_would_take_namespaces_or_identities_away() {
    let injector = Injector::start().await;
    let config = |spec: Value| json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"}, "spec": spec});
    let deletion = |spec: Value| {
        let mut review = review("MeshConfig", "", &Value::Null);
        review["request"]["operation"] = json!("DELETE");
        review["request"]["name"] = json!("default");
        review["request"]["oldObject"] = config(spec);
        review
    };
    let plain = json!({"svidTtl": "2h"});
    injector.mesh.set_mesh_config(Some(config(plain.clone())));
    let answer = injector.post("/validate", &deletion(plain)).await.json();
    assert_eq!(answer["response"]["allowed"], true, "{answer}");
    let adopting = json!({"adoptedMeshes": ["osm"]});
    injector.mesh.set_mesh_config(Some(config(adopting.clone())));
    let answer = injector.post("/validate", &deletion(adopting)).await.json();
    assert!(message(&answer).contains("spec.adoptedMeshes") && message(&answer).contains("`osm`"), "{answer}");
    injector.end().await;
    let named = Injector::start_knowing_nothing().await;
    let other = json!({"trustDomain": "other.example"});
    named.mesh.set_mesh_config(Some(config(other.clone())));
    let answer = named.post("/validate", &deletion(other)).await.json();
    assert!(message(&answer).contains("spec.trustDomain"), "{answer}");
    named.end().await;
}

#[tokio::test]
async fn objects_of_ours_are_read_as_deeply_as_by_the_control_plane() {
    let injector = Injector::start().await;
    let policy = |mode: &str| {
        json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MtlsPolicy", "metadata": {"name": "x", "namespace": "shop"},
            "spec": {"mode": mode}})
    };
    let answer = injector.post("/validate", &review("MtlsPolicy", "shop", &policy("Permissive"))).await.json();
    assert_eq!(answer["response"], json!({"uid": "1", "allowed": true}));
    let answer = injector.post("/validate", &review("MtlsPolicy", "shop", &policy("Lax"))).await.json();
    assert!(message(&answer).contains("MtlsPolicy shop/x is refused:\n  spec.mode: expected"), "{}", message(&answer));
    let floor = json!({"apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"},
        "spec": {"mtls": {"floor": "Strict"}}});
    injector.mesh.set_mesh_config(Some(floor));
    let answer = injector.post("/validate", &review("MtlsPolicy", "shop", &policy("Permissive"))).await.json();
    assert!(message(&answer).contains("spec.mtls.floor"), "{}", message(&answer));
    injector.end().await;
}

#[tokio::test]
async fn namespaces_that_bring_the_mesh_up_can_not_be_enrolled() {
    let injector = Injector::start().await;
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"byrnie.dev/mesh": "enabled"}}});
    for name in ["kube-system", "byrnie-system"] {
        let mut asked = review("Namespace", "", &namespace(name));
        let answer = injector.post("/validate", &asked).await.json();
        assert_eq!(answer["response"]["allowed"], false, "{name}");
        assert!(message(&answer).contains("metadata.labels[byrnie.dev/mesh]"), "{}", message(&answer));
        // It was there before the webhook was; other changes must stay possible.
        asked["request"]["operation"] = json!("UPDATE");
        asked["request"]["oldObject"] = namespace(name);
        let answer = injector.post("/validate", &asked).await.json();
        assert_eq!(answer["response"]["allowed"], true, "{name}");
        assert_eq!(answer["response"]["warnings"].as_array().unwrap().len(), 1);
    }
    let answer = injector.post("/validate", &review("Namespace", "", &namespace("shop"))).await.json();
    assert_eq!(answer["response"], json!({"uid": "1", "allowed": true}));
    injector.end().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let injector = Injector::start().await;
    let first = injector.served_certificate().await.unwrap();
    injector.write_certificate("second");
    injector.wait_for_another_certificate(&first).await;
    let second = injector.served_certificate().await.unwrap();
    injector.write_file("tls.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    tokio::time::sleep(limits::CERTIFICATE_POLL * 2).await;
    assert_eq!(injector.served_certificate().await.unwrap(), second);
    injector.end().await;
}

#[tokio::test]
async fn a_certificate_that_is_not_there_yet_is_waited_for() {
    let injector = Injector::start_without_certificate().await;
    let health = injector.health("/healthz/ready").await;
    assert_eq!(health.status, 503);
    assert!(health.text().contains("no serving certificate yet"), "{}", health.text());
    assert_eq!(injector.health("/healthz/live").await.status, 200);
    assert!(injector.served_certificate().await.is_none());
    injector.write_certificate("late");
    injector.wait_for_another_certificate(&[]).await;
    assert_eq!(injector.health("/healthz/ready").await.status, 200);
    injector.end().await;
}

#[tokio::test]
async fn bodies_that_are_too_large_or_no_reviews_are_refused_and_the_next_one_is_answered() {
    let injector = Injector::start().await;
    assert_eq!(injector.raw("/mutate", vec![b' '; limits::REVIEW_BYTES + 1], "application/json").await.status, 413);
    assert_eq!(injector.raw("/mutate", b"{}".to_vec(), "text/plain").await.status, 415);
    for garbage in [&b""[..], b"{", b"null", &[0xff; 64], "[".repeat(100_000).as_bytes()] {
        let answer = injector.raw("/mutate", garbage.to_vec(), "application/json").await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("expected"), "{}", answer.text());
    }
    assert_eq!(injector.raw("/elsewhere", b"{}".to_vec(), "application/json").await.status, 404);
    let nearly = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x".repeat(3_000_000)}});
    assert_eq!(injector.post("/mutate", &review("Pod", "shop", &nearly)).await.json()["response"]["allowed"], false);
    injector.end().await;
}

#[test]
fn no_body_whatsoever_makes_it_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let injector = runtime.block_on(Injector::start());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("byrnie-proxy"))
    ];
    let key = prop_oneof![
        Just("name".to_owned()),
        Just("metadata".to_owned()),
        Just("spec".to_owned()),
        Just("containers".to_owned()),
        Just("initContainers".to_owned()),
        Just("labels".to_owned()),
        ".{0,6}".prop_map(String::from)
    ];
    let any_value = leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| map.into_iter().collect()),
        ]
    });
    let kind = prop_oneof![Just("Pod"), Just("Namespace"), Just("MeshConfig"), Just("MtlsPolicy")];
    let mut runner = TestRunner::new(ProptestConfig::with_cases(200));
    let ran = runner.run(&(any_value, kind, any::<bool>()), |(object, kind, mutate)| {
        let path = if mutate { "/mutate" } else { "/validate" };
        let answer = runtime.block_on(injector.post(path, &review(kind, "shop", &object)));
        prop_assert_eq!(answer.status, 200);
        Ok(())
    });
    ran.unwrap();
    runtime.block_on(injector.end());
}

#[tokio::test]
async fn what_was_begun_is_finished_when_it_ends() {
    let injector = Injector::start().await;
    let mut stream = injector.handshake(b"http/1.1").await.unwrap();
    let body = serde_json::to_vec(&review("Pod", "shop", &pod(json!({"name": "web"})))).unwrap();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: \
         100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 12];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100", "the server has begun to read the body");
    injector.ask_to_end();
    stream.write_all(&body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("HTTP/1.1 200") && answer.contains("JSONPatch"), "{answer}");
    tokio::time::timeout(Duration::from_secs(30), injector.ended()).await.unwrap();
}

/// A figure, and no verdict: `cargo test --release -p byrnie-injector --test server -- --nocapture figure`.
#[tokio::test(flavor = "multi_thread")]
async fn figure_pods_per_second_and_the_slowest_of_a_hundred() {
    const CONNECTIONS: usize = 4;
    const PODS: usize = 500;
    let injector = Injector::start().await;
    let sent = review("Pod", "shop", &pod(json!({"name": "web", "livenessProbe": {"httpGet": {"port": 80}}})));
    let begun = std::time::Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (connection, sent) = (injector.connect().await.unwrap(), sent.clone());
        workers.spawn(async move {
            let mut took = Vec::new();
            for _ in 0..PODS {
                let begun = std::time::Instant::now();
                assert_eq!(connection.post("/mutate", &sent).await.status, 200);
                took.push(begun.elapsed());
            }
            took
        });
    }
    let mut took = workers.join_all().await.concat();
    let whole = begun.elapsed();
    took.sort();
    let p = |part: usize| took[took.len() * part / 100];
    let rate = took.len() as f64 / whole.as_secs_f64();
    println!("webhook over TLS: {rate:.0} pods/s on {CONNECTIONS} connections, p50 {:?}, p99 {:?}", p(50), p(99));
    injector.end().await;
}
