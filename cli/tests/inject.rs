//! `byrnie inject`, from outside: a file in, a file and a report out, and an exit code.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use assert_cmd::Command;
use serde_json::Value;

const FILE: &str = "\
# a comment
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {annotations: {note: 'yes'}}
    spec: {containers: [{name: web, image: web, livenessProbe: {tcpSocket: {port: 80}}}]}
---
";

fn inject(arguments: &[&str], input: &str) -> (i32, String, String) {
    let output = Command::cargo_bin("byrnie")
        .unwrap()
        .args(["inject", "-f", "-"])
        .args(arguments)
        .write_stdin(input)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn a_file_comes_out_with_its_proxies_and_a_report_and_the_same_again() {
    let (code, out, report) = inject(&["--image", "registry.example/proxy:7"], FILE);
    assert_eq!(code, 0, "{report}");
    let printed = documents(&out);
    assert_eq!(printed[0], documents(FILE)[0]);
    let template = &printed[1]["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["note"], "yes");
    assert_eq!(template["spec"]["initContainers"][1]["name"], "byrnie-proxy");
    assert_eq!(template["spec"]["initContainers"][1]["image"], "registry.example/proxy:7");
    assert!(
        report.contains("unchanged  Service shop/web") && report.contains("injected   Deployment shop/web"),
        "{report}"
    );
    let (code, again, report) = inject(&["--image", "registry.example/proxy:7"], &out);
    assert_eq!((code, documents(&again)), (0, printed));
    assert!(report.contains("passed by  Deployment shop/web: it has the proxy already"), "{report}");
}

#[test]
fn a_refused_object_is_told_with_its_field_and_nothing_is_printed() {
    let (code, out, report) = inject(&[], &FILE.replace("port: 80}", "port: nowhere}"));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(report.contains("spec.template.spec.containers[0].livenessProbe.tcpSocket.port: expected"), "{report}");
}

#[test]
fn the_meshs_own_settings_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    let mesh = "apiVersion: byrnie.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {trustDomain: example.org}\n";
    std::fs::write(&path, mesh).unwrap();
    let (code, out, report) = inject(&["--mesh-config", path.to_str().unwrap()], FILE);
    assert_eq!(code, 0, "{report}");
    assert!(out.contains("example.org"));
    std::fs::write(&path, mesh.replace("trustDomain", "trustDomian")).unwrap();
    let (code, out, report) = inject(&["--mesh-config", path.to_str().unwrap()], FILE);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(report.contains("trustDomian"), "{report}");
}

#[test]
fn what_is_no_yaml_is_told_so() {
    let (code, out, report) = inject(&[], "a: [b\n");
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(report.contains("expected") && report.contains("YAML"), "{report}");
    assert_eq!(inject(&["--image", "a b"], FILE).0, 2);
}
