//! `charts/byrnie`, rendered by Helm itself: a unit test only knows that the templates are those that are written now.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use byrnie_api::labels::{CONTROL_PLANE, SYSTEM_NAMESPACE};
use byrnie_kubelab::{World, programs};
use byrnie_netlab::harness::Verdict;
use byrnie_scenarios::binary;
use serde_json::{Value, json};

macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../../charts/byrnie/", $path)))),*]
    };
}

/// In here, because the user of a run may not be able to read the repository. A template that is missing in this list
/// would be missed by the comparison.
const CHART: &[(&str, &str)] = files![
    "Chart.yaml",
    "values.yaml",
    "templates/NOTES.txt",
    "templates/crds.yaml",
    "templates/ingress.yaml",
    "templates/policy.yaml",
    "templates/rbac.yaml",
    "templates/webhooks.yaml",
    "templates/workloads.yaml",
];

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Where `byrnie install` keeps its values; Helm keeps them in its release.
const INSTALL_VALUES: &str = "byrnie.dev/install-values";

/// Objects by group and version, kind, namespace and name.
type Objects = BTreeMap<String, Value>;

pub(crate) async fn helm_renders_the_objects_that_install_applies(_world: World) -> Verdict {
    let programs = programs().expect("the programs");
    let helm = programs.path("helm");
    if !helm.is_file() {
        let expected = helm.display();
        return Verdict::NotRun(format!("{expected} is not there; `tests/kubernetes/build helm` makes one"));
    }
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in CHART {
        let path = directory.path().join("byrnie").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let same = |values: &Value, flags: &[&str]| {
        let rendered = objects(&rendered(&helm, directory.path(), values));
        let installed = as_helm_has_them(objects(&installed(flags)));
        let differences = differences(&installed, &rendered);
        assert!(differences.is_empty(), "with {values}:\n{}", differences.join("\n"));
    };
    same(&json!({}), &[]);
    // The tag is a number where nothing quotes it, and the filter has what YAML reads as its own.
    let values = json!({
        "image": { "prefix": "registry.example:5000/byrnie", "tag": "1.10", "pullPolicy": "Always" },
        "log": "info,byrnie_control_plane[watch{pod=\"web: 1\"}]=debug",
        "controlPlane": { "replicas": 3, "resources": { "cpu": "1", "memory": "256Mi", "memoryLimit": "2Gi" } },
        "injector": { "replicas": 4, "resources": { "cpu": "0.5", "memory": "64Mi", "memoryLimit": "512Mi" } },
        "ingressSecrets": ["nginx-client", "7"],
    });
    same(
        &values,
        &[
            "--image-prefix=registry.example:5000/byrnie",
            "--image-tag=1.10",
            "--pull-policy=Always",
            "--log=info,byrnie_control_plane[watch{pod=\"web: 1\"}]=debug",
            "--control-plane-replicas=3",
            "--control-plane-resources=1,256Mi,2Gi",
            "--injector-replicas=4",
            "--injector-resources=0.5,64Mi,512Mi",
            "--ingress-secret=nginx-client",
            "--ingress-secret=7",
        ],
    );
    Verdict::Passed
}

fn rendered(helm: &Path, directory: &Path, values: &Value) -> String {
    std::fs::write(directory.join("values.json"), values.to_string()).unwrap();
    let output = Command::new(helm)
        .args(["template", "byrnie", "byrnie", "-n", SYSTEM_NAMESPACE, "--values", "values.json"])
        .current_dir(directory)
        .env_clear()
        // Helm keeps things there.
        .env("HOME", directory)
        .output();
    said("helm template", output.unwrap())
}

fn installed(flags: &[&str]) -> String {
    let output = Command::new(binary("byrnie")).args(["install", "--dry-run", "-o", "yaml"]).args(flags).output();
    said("byrnie install --dry-run", output.unwrap())
}

fn said(program: &str, output: Output) -> String {
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn objects(yaml: &str) -> Objects {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let mut objects = Objects::new();
    for object in documents.into_iter().filter(|document| !document.is_null()) {
        let metadata = &object["metadata"];
        let name = ["namespace", "name"].map(|field| metadata[field].as_str().unwrap_or("-"));
        let id = format!("{} {} {}", object["apiVersion"], object["kind"], name.join("/")).replace('"', "");
        assert!(objects.insert(id.clone(), object).is_none(), "{id} is there twice");
    }
    objects
}

/// What `byrnie install` applies, with the only things that differ in a release of Helm: it makes the namespace itself
/// (`--create-namespace`), remembers the values itself, and wants to be named as the one whose the objects are.
fn as_helm_has_them(mut objects: Objects) -> Objects {
    objects.remove(&format!("v1 Namespace -/{SYSTEM_NAMESPACE}")).expect("the namespace");
    let control_plane = format!("apps/v1 Deployment {SYSTEM_NAMESPACE}/{CONTROL_PLANE}");
    let metadata = objects.get_mut(&control_plane).and_then(|object| object["metadata"].as_object_mut()).unwrap();
    let annotations = metadata.remove("annotations").expect("annotations");
    assert_eq!(annotations.as_object().unwrap().keys().collect::<Vec<_>>(), [INSTALL_VALUES]);
    for (id, object) in &mut objects {
        for pointer in ["/metadata/labels", "/spec/template/metadata/labels"] {
            let Some(labels) = object.pointer_mut(pointer) else { continue };
            assert_eq!(labels[MANAGED_BY], "byrnie", "{id} {pointer}");
            labels[MANAGED_BY] = json!("Helm");
        }
    }
    objects
}

fn differences(installed: &Objects, rendered: &Objects) -> Vec<String> {
    let mut found = Vec::new();
    for id in installed.keys().chain(rendered.keys().filter(|id| !installed.contains_key(*id))) {
        let [installed, rendered] = [installed, rendered].map(|objects| objects.get(id).unwrap_or(&Value::Null));
        differ(id, installed, rendered, &mut found);
    }
    found
}

/// One line for each place, however deep, where the two differ.
fn differ(place: &str, installed: &Value, rendered: &Value, found: &mut Vec<String>) {
    match (installed, rendered) {
        (Value::Object(left), Value::Object(right)) => {
            for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
                differ(&format!("{place} .{key}"), &installed[key], &rendered[key], found);
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (number, (left, right)) in left.iter().zip(right).enumerate() {
                differ(&format!("{place}[{number}]"), left, right, found);
            }
        }
        _ if installed == rendered => {}
        _ => found.push(format!("{place}: byrnie install has {installed}, helm {rendered}")),
    }
}
