//! What can not work is refused with its field.

use serde_json::{Value, json};

use super::*;

fn refused(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let problems = inject(&pod(change), &shop(), &settings(), nonce()).unwrap_err();
    problems.iter().map(ToString::to_string).collect()
}

fn refused_once(change: impl FnOnce(&mut Value)) -> String {
    let mut problems = refused(change);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[track_caller]
fn starts(problem: &str, path: &str) {
    assert!(problem.starts_with(&format!("{path}: expected")), "{problem}");
}

#[test]
fn a_container_with_the_proxys_user_would_pass_capture_by() {
    let own = json!({"runAsUser": 1500});
    let problem = refused_once(|pod| pod["spec"]["containers"][0]["securityContext"] = own.clone());
    starts(&problem, "spec.containers[0].securityContext.runAsUser");
    let problem = refused_once(|pod| pod["spec"]["securityContext"] = own.clone());
    starts(&problem, "spec.securityContext.runAsUser (of spec.containers[0])");
    injected(|pod| {
        pod["spec"]["securityContext"] = own;
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1000});
    });
}

#[test]
fn the_application_gets_no_token_for_the_meshs_ca() {
    let sources = |audience: &str| json!([{"serviceAccountToken": {"audience": audience, "path": "token"}}]);
    let volume = |audience: &str| json!([{"name": "mine", "projected": {"sources": sources(audience)}}]);
    let problem = refused_once(|pod| pod["spec"]["volumes"] = volume("byrnie.dev/ca"));
    starts(&problem, "spec.volumes[0].projected.sources[0].serviceAccountToken.audience");
    injected(|pod| pod["spec"]["volumes"] = volume("vault"));
}

#[test]
fn the_image_that_may_change_the_network_is_not_the_pods_to_choose() {
    let annotations = json!({"byrnie.dev/proxy-image": "somebody/else:1"});
    let pod = injected(|pod| pod["metadata"]["annotations"] = annotations);
    let images: Vec<&str> = init(&pod).iter().filter_map(|container| container.image.as_deref()).collect();
    assert_eq!(images, ["byrnie/proxy:test", "somebody/else:1"]);
}

#[test]
fn the_proxys_ports_are_taken() {
    for port in [15000, 15001, 15003, 15010, 15021] {
        let problem = refused_once(|pod| pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": port}]));
        starts(&problem, "spec.containers[0].ports[0].containerPort");
        let host = json!([{"containerPort": 80, "hostPort": port}]);
        let problem = refused_once(|pod| pod["spec"]["containers"][0]["ports"] = host);
        starts(&problem, "spec.containers[0].ports[0].hostPort");
    }
    injected(|pod| pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15001, "protocol": "UDP"}]));
}

#[test]
fn names_of_the_meshs_containers_and_volumes_are_not_for_others() {
    let problem = refused_once(|pod| pod["spec"]["containers"][0]["name"] = json!("byrnie-proxy"));
    starts(&problem, "spec.containers[0].name");
    let volumes = json!([{"name": "byrnie-identity", "secret": {"secretName": "x"}}]);
    starts(&refused_once(|pod| pod["spec"]["volumes"] = volumes), "spec.volumes[0].name");
}

#[test]
fn nobody_but_the_proxy_mounts_its_key_and_token() {
    for volume in ["byrnie-identity", "byrnie-state"] {
        let mounts = json!([{"name": volume, "mountPath": "/x"}]);
        let problem = refused_once(|pod| pod["spec"]["containers"][0]["volumeMounts"] = mounts);
        starts(&problem, "spec.containers[0].volumeMounts");
    }
}

#[test]
fn a_pod_that_stays_outside_can_not_pass_for_a_member() {
    let problem = refused_once(|pod| {
        pod["metadata"]["annotations"] = json!({labels::INJECT: "false"});
        pod["spec"]["initContainers"] = json!([{"name": "byrnie-proxy", "restartPolicy": "Always"}]);
    });
    starts(&problem, "spec.initContainers[0].name");
    let problem = refused_once(|pod| {
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["initContainers"] = json!([{"name": "byrnie-capture"}]);
    });
    starts(&problem, "spec.initContainers[0].name");
}

#[test]
fn a_pod_of_another_mesh_is_told_which() {
    for (name, mesh) in [("istio-proxy", "Istio"), ("linkerd-proxy", "Linkerd"), ("consul-dataplane", "Consul")] {
        let problem = refused_once(|pod| pod["spec"]["containers"][0]["name"] = json!(name));
        starts(&problem, "spec.containers[0].name");
        assert!(problem.contains(mesh), "{problem}");
    }
    let problem = refused_once(|pod| pod["spec"]["initContainers"] = json!([{"name": "osm-init"}]));
    assert!(problem.contains("Open Service Mesh"), "{problem}");
    let problem = refused_once(|pod| {
        pod["metadata"]["labels"] = json!({"osm-proxy-uuid": "1"});
        pod["spec"]["containers"][0]["name"] = json!("envoy");
    });
    assert!(problem.contains("Open Service Mesh"), "{problem}");
    injected(|pod| pod["spec"]["containers"][0]["name"] = json!("envoy"));
}

#[test]
fn a_shared_process_namespace_needs_its_annotation() {
    let problem = refused_once(|pod| pod["spec"]["shareProcessNamespace"] = json!(true));
    starts(&problem, "spec.shareProcessNamespace");
    injected(|pod| {
        pod["spec"]["shareProcessNamespace"] = json!(true);
        pod["metadata"]["annotations"] = json!({labels::ALLOW_SHARED_PROCESS_NAMESPACE: "true"});
    });
    let problem = refused_once(|pod| {
        pod["metadata"]["annotations"] = json!({labels::ALLOW_SHARED_PROCESS_NAMESPACE: "yes"});
    });
    starts(&problem, "metadata.annotations[byrnie.dev/allow-shared-process-namespace]");
}

#[test]
fn annotations_that_mean_nothing_or_something_else_are_refused() {
    for (name, value) in [
        (labels::INJECT, "nope"),
        (labels::OSM_INJECTION, "on"),
        (labels::LOG_LEVEL, "info --admin-listen 0.0.0.0:1"),
        (labels::PROXY_IMAGE, "a b"),
        (labels::PROXY_CPU_REQUEST, "1e9"),
        (labels::PROXY_MEMORY_LIMIT, "-1Mi"),
        (labels::EXCLUDE_INBOUND_PORTS, "80 --remove"),
        (labels::EXCLUDE_OUTBOUND_PORTS, "99999"),
        (labels::EXCLUDE_OUTBOUND_CIDRS, "0.0.0.0/0"),
        (labels::EXCLUDE_UIDS, "root"),
        (labels::EXCLUDE_INTERFACES, "eth0; flush ruleset"),
        (labels::OSM_EXCLUDE_OUTBOUND_CIDRS, "10.0.0.0"),
    ] {
        let problem = refused_once(|pod| pod["metadata"]["annotations"] = json!({name: value}));
        assert!(problem.starts_with(&format!("metadata.annotations[{name}]")), "{problem}");
    }
}

#[test]
fn a_probe_that_can_not_be_performed_is_refused_with_its_place() {
    for (probe, field) in [
        (json!({"tcpSocket": {"port": "nowhere"}}), "tcpSocket.port"),
        (json!({"tcpSocket": {"port": 0}}), "tcpSocket.port"),
        (json!({"grpc": {"port": 70000}}), "grpc.port"),
        (json!({"httpGet": {"port": 80, "scheme": "FTP"}}), "httpGet.scheme"),
        (
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a b", "value": ""}]}}),
            "httpGet.httpHeaders[0].name",
        ),
        (
            json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": "x\r\ny: z"}]}}),
            "httpGet.httpHeaders[0].value",
        ),
        (json!({"tcpSocket": {"port": 80}, "timeoutSeconds": -1}), "timeoutSeconds"),
    ] {
        let problem = refused_once(|pod| pod["spec"]["containers"][0]["livenessProbe"] = probe);
        starts(&problem, &format!("spec.containers[0].livenessProbe.{field}"));
    }
}

#[test]
fn a_rewritten_probe_whose_original_is_lost_is_refused() {
    for path in [byrnie_proto::probes::path(&nonce(), "web/liveness").as_str(), "/probe/other/liveness"] {
        let probe = json!({"httpGet": {"port": 15021, "path": path}});
        let problem = refused_once(|pod| pod["spec"]["containers"][0]["livenessProbe"] = probe);
        starts(&problem, "spec.containers[0].livenessProbe");
        assert!(problem.contains("injected pod"), "{problem}");
    }
}

#[test]
fn probes_that_do_not_fit_an_environment_variable_are_refused() {
    let long = "x".repeat(60_000);
    let problem = refused_once(|pod| {
        for probe in ["livenessProbe", "readinessProbe"] {
            pod["spec"]["containers"][0][probe] = json!({"httpGet": {"port": 80, "path": long}});
        }
    });
    assert!(problem.contains("bytes as JSON"), "{problem}");
}

#[test]
fn more_probes_than_the_proxy_takes_are_refused() {
    let problem = refused_once(|pod| {
        let one = |number| json!({"name": format!("c{number}"), "livenessProbe": {"tcpSocket": {"port": 80}}});
        pod["spec"]["containers"] = (0..321).map(one).collect();
    });
    assert!(problem.contains("at most 320"), "{problem}");
}

#[test]
fn everything_wrong_is_told_at_once_and_bounded() {
    let problems = refused(|pod| {
        pod["spec"]["shareProcessNamespace"] = json!(true);
        pod["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1500});
        pod["metadata"]["annotations"] = json!({labels::LOG_LEVEL: "x", labels::EXCLUDE_UIDS: "x"});
    });
    assert_eq!(problems.len(), 4);
    let many = vec![json!({"containerPort": 15001}); 10_000];
    assert_eq!(refused(|pod| pod["spec"]["containers"][0]["ports"] = json!(many)).len(), crate::limits::PROBLEMS);
}

#[test]
fn a_pod_without_a_spec_is_refused() {
    assert_eq!(refused_once(|pod| pod["spec"] = Value::Null), "spec: expected what the pod runs, found nothing");
}
