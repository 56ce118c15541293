use std::collections::BTreeSet;

use byrnie_api::labels::{CONTROL_PLANE, INJECTOR};
use serde_json::Value;

use super::*;

fn value(manifest: &Manifest) -> Value {
    serde_json::to_value(&manifest.object).unwrap()
}

fn repository() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn find(kind: &str, name: &str) -> Value {
    let objects = objects(&Values::default());
    let found = objects.iter().find(|object| object.kind() == kind && object.name() == name);
    value(found.unwrap_or_else(|| panic!("{kind} {name}")))
}

/// The definitions are in the chart, word for word, and reviewed there.
#[test]
fn the_objects_are_those_of_the_snapshot() {
    let values = Values { ingress_secrets: vec!["nginx-client".to_owned()], ..Values::default() };
    let objects: Vec<Manifest> =
        objects(&values).into_iter().filter(|object| object.kind() != "CustomResourceDefinition").collect();
    insta::assert_snapshot!(chart::documents(&objects).unwrap());
}

#[test]
fn the_chart_in_the_repository_is_the_one_that_is_written_now() {
    for (path, text) in chart::files().unwrap() {
        let there = std::fs::read_to_string(repository().join(chart::DIR).join(path)).unwrap_or_default();
        assert!(there == text, "{path} is not up to date: cargo run -p byrnie-cli -- generate .");
    }
}

#[test]
fn the_page_on_permissions_has_the_table_of_what_is_granted() {
    let page = std::fs::read_to_string(repository().join(rbac::PAGE)).unwrap_or_default();
    assert!(page.contains(&rbac::table()), "{} is not up to date: cargo run -p byrnie-cli -- generate .", rbac::PAGE);
}

#[test]
fn every_object_says_whose_it_is_of_what_version_and_that_it_is_of_the_installation() {
    for object in objects(&Values::default()) {
        let labels = object.object.metadata.labels.clone().unwrap();
        assert_eq!(labels[MANAGED_BY], "byrnie", "{object}");
        assert_eq!(labels[PART_OF], "byrnie", "{object}");
        assert_eq!(labels[VERSION_LABEL], env!("CARGO_PKG_VERSION"), "{object}");
    }
}

#[test]
fn no_two_objects_are_one() {
    let objects = objects(&Values::default());
    let names: BTreeSet<String> = objects.iter().map(|object| format!("{} {object}", object.resource.group)).collect();
    assert_eq!(names.len(), objects.len());
}

#[test]
fn nothing_may_be_done_with_everything() {
    for grant in rbac::GRANTS {
        for text in grant.resources.iter().chain(grant.verbs).chain([&grant.group]) {
            assert!(!text.contains('*'), "{grant:?}");
        }
        let secrets = grant.resources.contains(&"secrets");
        let nothing_read = grant.verbs == ["create"] && !grant.everywhere;
        assert!(!secrets || !grant.names.is_empty() || nothing_read, "{grant:?}");
    }
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, "Restricted".
#[test]
fn our_own_pods_meet_the_restricted_standard_and_write_nowhere() {
    for name in [CONTROL_PLANE, INJECTOR] {
        let pod = &find("Deployment", name)["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["capabilities"]["drop"][0], "ALL");
        assert!(container["capabilities"]["add"].is_null());
        assert_eq!(
            find("Namespace", "byrnie-system")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"],
            "restricted"
        );
    }
}

#[test]
fn a_dead_injector_can_stop_neither_the_system_nor_itself() {
    let mutating = find("MutatingWebhookConfiguration", INJECTOR);
    for webhook in mutating["webhooks"].as_array().unwrap() {
        assert_eq!(webhook["failurePolicy"], "Fail");
        let selector = webhook["namespaceSelector"]["matchExpressions"].as_array().unwrap();
        let spared =
            selector.iter().find(|each| each["operator"] == "NotIn" && each["key"] == "kubernetes.io/metadata.name");
        assert_eq!(spared.unwrap()["values"], serde_json::json!(["kube-system", "byrnie-system"]));
        assert!(selector.iter().any(|each| each["operator"] != "NotIn"), "only namespaces that are enrolled");
    }
    let validating = find("ValidatingWebhookConfiguration", INJECTOR);
    let namespaces = &validating["webhooks"][1];
    assert_eq!(namespaces["name"], "namespaces.byrnie.dev");
    assert_eq!(namespaces["matchConditions"].as_array().unwrap().len(), 2);
}

/// What the expressions do is for the API server to say; here: that they are asked for whatever can change a pod's programs.
#[test]
fn what_can_change_a_meshed_pods_programs_is_looked_at_and_denied() {
    let spec = &find("ValidatingAdmissionPolicy", "byrnie-proxy")["spec"];
    let rule = &spec["matchConstraints"]["resourceRules"][0];
    assert_eq!(rule["resources"], serde_json::json!(["pods", "pods/ephemeralcontainers"]));
    assert_eq!(rule["operations"], serde_json::json!(["UPDATE"]));
    assert_eq!(spec["matchConditions"].as_array().unwrap().len(), 1);
    let binding = &find("ValidatingAdmissionPolicyBinding", "byrnie-proxy")["spec"];
    assert_eq!(binding["policyName"], "byrnie-proxy");
    assert_eq!(binding["validationActions"], serde_json::json!(["Deny"]));
}

#[test]
fn the_ca_bundle_is_the_control_planes_to_write() {
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        for webhook in find(kind, INJECTOR)["webhooks"].as_array().unwrap() {
            assert!(webhook["clientConfig"].get("caBundle").is_none(), "{kind}");
        }
    }
}

#[test]
fn another_name_of_an_ingress_controllers_secret_is_granted_by_that_name_alone() {
    let values = Values { ingress_secrets: vec!["nginx-client".to_owned()], ..Values::default() };
    let [role, binding] = rbac::ingress_secrets(&values).try_into().unwrap();
    assert_eq!(value(&role)["rules"].as_array().unwrap().len(), 1);
    assert_eq!(value(&role)["rules"][0]["resourceNames"], serde_json::json!(["nginx-client"]));
    assert_eq!(value(&binding)["subjects"][0]["name"], CONTROL_PLANE);
    assert!(rbac::ingress_secrets(&Values::default()).is_empty());
}

#[test]
fn the_replicas_are_placeholders_in_the_chart_and_nothing_else_of_them_is_left() {
    for (path, text) in chart::files().unwrap() {
        assert!(!text.contains("77000"), "{path}");
    }
}
