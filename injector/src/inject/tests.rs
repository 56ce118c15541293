#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod properties;
mod refusals;

use byrnie_proto::probes::PROBES;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

pub(crate) fn settings() -> Settings {
    let image = ProxyImage { reference: "byrnie/proxy:test".parse().unwrap(), pull_policy: PullPolicy::IfNotPresent };
    Settings::new(&MeshSettings::default(), &image)
}

/// A pure function has no random numbers of its own.
pub(crate) fn nonce() -> Nonce {
    Nonce::new([0xab; 16])
}

fn shop() -> NamespaceFacts {
    NamespaceFacts::enrolled("shop")
}

/// A pod with a container `web`, changed.
pub(crate) fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"},
        "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}]}]},
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn inject_into(pod: &Pod) -> (Pod, Vec<String>) {
    match inject(pod, &shop(), &settings(), nonce()).unwrap() {
        Outcome::Injected { pod, warnings } => (*pod, warnings),
        Outcome::PassedBy(reason) => unreachable!("passed by: {reason}"),
    }
}

fn injected(change: impl FnOnce(&mut Value)) -> Pod {
    inject_into(&pod(change)).0
}

fn passed_by(change: impl FnOnce(&mut Value)) -> PassedBy {
    match inject(&pod(change), &shop(), &settings(), nonce()).unwrap() {
        Outcome::PassedBy(reason) => reason,
        Outcome::Injected { .. } => unreachable!("injected"),
    }
}

fn init(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().unwrap().init_containers.as_deref().unwrap_or_default()
}

fn names(containers: &[Container]) -> Vec<&str> {
    containers.iter().map(|each| each.name.as_str()).collect()
}

fn args(pod: &Pod, container: usize) -> &[String] {
    init(pod)[container].args.as_deref().unwrap()
}

fn probes_of(pod: &Pod) -> Value {
    let variable = init(pod)[1].env.iter().flatten().find(|variable| variable.name == PROBES);
    variable.map_or(Value::Null, |variable| {
        let probes: Value = serde_json::from_str(variable.value.as_deref().unwrap()).unwrap();
        assert_eq!(probes["nonce"], nonce().as_str());
        probes["probes"].clone()
    })
}

fn yaml(pod: &Pod) -> String {
    serde_saphyr::to_string(&serde_json::to_value(pod).unwrap()).unwrap()
}

#[test]
fn a_plain_pod_with_its_proxy() {
    insta::assert_snapshot!(yaml(&injected(|_| {})));
}

#[test]
fn a_container_without_a_hook_goes_on_for_a_moment_when_its_pod_is_deleted() {
    let hook = |pod: &Pod| {
        let lifecycle = pod.spec.as_ref().unwrap().containers[0].lifecycle.as_ref();
        serde_json::to_value(lifecycle.and_then(|hooks| hooks.pre_stop.clone())).unwrap()
    };
    assert_eq!(hook(&injected(|_| {})), json!({"sleep": {"seconds": 2}}));
    let longer =
        |pod: &mut Value| pod["metadata"]["annotations"] = json!({"byrnie.dev/termination-delay-seconds": "5"});
    assert_eq!(hook(&injected(longer)), json!({"sleep": {"seconds": 5}}));
    let off = |pod: &mut Value| pod["metadata"]["annotations"] = json!({"byrnie.dev/termination-delay-seconds": "0"});
    assert_eq!(hook(&injected(off)), Value::Null);
    // One that must be gone at once, and one that says itself what it does.
    let hurried = |pod: &mut Value| pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
    assert_eq!(hook(&injected(hurried)), Value::Null);
    let own = json!({"exec": {"command": ["nginx", "-s", "quit"]}});
    let quits = |pod: &mut Value| pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": own});
    assert_eq!(hook(&injected(quits)), own);
}

#[test]
fn the_hook_that_is_added_reaches_the_object_as_it_was_sent() {
    for hooks in [Value::Null, json!({"postStart": {"exec": {"command": ["true"]}}})] {
        let mut sent = serde_json::to_value(pod(|_| {})).unwrap();
        sent["spec"]["containers"][0]["lifecycle"] = hooks.clone();
        let typed: Pod = serde_json::from_value(sent.clone()).unwrap();
        let whole = graft(&sent, &inject_into(&typed).0);
        let after = &whole["spec"]["containers"][0]["lifecycle"];
        assert_eq!(after["preStop"], json!({"sleep": {"seconds": 2}}));
        assert_eq!(after["postStart"], hooks["postStart"]);
    }
}

#[test]
fn a_pod_with_everything_that_an_injection_touches() {
    insta::assert_snapshot!(yaml(&injected(|pod| {
        pod["metadata"]["annotations"] = json!({
            "byrnie.dev/log-level": "debug", "byrnie.dev/exclude-inbound-ports": "9091,9090",
            "openservicemesh.io/outbound-port-exclusion-list": "5432", "byrnie.dev/proxy-memory-limit": "64Mi",
        });
        pod["spec"]["terminationGracePeriodSeconds"] = json!(10);
        pod["spec"]["initContainers"] = json!([{"name": "migrate", "image": "m"}]);
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": "/healthz", "port": "http"}, "timeoutSeconds": 3, "periodSeconds": 7});
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["true"]}});
    })));
}

#[test]
fn capture_and_proxy_come_before_every_other_init_container() {
    let pod = injected(|pod| pod["spec"]["initContainers"] = json!([{"name": "migrate"}, {"name": "wait"}]));
    assert_eq!(names(init(&pod)), ["byrnie-capture", "byrnie-proxy", "migrate", "wait"]);
}

#[test]
fn an_injected_pod_is_injected_into_nothing_else() {
    let (once, _) = inject_into(&pod(|_| {}));
    let again = inject(&once, &shop(), &settings(), nonce()).unwrap();
    assert_eq!(again, Outcome::PassedBy(PassedBy::AlreadyInjected));
}

#[test]
fn what_another_webhook_put_before_ours_goes_behind_it() {
    let (mut pod, _) = inject_into(&pod(|_| {}));
    let other: Container = serde_json::from_value(json!({"name": "vault-agent-init"})).unwrap();
    pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap().insert(0, other);
    assert_eq!(names(init(&inject_into(&pod).0)), ["byrnie-capture", "byrnie-proxy", "vault-agent-init"]);
}

#[test]
fn a_probe_that_another_webhook_added_joins_those_that_were_rewritten() {
    let probe = json!({"httpGet": {"path": "/", "port": 8080}});
    let (mut pod, _) = inject_into(&pod(|pod| pod["spec"]["containers"][0]["readinessProbe"] = probe.clone()));
    let agent = json!({"name": "agent", "livenessProbe": {"tcpSocket": {"port": 8200}}});
    pod.spec.as_mut().unwrap().containers.push(serde_json::from_value(agent).unwrap());
    let (again, _) = inject_into(&pod);
    let probes = probes_of(&again);
    assert_eq!(probes.as_object().unwrap().keys().collect::<Vec<_>>(), ["agent/liveness", "web/readiness"]);
    assert_eq!(again.spec.as_ref().unwrap().containers[0], pod.spec.as_ref().unwrap().containers[0]);
}

#[test]
fn a_container_of_our_name_is_replaced_and_never_trusted() {
    let plain = injected(|_| {});
    let forged = injected(|pod| {
        pod["spec"]["initContainers"] = json!([
            {"name": "byrnie-proxy", "image": "evil", "restartPolicy": "Always", "securityContext": {"privileged": true},
             "env": [{"name": PROBES, "value": "{\"nonce\":\"00000000000000000000000000000000\",\"probes\":{\"web/readiness\":{\"action\":{\"tcpSocket\":{\"port\":1}},\"timeoutSeconds\":1}}}"}],
             "volumeMounts": [{"name": "byrnie-identity", "mountPath": "/x"}]},
            {"name": "byrnie-capture", "image": "evil", "command": ["true"]},
        ]);
        pod["metadata"]["annotations"] = json!({"byrnie.dev/injected": "99"});
    });
    assert_eq!(forged, plain);
}

#[test]
fn what_a_limit_range_has_filled_in_stays_where_the_mesh_says_nothing() {
    let (mut pod, _) = inject_into(&pod(|_| {}));
    let limits = json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "10m", "memory": "32Mi"}});
    pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].resources = serde_json::from_value(limits).unwrap();
    assert_eq!(inject(&pod, &shop(), &settings(), nonce()).unwrap(), Outcome::PassedBy(PassedBy::AlreadyInjected));
}

#[test]
fn a_pod_outside_of_the_mesh_passes_by_with_the_reason() {
    let annotate = |name: &'static str, value: &'static str| {
        move |pod: &mut Value| pod["metadata"]["annotations"] = json!({name: value})
    };
    let no = passed_by(annotate(labels::INJECT, "false"));
    assert_eq!(no.to_string(), "the pod's annotation byrnie.dev/inject: false");
    assert!(matches!(passed_by(annotate(labels::OSM_INJECTION, "disabled")), PassedBy::OptedOut(_)));
    assert_eq!(passed_by(|pod| pod["spec"]["hostNetwork"] = json!(true)), PassedBy::HostNetwork);
    assert_eq!(passed_by(|pod| pod["spec"]["os"] = json!({"name": "windows"})), PassedBy::Windows);
    let selector = json!({"kubernetes.io/os": "windows"});
    assert_eq!(passed_by(|pod| pod["spec"]["nodeSelector"] = selector), PassedBy::Windows);
    let elsewhere = NamespaceFacts { name: "other".to_owned(), ..NamespaceFacts::default() };
    let outcome = inject(&pod(|_| {}), &elsewhere, &settings(), nonce()).unwrap();
    assert_eq!(outcome, Outcome::PassedBy(PassedBy::NotEnrolled));
}

#[test]
fn a_namespace_of_an_adopted_mesh_needs_that_meshs_annotation() {
    let settings = Settings { adopted_meshes: vec!["osm".to_owned()], ..settings() };
    let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let mut facts = NamespaceFacts {
        name: "shop".to_owned(),
        labels: one(labels::OSM_MONITORED_BY, "osm"),
        annotations: BTreeMap::new(),
    };
    let passed = inject(&pod(|_| {}), &facts, &settings, nonce()).unwrap();
    assert!(matches!(passed, Outcome::PassedBy(PassedBy::OptedOut(_))), "{passed:?}");
    facts.annotations = one(labels::OSM_INJECTION, "enabled");
    assert!(matches!(inject(&pod(|_| {}), &facts, &settings, nonce()).unwrap(), Outcome::Injected { .. }));
}

#[test]
fn every_kind_of_probe_and_hook_is_handed_over_as_it_was() {
    let pod = injected(|pod| {
        pod["spec"]["initContainers"] = json!([
            {"name": "cache", "restartPolicy": "Always", "startupProbe": {"grpc": {"port": 5000, "service": "cache"}}},
        ]);
        pod["spec"]["containers"][0]["startupProbe"] = json!({"grpc": {"port": 5001}, "timeoutSeconds": 5});
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": "http"}});
        pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {
            "path": "ready?full=1#x", "port": "metrics", "scheme": "HTTPS",
            "httpHeaders": [{"name": "Authorization", "value": "$(TOKEN) \"x\""}, {"name": "X", "value": ""}],
        }});
        pod["spec"]["containers"][0]["lifecycle"] = json!({
            "postStart": {"httpGet": {"port": 8080}}, "preStop": {"tcpSocket": {"port": 8080}},
        });
        let ports = json!([{"name": "metrics", "containerPort": 9000}]);
        pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "side", "ports": ports}));
    });
    let expected = json!({
        "cache/startup": {"action": {"grpc": {"port": 5000, "service": "cache"}}, "timeoutSeconds": 1},
        "web/startup": {"action": {"grpc": {"port": 5001, "service": ""}}, "timeoutSeconds": 5},
        "web/liveness": {"action": {"tcpSocket": {"port": 8080}}, "timeoutSeconds": 1},
        "web/readiness": {"action": {"httpGet": {
            "https": true, "port": 9000, "path": "/ready?full=1",
            "headers": [["Authorization", "$(TOKEN) \"x\""], ["X", ""]],
        }}, "timeoutSeconds": 1},
        "web/post-start": {"action": {"httpGet": {"https": false, "port": 8080, "path": "/", "headers": []}}, "timeoutSeconds": 300},
        "web/pre-stop": {"action": {"tcpSocket": {"port": 8080}}, "timeoutSeconds": 30},
    });
    assert_eq!(probes_of(&pod), expected);
    let web = &pod.spec.as_ref().unwrap().containers[0];
    let startup = web.startup_probe.as_ref().unwrap();
    assert_eq!(startup.timeout_seconds, Some(6));
    assert!(startup.grpc.is_none());
    let get = serde_json::to_value(startup.http_get.as_ref().unwrap()).unwrap();
    assert_eq!(
        get,
        json!({"path": "/probe/abababababababababababababababab/web/startup", "port": 15021, "scheme": "HTTP"})
    );
    let stop = web.lifecycle.as_ref().unwrap().pre_stop.as_ref().unwrap();
    assert!(stop.tcp_socket.is_none() && stop.http_get.is_some());
}

#[test]
fn a_probe_or_hook_that_names_a_host_stays_the_kubelets() {
    let get = json!({"httpGet": {"port": 80, "host": "web.example", "new": 1}, "timeoutSeconds": 2});
    let tcp = json!({"tcpSocket": {"port": 80, "host": "10.0.0.1"}});
    let mut sent = serde_json::to_value(pod(|_| {})).unwrap();
    let web = &mut sent["spec"]["containers"][0];
    (web["livenessProbe"], web["readinessProbe"]) = (get.clone(), tcp.clone());
    web["lifecycle"] = json!({"preStop": {"httpGet": {"port": 15021, "host": "127.0.0.1", "path": "/probe/x"}}});
    let pod = inject_into(&serde_json::from_value(sent.clone()).unwrap()).0;
    assert_eq!(probes_of(&pod), Value::Null);
    assert_eq!(graft(&sent, &pod)["spec"]["containers"], sent["spec"]["containers"]);
}

#[test]
fn the_nonce_of_an_injected_pod_stays_and_one_that_no_probe_asks_with_is_not_taken_over() {
    let probe = json!({"httpGet": {"path": "/", "port": 8080}});
    let (once, _) = inject_into(&pod(|pod| pod["spec"]["containers"][0]["readinessProbe"] = probe.clone()));
    let fresh = Nonce::new([1; 16]);
    let again = inject(&once, &shop(), &settings(), fresh.clone()).unwrap();
    assert_eq!(again, Outcome::PassedBy(PassedBy::AlreadyInjected));
    let mut replaced = once.clone();
    let container = &mut replaced.spec.as_mut().unwrap().containers[0];
    container.readiness_probe = serde_json::from_value(probe).unwrap();
    let Outcome::Injected { pod, .. } = inject(&replaced, &shop(), &settings(), fresh.clone()).unwrap() else {
        unreachable!("passed by");
    };
    let text = yaml(&pod);
    assert!(text.contains(fresh.as_str()) && !text.contains(nonce().as_str()), "{text}");
}

#[test]
fn a_named_port_is_the_containers_own_before_another_ones() {
    let pod = injected(|pod| {
        let other = json!({"name": "a", "ports": [{"name": "http", "containerPort": 1}]});
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": "http"}});
        pod["spec"]["containers"].as_array_mut().unwrap().insert(0, other);
    });
    assert_eq!(probes_of(&pod)["web/liveness"]["action"]["tcpSocket"]["port"], 8080);
}

/// Kubernetes would put a variable's value in the place of `$(NAME)`.
#[test]
fn no_dollar_sign_reaches_the_variable() {
    let pod = injected(|pod| {
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 8080, "path": "/$(HOME)"}});
    });
    let variable = init(&pod)[1].env.as_ref().unwrap()[0].value.as_deref().unwrap();
    assert!(!variable.contains('$'), "{variable}");
    assert_eq!(probes_of(&pod)["web/liveness"]["action"]["httpGet"]["path"], "/$(HOME)");
}

#[test]
fn what_is_excluded_from_capture_stands_in_the_arguments_in_one_order() {
    let pod = injected(|pod| {
        pod["metadata"]["annotations"] = json!({
            "byrnie.dev/exclude-inbound-ports": "9091, 9090", "byrnie.dev/exclude-outbound-cidrs": "203.0.113.0/24",
            "byrnie.dev/exclude-uids": "0", "byrnie.dev/exclude-interfaces": "eth1",
            "openservicemesh.io/inbound-port-exclusion-list": "80",
        });
    });
    let expected = [
        "--prove",
        "--exempt",
        "uid:1500",
        "--exclude-inbound-ports=80,9090,9091",
        "--exclude-outbound-cidrs=203.0.113.0/24",
        "--exclude-uids=0",
        "--exclude-interfaces=eth1",
    ];
    assert_eq!(args(&pod, 0), expected);
}

#[test]
fn a_short_grace_period_shortens_the_proxys_own() {
    let drain = |grace: Value| {
        let pod = injected(|pod| pod["spec"]["terminationGracePeriodSeconds"] = grace);
        args(&pod, 1).last().unwrap().clone()
    };
    assert_eq!(drain(json!(5)), "5s");
    assert_eq!(drain(json!(3600)), "30s");
    assert_eq!(drain(json!(0)), "1s");
    assert_eq!(drain(Value::Null), "30s");
}

#[test]
fn strong_capabilities_are_let_in_with_a_warning() {
    let (_, warnings) = inject_into(&pod(|pod| {
        pod["spec"]["containers"][0]["securityContext"] =
            json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN", "CAP_NET_RAW"]}});
    }));
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("spec.containers[0]") && warnings[0].contains("NET_ADMIN"), "{}", warnings[0]);
    let (_, warnings) = inject_into(&pod(|pod| {
        pod["metadata"]["annotations"] = json!({"openservicemesh.io/outbound-ip-range-inclusion-list": "10.0.0.0/8"});
        pod["spec"]["dnsPolicy"] = json!("Default");
    }));
    assert_eq!(warnings.len(), 2);
}

#[test]
fn fields_that_are_not_known_here_stay_in_the_pod() {
    let sent = json!({
        "metadata": {"name": "web-0", "newMeta": 1},
        "spec": {
            "newSpec": {"a": 1},
            "initContainers": [{"name": "a", "newInit": true}],
            "containers": [{"name": "web", "newContainer": [1], "livenessProbe": {"newProbe": 2, "tcpSocket": {"port": 80}}}],
            "volumes": [{"name": "v", "newVolume": {}}],
        },
    });
    let pod = Pod::deserialize(&sent).unwrap();
    let whole = graft(&sent, &inject_into(&pod).0);
    assert_eq!(whole["metadata"]["newMeta"], 1);
    assert_eq!(whole["spec"]["newSpec"]["a"], 1);
    assert_eq!(whole["spec"]["initContainers"][2]["newInit"], true);
    assert_eq!(whole["spec"]["containers"][0]["newContainer"][0], 1);
    assert_eq!(whole["spec"]["containers"][0]["livenessProbe"]["newProbe"], 2);
    assert_eq!(whole["spec"]["volumes"][0]["newVolume"], json!({}));
    let mut patched = sent.clone();
    json_patch::patch(&mut patched, &json_patch::diff(&sent, &whole)).unwrap();
    assert_eq!(patched, whole);
}
