//! Byrnie's own objects: what is refused, what is taken, and what happens where their definitions are missing.

use std::time::Duration;

use byrnie_kubelab::{Cluster, World};
use byrnie_scenarios::eventually;
use serde_json::{Value, json};

const GROUP: &str = "/apis/byrnie.dev/v1alpha1";

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "byrnie.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

pub(crate) async fn an_invalid_object_is_refused_with_the_name_of_its_field(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let authorization = |spec: Value| ("AuthorizationPolicy", "authorizationpolicies", spec);
    let mtls = |spec: Value| ("MtlsPolicy", "mtlspolicies", spec);
    let egress = |spec: Value| ("EgressPolicy", "egresspolicies", spec);
    let ingress = |spec: Value| ("IngressPolicy", "ingresspolicies", spec);
    let wrong = [
        ("action", authorization(json!({ "action": "Maybe", "rules": [{}] }))),
        ("acton", authorization(json!({ "acton": "Deny" }))),
        ("mode", mtls(json!({ "mode": "Sometimes" }))),
        ("until", mtls(json!({ "mode": "Permissive", "until": "tomorrow" }))),
        ("cidrs", egress(json!({ "to": [{ "cidrs": ["10.0.0.0/99"] }] }))),
        (
            "hosts",
            egress(json!({ "to": [{ "hosts": ["not a host"], "ports": [{ "number": 443, "protocol": "https" }] }] })),
        ),
        ("port", ingress(json!({ "ports": [{ "number": 70_000 }] }))),
        ("selector", authorization(json!({ "selector": { "matchLabels": { "app": 7 } } }))),
    ];
    let mut taken = Vec::new();
    for (field, (kind, plural, spec)) in wrong {
        let object = object(kind, "bad", &spec);
        let collection = format!("{GROUP}/namespaces/shop/{plural}?fieldValidation=Strict");
        match cluster.api.create(&collection, &object).await {
            Ok(_) => taken.push(format!("{kind} {spec} was taken")),
            Err(refused) if !refused.message.contains(field) => {
                taken.push(format!("{kind} {spec}: expected the field {field}: {refused}"));
            }
            Err(_) => {}
        }
    }
    let config = object("MeshConfig", "other", &json!({}));
    if cluster.api.create(&format!("{GROUP}/meshconfigs"), &config).await.is_ok() {
        taken.push("a second MeshConfig, of another name, was taken".to_owned());
    }
    assert!(taken.is_empty(), "{}", taken.join("\n"));
}

pub(crate) async fn a_valid_object_says_in_its_status_that_it_holds(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let policy = object("MtlsPolicy", "default", &json!({ "mode": "Permissive" }));
    let collection = format!("{GROUP}/namespaces/shop/mtlspolicies");
    cluster.api.create(&collection, &policy).await.unwrap();
    let path = format!("{collection}/default");
    let holds = async |generation: i64| {
        eventually("the condition Accepted", Duration::from_secs(3), async || {
            let stored = cluster.api.get(&path).await.ok()?;
            let conditions = stored["status"]["conditions"].as_array()?.clone();
            conditions.into_iter().find(|condition| {
                condition["type"] == "Accepted" && condition["observedGeneration"] == json!(generation)
            })
        })
        .await
    };
    assert_eq!(holds(1).await["status"], "True");
    cluster.api.merge(&path, &json!({ "spec": { "mode": "Strict" } })).await.unwrap();
    assert_eq!(holds(2).await["status"], "True");
}

pub(crate) async fn an_object_that_stops_to_hold_says_so_in_its_status_and_an_event(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let collection = format!("{GROUP}/namespaces/shop/mtlspolicies");
    let policy = object("MtlsPolicy", "open", &json!({ "mode": "Permissive" }));
    cluster.api.create(&collection, &policy).await.unwrap();
    let accepted = async |wanted: &str| {
        eventually(&format!("the condition Accepted is {wanted}"), Duration::from_secs(3), async || {
            let stored = cluster.api.get(&format!("{collection}/open")).await.ok()?;
            let conditions = stored["status"]["conditions"].as_array()?.clone();
            conditions.into_iter().find(|condition| condition["type"] == "Accepted" && condition["status"] == wanted)
        })
        .await
    };
    accepted("True").await;
    // No admission of the policy could know of what comes after it.
    let config = object("MeshConfig", "default", &json!({ "mtls": { "floor": "Strict" } }));
    cluster.api.apply(&format!("{GROUP}/meshconfigs/default"), &config).await.unwrap();
    let condition = accepted("False").await;
    assert!(condition["message"].as_str().unwrap().contains("spec.mode"), "{condition}");
    let event = eventually("an event", Duration::from_secs(3), async || {
        let events = cluster.api.get("/apis/events.k8s.io/v1/namespaces/shop/events").await.ok()?;
        let events = events["items"].as_array()?.clone();
        events.into_iter().find(|event| event["regarding"]["name"] == "open")
    })
    .await;
    assert_eq!((&event["reason"], &event["type"]), (&json!("Refused"), &json!("Warning")));
    assert!(event["note"].as_str().unwrap().contains("spec.mode"), "{event}");
}

pub(crate) async fn a_definition_that_is_missing_is_named_and_taken_up_when_it_comes(world: World) {
    let cluster = Cluster::installed(&world).await;
    let definition = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/mtlspolicies.byrnie.dev";
    let mut stored = cluster.api.get(definition).await.unwrap();
    cluster.api.delete(definition).await.unwrap();
    eventually("the definition is gone", Duration::from_secs(4), async || {
        cluster.api.get(definition).await.is_err_and(|error| error.code == 404).then_some(())
    })
    .await;
    let control_plane = cluster.control_plane(0).await;
    control_plane.is_ready().await;
    cluster.enrolled("shop").await;
    assert!(control_plane.child.log().to_lowercase().contains("mtlspolic"), "{}", control_plane.child.log());
    for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"] {
        stored["metadata"].as_object_mut().unwrap().remove(field);
    }
    stored.as_object_mut().unwrap().remove("status");
    cluster.api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &stored).await.unwrap();
    let collection = format!("{GROUP}/namespaces/shop/mtlspolicies");
    let policy = object("MtlsPolicy", "default", &json!({ "mode": "Strict" }));
    let injector = cluster.injector().await;
    injector.is_ready().await;
    eventually("an object of that kind", Duration::from_secs(4), async || {
        cluster.api.create(&collection, &policy).await.ok()
    })
    .await;
    eventually("it is taken up", Duration::from_secs(20), async || {
        let stored = cluster.api.get(&format!("{collection}/default")).await.ok()?;
        stored["status"]["conditions"].as_array().filter(|conditions| !conditions.is_empty()).map(|_| ())
    })
    .await;
}
