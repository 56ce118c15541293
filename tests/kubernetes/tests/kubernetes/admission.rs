//! What becomes of pods on their way into the API server.

use std::time::Duration;

use byrnie_kubelab::{Cluster, Pod, World};
use byrnie_scenarios::eventually;
use serde_json::{Value, json};

use crate::pods::{annotated, init_containers};

pub(crate) async fn a_pod_of_an_enrolled_namespace_comes_back_with_its_proxy_and_of_another_as_it_was(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    cluster.namespace("legacy", &json!({})).await;
    let with_init = json!({ "spec": { "initContainers": [{ "name": "migrate", "image": "app" }] } });
    let web = Pod::create_with(&cluster.api, "shop", "web", "web", &with_init).await.unwrap();
    assert_eq!(init_containers(&web.object), ["byrnie-capture", "byrnie-proxy", "migrate"]);
    let spec = &web.object["spec"];
    let (capture, proxy) = (&spec["initContainers"][0], &spec["initContainers"][1]);
    assert_eq!(capture["securityContext"]["capabilities"], json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] }));
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["securityContext"]["runAsUser"], 1500);
    assert_eq!(proxy["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(proxy["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(proxy["securityContext"]["capabilities"], json!({ "drop": ["ALL"] }));
    for container in spec["containers"].as_array().unwrap() {
        let mounts = container["volumeMounts"].to_string();
        assert!(!mounts.contains("byrnie"), "an application's container sees the proxy's volumes: {mounts}");
    }
    assert!(web.object["metadata"]["annotations"]["byrnie.dev/injected"].is_string());
    let legacy = Pod::create(&cluster.api, "legacy", "web", "web").await.unwrap();
    assert!(init_containers(&legacy.object).is_empty());
    let opted_out = annotated("byrnie.dev/inject", "false");
    let plain = Pod::create_with(&cluster.api, "shop", "plain", "web", &opted_out).await.unwrap();
    assert!(init_containers(&plain.object).is_empty());
    // What comes back is what would come back again.
    let mut copy = web.object.clone();
    copy["metadata"] = json!({ "name": "copy", "annotations": web.object["metadata"]["annotations"] });
    let copy = cluster.api.create("/api/v1/namespaces/shop/pods", &copy).await.unwrap();
    assert_eq!(copy["spec"]["initContainers"], web.object["spec"]["initContainers"]);
}

pub(crate) async fn a_pod_without_an_api_token_of_its_own_gets_the_proxy_with_its_token(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let tokenless = json!({ "spec": { "automountServiceAccountToken": false } });
    let web = Pod::create_with(&cluster.api, "shop", "web", "web", &tokenless).await.unwrap();
    assert_eq!(web.object["spec"]["automountServiceAccountToken"], false);
    assert_eq!(init_containers(&web.object), ["byrnie-capture", "byrnie-proxy"]);
    let volumes = web.object["spec"]["volumes"].as_array().unwrap();
    let token = volumes.iter().flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    assert!(
        token.into_iter().any(|source| source["serviceAccountToken"]["audience"] == "byrnie.dev/ca"),
        "{volumes:?}"
    );
    web.svid(control_plane.address).await;
}

pub(crate) async fn a_namespace_of_an_adopted_open_service_mesh_is_in_the_mesh(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    let config = json!({ "apiVersion": "byrnie.dev/v1alpha1", "kind": "MeshConfig", "metadata": { "name": "default" },
        "spec": { "adoptedMeshes": ["osm"] } });
    cluster.api.apply("/apis/byrnie.dev/v1alpha1/meshconfigs/default", &config).await.unwrap();
    for (name, mesh) in [("shop", "osm"), ("legacy", "another-mesh")] {
        cluster.namespace(name, &json!({ "openservicemesh.io/monitored-by": mesh })).await;
        let enabled = json!({ "metadata": { "annotations": { "openservicemesh.io/sidecar-injection": "enabled" } } });
        cluster.api.merge(&format!("/api/v1/namespaces/{name}"), &enabled).await.unwrap();
    }
    cluster.trust_bundle("shop").await;
    let excluded = annotated("openservicemesh.io/inbound-port-exclusion-list", "9999");
    let mut pod = Pod::manifest("web", "web");
    pod["metadata"]["annotations"] = excluded["metadata"]["annotations"].clone();
    // The injector reads of the adopted mesh and of the namespace by itself.
    eventually("the injector knows", Duration::from_secs(3), async || {
        let shown = cluster.api.create("/api/v1/namespaces/shop/pods?dryRun=All", &pod).await.unwrap();
        (!init_containers(&shown).is_empty()).then_some(())
    })
    .await;
    let web = Pod::create_with(&cluster.api, "shop", "web", "web", &excluded).await.unwrap();
    assert_eq!(init_containers(&web.object), ["byrnie-capture", "byrnie-proxy"]);
    let capture = &web.object["spec"]["initContainers"][0];
    assert!(format!("{}{}", capture["command"], capture["args"]).contains("9999"), "{capture}");
    web.svid(control_plane.address).await;
    let legacy = Pod::create(&cluster.api, "legacy", "web", "web").await.unwrap();
    assert!(init_containers(&legacy.object).is_empty());
}

pub(crate) async fn a_dry_run_shows_the_proxy_and_leaves_nothing(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let path = "/api/v1/namespaces/shop/pods?dryRun=All";
    let shown = cluster.api.create(path, &Pod::manifest("web", "web")).await.unwrap();
    assert_eq!(init_containers(&shown), ["byrnie-capture", "byrnie-proxy"]);
    let pods = cluster.api.get("/api/v1/namespaces/shop/pods").await.unwrap();
    assert_eq!(pods["items"], json!([]));
}

pub(crate) async fn a_pod_on_its_nodes_network_passes_by_with_a_warning(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let mut pod = Pod::manifest("node-agent", "default");
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["containers"][0]["ports"] = json!([]);
    let stored = cluster.api.create("/api/v1/namespaces/shop/pods", &pod).await.unwrap();
    assert!(init_containers(&stored).is_empty());
    pod["metadata"]["name"] = json!("another");
    let warned = cluster.server.kubectl_with_warnings(&["create", "-n", "shop", "-f", "-"], &pod.to_string());
    assert!(warned.contains("Warning") && warned.contains("hostNetwork"), "{warned}");
}

pub(crate) async fn what_can_not_work_or_tries_to_get_around_is_refused_with_its_field(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let container = |fields: Value| {
        let mut app = json!({ "name": "app", "image": "app" });
        app.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "spec": { "containers": [app] } })
    };
    let named = |name: &str| json!({ "spec": { "containers": [{ "name": name, "image": "app" }] } });
    let init = |name: &str| json!({ "spec": { "initContainers": [{ "name": name, "image": "evil" }] } });
    let refused = [
        ("runAsUser", container(json!({ "securityContext": { "runAsUser": 1500 } }))),
        ("runAsUser", json!({ "spec": { "securityContext": { "runAsUser": 1500 } } })),
        ("15003", container(json!({ "ports": [{ "containerPort": 15003 }] }))),
        ("15001", container(json!({ "ports": [{ "containerPort": 15001 }] }))),
        ("byrnie-proxy", named("byrnie-proxy")),
        ("exclude-inbound-ports", annotated("byrnie.dev/exclude-inbound-ports", "80; rm -rf /")),
        ("exclude-inbound-ports", annotated("byrnie.dev/exclude-inbound-ports", "0")),
        ("exclude-outbound-ports", annotated("byrnie.dev/exclude-outbound-ports", "99999")),
        ("exclude-outbound-cidrs", annotated("byrnie.dev/exclude-outbound-cidrs", "10.0.0.0/8,--exempt=uid:0")),
        ("exclude-uids", annotated("byrnie.dev/exclude-uids", "-1")),
        ("exclude-interfaces", annotated("byrnie.dev/exclude-interfaces", "eth0\"; drop")),
        ("proxy-image", annotated("byrnie.dev/proxy-image", "--evil image")),
        ("log-level", annotated("byrnie.dev/log-level", "info\nBYRNIE_X=1")),
        ("proxy-cpu-limit", annotated("byrnie.dev/proxy-cpu-limit", "much")),
        ("inject", annotated("byrnie.dev/inject", "maybe")),
        ("linkerd-proxy", named("linkerd-proxy")),
        ("shareProcessNamespace", json!({ "spec": { "shareProcessNamespace": true } })),
    ];
    let mut wrong = Vec::new();
    for (number, (field, over)) in refused.into_iter().enumerate() {
        match Pod::create_with(&cluster.api, "shop", &format!("bad-{number}"), "web", &over).await {
            Ok(pod) => wrong.push(format!("{field}: {over} was taken: {}", pod.object["spec"])),
            Err(refused) if !refused.message.contains(field) => wrong.push(format!("{field}: {over}: {refused}")),
            Err(_) => {}
        }
    }
    // A container under our name is ours: what the author wrote in it never runs.
    for name in ["byrnie-capture", "byrnie-proxy"] {
        let taken = Pod::create_with(&cluster.api, "shop", &format!("forged-{name}"), "web", &init(name)).await;
        let pod = taken.unwrap_or_else(|refused| panic!("{name}: {refused}"));
        assert_eq!(init_containers(&pod.object), ["byrnie-capture", "byrnie-proxy"]);
        assert!(!pod.object["spec"].to_string().contains("evil"), "{}", pod.object["spec"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Another one that changes pods. It is a policy, whose turn comes before the webhooks'; asked again after ours, it adds
/// containers, and what has changed then has the API server ask ours again.
const LATER: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: { name: later.example }
spec:
  reinvocationPolicy: IfNeeded
  failurePolicy: Fail
  matchConstraints: { resourceRules: [{ apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods] }] }
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration:
        expression: >-
          has(object.spec.initContainers) && object.spec.initContainers.exists(c, c.name == 'byrnie-proxy')
          ? Object{spec: Object.spec{
              containers: [Object.spec.containers{name: "later", image: "later", readinessProbe:
                Object.spec.containers.readinessProbe{httpGet:
                  Object.spec.containers.readinessProbe.httpGet{path: "/healthz", port: 8090}}}],
              initContainers: [Object.spec.initContainers{name: "a-first", image: "first"}]}}
          : Object{spec: Object.spec{priority: 0}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: { name: later.example }
spec: { policyName: later.example }
"#;

pub(crate) async fn what_is_added_after_the_proxy_is_looked_at_too(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    cluster.apply(LATER);
    let pod = eventually("the policy is in force", Duration::from_secs(4), async || {
        let pod = Pod::create(&cluster.api, "shop", "web", "web").await.expect("a pod");
        let containers = pod.object["spec"]["containers"].as_array().unwrap();
        if containers.iter().any(|container| container["name"] == "later") {
            return Some(pod);
        }
        cluster.api.delete(&pod.path()).await.unwrap();
        None
    })
    .await;
    assert_eq!(init_containers(&pod.object)[..2], ["byrnie-capture", "byrnie-proxy"]);
    assert_eq!(init_containers(&pod.object).iter().filter(|name| name.starts_with("byrnie-")).count(), 2);
    let containers = pod.object["spec"]["containers"].as_array().unwrap();
    let later = containers.iter().find(|container| container["name"] == "later").unwrap();
    let path = later["readinessProbe"]["httpGet"]["path"].as_str().unwrap();
    assert!(path.starts_with("/probe/") && path.contains("/later/"), "{path}");
}

pub(crate) async fn a_dead_injector_stops_enrolled_namespaces_only(world: World) {
    let (cluster, _control_plane, injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    cluster.namespace("legacy", &json!({})).await;
    injector.child.kill();
    let refused = Pod::create(&cluster.api, "shop", "web", "web").await.expect_err("no injector, no pod");
    assert!(refused.message.contains("byrnie"), "{refused}");
    // Byrnie's own namespace takes restricted pods only.
    let restricted = json!({ "spec": {
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{ "name": "app", "image": "app", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } }],
    } });
    for namespace in ["legacy", "kube-system", "byrnie-system"] {
        let taken = Pod::create_with(&cluster.api, namespace, "web", "web", &restricted).await;
        taken.unwrap_or_else(|error| panic!("{namespace}: {error}"));
    }
    cluster.namespace("another", &json!({ "byrnie.dev/mesh": "enabled" })).await;
    let injector = cluster.injector().await;
    injector.is_ready().await;
    Pod::create(&cluster.api, "shop", "web", "web").await.expect("a pod, now that the injector is back");
}

pub(crate) async fn an_expired_serving_certificate_is_replaced_by_the_control_plane(world: World) {
    let (cluster, control_plane, _injector) = Cluster::running(&world).await;
    cluster.enrolled("shop").await;
    let secret = "/api/v1/namespaces/byrnie-system/secrets/byrnie-injector-tls";
    let (certificate, key) = expired_certificate();
    cluster.api.merge(secret, &json!({ "stringData": { "tls.crt": certificate, "tls.key": key } })).await.unwrap();
    let taken = async |name: &str| Pod::create(&cluster.api, "shop", name, "web").await;
    // Whether the control plane was quicker than this request or not, no pod came through without its proxy.
    if let Ok(pod) = taken("meanwhile").await {
        assert_eq!(init_containers(&pod.object)[..2], ["byrnie-capture", "byrnie-proxy"]);
    }
    let attempt = std::cell::Cell::new(0);
    eventually("the control plane has replaced it", Duration::from_secs(6), async || {
        assert!(control_plane.child.ended().is_none());
        attempt.set(attempt.get() + 1);
        let name = format!("web-{}", attempt.get());
        let stored = cluster.api.get(secret).await.ok()?;
        let pod = Pod::create(&cluster.api, "shop", &name, "web").await;
        if let Ok(pod) = &pod {
            cluster.api.delete(&pod.path()).await.unwrap();
        }
        (pod.is_ok() && stored["data"]["tls.crt"] != json!(encoded(&certificate))).then_some(())
    })
    .await;
}

fn encoded(text: &str) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(text)
}

fn expired_certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut certificate = rcgen::CertificateParams::new(vec!["byrnie-injector.byrnie-system.svc".to_owned()]).unwrap();
    certificate.not_before = rcgen::date_time_ymd(2020, 1, 1);
    certificate.not_after = rcgen::date_time_ymd(2020, 2, 1);
    (certificate.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

pub(crate) async fn the_namespaces_that_bring_the_mesh_up_can_not_be_enrolled(world: World) {
    let (cluster, _control_plane, _injector) = Cluster::running(&world).await;
    let label = json!({ "metadata": { "labels": { "byrnie.dev/mesh": "enabled" } } });
    for namespace in ["kube-system", "byrnie-system"] {
        let path = format!("/api/v1/namespaces/{namespace}");
        let refused = cluster.api.merge(&path, &label).await.expect_err(namespace);
        assert!(refused.message.contains(namespace), "{refused}");
    }
}
