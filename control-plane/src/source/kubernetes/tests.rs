use byrnie_api::Kind;
use serde_json::json;

use super::{
    store::{About, Slot, Store, Trouble},
    strip::{self, Kept},
    *,
};
use crate::{
    kubernetes::testing::{Answer, fake},
    source::{MeshedBy, Object, ObjectKey},
};

fn pod(value: serde_json::Value) -> Kept {
    strip::pod(serde_json::from_value(value).unwrap())
}

fn policy(name: &str, spec: serde_json::Value) -> Kept {
    let value = json!({
        "apiVersion": "byrnie.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop", "uid": "u1", "generation": 7, "managedFields": [{"manager": "me"}]},
        "spec": spec,
        "status": {"conditions": []},
    });
    strip::ours(Kind::AuthorizationPolicy, serde_json::from_value(value).unwrap())
}

fn named(name: &str) -> Kept {
    pod(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"containers": []}}))
}

fn trouble(message: &str, about: About) -> Trouble {
    Trouble { message: message.to_owned(), about }
}

fn filled(names: &[&str]) -> (Store, Slot) {
    let store = Store::new();
    let slot = store.enter("pods");
    store.begin(slot);
    for name in names {
        store.listed(slot, named(name));
    }
    store.complete(slot);
    (store, slot)
}

fn names(store: &Store) -> Vec<String> {
    store.objects().items.keys().map(|key| key.name.clone()).collect()
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: "Pod".to_owned(), namespace: "shop".to_owned(), name: name.to_owned() }
}

#[test]
fn a_listing_takes_the_place_of_what_was_known_only_when_it_is_complete() {
    let (store, slot) = filled(&["a", "b"]);
    store.begin(slot);
    store.listed(slot, named("b"));
    assert_eq!(names(&store), ["a", "b"], "half a listing says nothing");
    store.begin(slot);
    store.listed(slot, named("c"));
    store.complete(slot);
    assert_eq!(names(&store), ["c"], "what the listing that broke off had is void");
}

#[test]
fn events_change_single_objects_and_only_what_is_kept_counts_as_a_change() {
    let (store, slot) = filled(&["a"]);
    let changes = store.changes();
    let heartbeat = json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "9", "annotations": {"other.io/x": "y"}}, "spec": {"containers": []}});
    store.apply(slot, pod(heartbeat));
    assert!(!changes.has_changed().unwrap());
    store.apply(slot, named("b"));
    store.remove(slot, &key("a"));
    assert!(changes.has_changed().unwrap());
    assert_eq!(names(&store), ["b"]);
}

#[test]
fn what_was_known_stays_while_the_api_server_is_away_and_the_problem_says_so() {
    let (store, slot) = filled(&["a"]);
    let services = store.enter("services");
    for slot in [slot, services] {
        store.trouble(slot, trouble("connection refused", About::ApiServer));
    }
    let objects = store.objects();
    assert_eq!((objects.items.len(), objects.problems.len()), (1, 1), "{:?}", objects.problems);
    assert!(objects.problems[0].to_string().contains("what was known stays in force"), "{}", objects.problems[0]);
    store.mended(slot);
    store.mended(services);
    assert!(store.objects().problems.is_empty());
}

#[test]
fn nothing_is_complete_before_everything_was_listed_and_a_missing_definition_is_an_empty_listing() {
    let store = Store::new();
    let (pods, policies) = (store.enter("pods"), store.enter("mtlspolicies.byrnie.dev"));
    store.trouble(pods, trouble("list of pods is forbidden", About::Resource));
    assert_eq!(store.progress().missing, ["list of pods is forbidden", "mtlspolicies.byrnie.dev"]);
    store.trouble(policies, trouble("not installed", About::Definition));
    assert_eq!(store.progress().missing.len(), 1);
    store.begin(pods);
    assert_eq!(store.progress().missing.len(), 1);
    store.mended(pods);
    store.complete(pods);
    assert!(store.progress().missing.is_empty());
    let problem = &store.objects().problems[0];
    assert_eq!(problem.object.as_ref().unwrap().kind, "CustomResourceDefinition");
    assert!(!problem.is_about("MtlsPolicy") && !problem.is_about("MeshConfig"));
}

#[test]
fn a_malformed_policy_is_a_problem_of_its_own_and_its_last_good_version_holds() {
    let store = Store::new();
    let slot = store.enter("authorizationpolicies.byrnie.dev");
    let good = json!({"action": "Deny", "rules": [{"from": [{"namespace": "other"}]}]});
    store.begin(slot);
    store.listed(slot, policy("good", good.clone()));
    store.listed(slot, policy("bad", json!({"action": "Perhaps"})));
    store.complete(slot);
    let objects = store.objects();
    assert_eq!(objects.meshed_by, MeshedBy::Sidecar);
    assert_eq!(objects.problems.len(), 1, "{:?}", objects.problems);
    let object = |objects: &Objects, name: &str| {
        let key = ObjectKey { kind: "AuthorizationPolicy".into(), namespace: "shop".into(), name: name.into() };
        (objects.items[&key].object.clone(), objects.generations[&key])
    };
    let (stand_in, generation) = object(&objects, "bad");
    assert!(matches!(&*stand_in, Object::Mesh(object) if matches!(**object, byrnie_api::Object::Refused(_))));
    assert_eq!(generation, 7);
    store.apply(slot, policy("good", json!({"action": "Deny", "rules": "all"})));
    let objects = store.objects();
    assert!(objects.problems.iter().any(|problem| problem.message.ends_with("its last good version stays in force")));
    let (held, _) = object(&objects, "good");
    assert!(matches!(&*held, Object::Mesh(object) if matches!(**object, byrnie_api::Object::AuthorizationPolicy(_))));
    store.apply(slot, policy("good", good));
    assert_eq!(store.objects().problems.len(), 1);
}

#[test]
fn a_pod_is_kept_without_what_nobody_needs() {
    let kept = pod(json!({
        "metadata": {"name": "a", "namespace": "shop", "uid": "u", "managedFields": [{"manager": "kubelet"}], "annotations": {"byrnie.dev/inject": "false", "kubectl.kubernetes.io/last-applied-configuration": "{}"}, "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "1"}]},
        "spec": {
            "nodeName": "n1", "serviceAccountName": "web",
            "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [
                {"name": "byrnie-capture", "command": ["/byrnie-capture", "apply"], "args": ["--exclude-inbound-ports", "9"], "env": [{"name": "X", "value": "secret"}]},
                {"name": "byrnie-proxy", "restartPolicy": "Always", "args": ["--state"]},
            ],
            "containers": [{"name": "c", "image": "i", "command": ["run", "--password=x"], "env": [{"name": "PASSWORD", "value": "secret"}], "ports": [{"name": "http", "containerPort": 80}]}],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "hostIP": "192.0.2.1", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}, {"type": "Initialized", "status": "True"}], "containerStatuses": []},
    }));
    let Ok(Object::Pod(pod)) = kept.object else { panic!("no pod") };
    let text = serde_json::to_string(&pod).unwrap();
    for gone in [
        "managedFields",
        "last-applied",
        "volumes",
        "secret",
        "password",
        "image\":\"i\"",
        "--state",
        "lastTransition",
        "Initialized",
        "\"X\"",
    ] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    for kept in ["byrnie.dev/inject", "--exclude-inbound-ports", "192.0.2.1", "n1", "http", "Always", "Ready"] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
}

#[test]
fn a_node_is_kept_without_its_images_and_its_heartbeats() {
    let node = |time: &str, address: &str| {
        let object = json!({
            "metadata": {"name": "n1", "uid": "u", "labels": {"a": "b"}, "annotations": {"byrnie.dev/x": "y"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "providerID": "cloud", "taints": []},
            "status": {"addresses": [{"type": "InternalIP", "address": address}], "images": [{"names": ["secret"]}],
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": time}], "capacity": {"cpu": "4"}},
        });
        strip::node(serde_json::from_value(object).unwrap())
    };
    let first = node("2026-01-01T00:00:00Z", "192.0.2.1");
    let Ok(Object::Node(kept)) = &first.object else { panic!("no node") };
    let found = serde_json::to_value(kept).unwrap();
    assert_eq!(
        found,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
    );
    let store = Store::new();
    let slot = store.enter("nodes");
    store.apply(slot, first);
    let changes = store.changes();
    store.apply(slot, node("2026-01-01T00:05:00Z", "192.0.2.1"));
    assert!(!changes.has_changed().unwrap());
    store.apply(slot, node("2026-01-01T00:05:00Z", "192.0.2.2"));
    assert!(changes.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_an_older_api_server_does_not_have_is_no_problem_and_is_seldom_asked_for() {
    let (client, seen) = fake(|_| Answer::status(404, "NotFound"));
    let store = Arc::new(Store::new());
    let api = Api::<ServiceCIDR>::all(client);
    let resource = Resource::recent(&store, "servicecidrs.networking.k8s.io");
    let following = tokio::spawn(follow(api, resource, strip::service_cidr));
    let mut changes = store.changes();
    while !store.progress().missing.is_empty() {
        changes.changed().await.unwrap();
    }
    tokio::time::sleep(limits::ABSENT_RESOURCE * 5 / 2).await;
    assert!(store.objects().problems.is_empty(), "{:?}", store.objects().problems);
    assert_eq!(seen.lock().unwrap().len(), 3);
    following.abort();
}
