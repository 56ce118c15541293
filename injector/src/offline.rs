//! The same injection without a cluster: into pods and into what makes pods, as files hold them.

use std::borrow::Cow;

use byrnie_api::Problem;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::inject::{NamespaceFacts, Outcome, Settings, graft, inject};
use crate::nonce;

/// What became of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// `Kind namespace/name`.
    pub object: String,
    /// What became of it.
    pub fate: Fate,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It makes pods with a proxy now.
    Injected,
    /// It makes pods, and stays as it is; why.
    PassedBy(String),
    /// It makes no pods.
    MakesNoPods,
    /// It can't work in the mesh, or is not understood.
    Refused(Vec<Problem>),
}

/// Injects into an object, or into every object of a list. Namespaces are taken to be in the mesh by our label.
pub fn inject_object(object: &mut Value, settings: &Settings) -> Vec<Report> {
    if let Some(items) = items(object) {
        // A list in a list is nothing that Kubernetes knows.
        return items.iter_mut().map(|item| inject_one(item, settings)).collect();
    }
    vec![inject_one(object, settings)]
}

fn items(object: &mut Value) -> Option<&mut Vec<Value>> {
    let is_list = text(object, "kind").is_some_and(|kind| kind.ends_with("List"));
    object.get_mut("items").filter(|_| is_list)?.as_array_mut()
}

fn inject_one(object: &mut Value, settings: &Settings) -> Report {
    let metadata = |field: &str| object.get("metadata").and_then(|metadata| text(metadata, field));
    let namespace = metadata("namespace").unwrap_or("default").to_owned();
    let name = metadata("name").or(metadata("generateName")).unwrap_or("(without a name)");
    let kind = text(object, "kind").unwrap_or("(without a kind)");
    let report = Report { object: format!("{kind} {namespace}/{name}"), fate: Fate::MakesNoPods, warnings: Vec::new() };
    let Some(place) = template(object) else { return report };
    let Some(template) = object.pointer_mut(place) else {
        let problem = Problem::new(field_of(place), "the template of a pod", "nothing");
        return Report { fate: Fate::Refused(vec![problem]), ..report };
    };
    let facts = NamespaceFacts::enrolled(&namespace);
    let pod = match read(template) {
        Ok(pod) => pod,
        Err(error) => {
            let problem = Problem::new(field_of(place), "a pod", error.to_string());
            return Report { fate: Fate::Refused(vec![problem]), ..report };
        }
    };
    let nonce =
        nonce::new().map_err(|reason| vec![Problem::new("object", "random bytes for the pod's probes", reason)]);
    match nonce.and_then(|nonce| inject(&pod, &facts, settings, nonce)) {
        Ok(Outcome::Injected { pod, warnings }) => {
            *template = graft(template, &pod);
            Report { fate: Fate::Injected, warnings, ..report }
        }
        Ok(Outcome::PassedBy(reason)) => Report { fate: Fate::PassedBy(reason.to_string()), ..report },
        Err(mut problems) => {
            for problem in &mut problems {
                problem.path = format!("{}{}", prefix(place), problem.path);
            }
            Report { fate: Fate::Refused(problems), ..report }
        }
    }
}

/// Where the pod stands in what makes it, as a JSON pointer; `None`: it makes none.
fn template(object: &Value) -> Option<&'static str> {
    let group = text(object, "apiVersion")?.rsplit_once('/').map_or("", |(group, _)| group);
    match (group, text(object, "kind")?) {
        ("", "Pod") => Some(""),
        ("", "ReplicationController" | "PodTemplate")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn field_of(place: &str) -> Cow<'static, str> {
    if place.is_empty() { Cow::Borrowed("object") } else { Cow::Owned(place.trim_start_matches('/').replace('/', ".")) }
}

fn prefix(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!("{}.", field_of(place)) }
}

/// Amounts may be written as numbers in files; the API server makes texts of them, and our types know texts only.
fn read(template: &Value) -> Result<Pod, serde_json::Error> {
    let mut pod = json!({"metadata": template.get("metadata"), "spec": template.get("spec")});
    amounts_as_text(&mut pod);
    Pod::deserialize(&pod)
}

fn amounts_as_text(value: &mut Value) {
    const GROUPS: [&str; 5] = ["limits", "requests", "overhead", "capacity", "allocatedResources"];
    const SINGLE: [&str; 2] = ["sizeLimit", "divisor"];
    match value {
        Value::Array(items) => items.iter_mut().for_each(amounts_as_text),
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Number(number) if SINGLE.contains(&name.as_str()) => {
                        *value = Value::from(number.to_string())
                    }
                    Value::Object(amounts) if GROUPS.contains(&name.as_str()) => {
                        for amount in amounts.values_mut().filter(|amount| amount.is_number()) {
                            *amount = Value::from(amount.to_string());
                        }
                    }
                    other => amounts_as_text(other),
                }
            }
        }
        _ => {}
    }
}

fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field).and_then(Value::as_str)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use byrnie_api::labels;

    use super::*;
    use crate::inject::tests::settings;

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                {"name": "web", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}},
            ], "volumes": [{"name": "x", "emptyDir": {"sizeLimit": 1024}}]}}},
        })
    }

    fn fate(object: &mut Value) -> Fate {
        inject_object(object, &settings()).remove(0).fate
    }

    #[test]
    fn everything_that_makes_pods_is_injected_where_its_pods_are_described() {
        let template = deployment()["spec"]["template"].clone();
        for (api_version, kind, place) in [
            ("v1", "Pod", ""),
            ("apps/v1", "Deployment", "/spec/template"),
            ("apps/v1", "StatefulSet", "/spec/template"),
            ("apps/v1", "DaemonSet", "/spec/template"),
            ("apps/v1", "ReplicaSet", "/spec/template"),
            ("batch/v1", "Job", "/spec/template"),
            ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
        ] {
            let mut object = match place {
                "" => template.clone(),
                "/spec/template" => json!({"spec": {"template": template}}),
                _ => json!({"spec": {"jobTemplate": {"spec": {"template": template}}}}),
            };
            object["apiVersion"] = json!(api_version);
            object["kind"] = json!(kind);
            assert_eq!(fate(&mut object), Fate::Injected, "{kind}");
            let annotations = object.pointer(place).unwrap()["metadata"]["annotations"].clone();
            assert!(annotations[labels::INJECTED].is_string(), "{kind}");
            assert_eq!(fate(&mut object), Fate::PassedBy("it has the proxy already, in this form".to_owned()));
        }
    }

    #[test]
    fn what_an_injection_does_not_touch_stays_as_it_was_written() {
        let mut object = deployment();
        assert_eq!(fate(&mut object), Fate::Injected);
        let spec = &object["spec"]["template"]["spec"];
        assert_eq!(spec["containers"][0]["resources"]["limits"]["cpu"], json!(1));
        assert_eq!(spec["volumes"][0]["emptyDir"]["sizeLimit"], json!(1024));
        assert_eq!(object["metadata"], deployment()["metadata"]);
    }

    #[test]
    fn a_list_is_gone_through_and_the_rest_passes() {
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}});
        let foreign = json!({"apiVersion": "example.com/v1", "kind": "Deployment", "metadata": {"name": "x"}});
        let mut list = json!({"apiVersion": "v1", "kind": "List", "items": [service, deployment(), foreign]});
        let reports = inject_object(&mut list, &settings());
        let fates: Vec<_> = reports.iter().map(|report| &report.fate).collect();
        assert_eq!(fates, [&Fate::MakesNoPods, &Fate::Injected, &Fate::MakesNoPods]);
        assert_eq!(reports[1].object, "Deployment shop/web");
    }

    #[test]
    fn a_refusal_names_the_place_within_the_whole_object() {
        let mut object = deployment();
        object["spec"]["template"]["spec"]["shareProcessNamespace"] = json!(true);
        let before = object.clone();
        let Fate::Refused(problems) = fate(&mut object) else { unreachable!("not refused") };
        assert_eq!(problems[0].path, "spec.template.spec.shareProcessNamespace");
        assert_eq!(object, before);
        for broken in [json!({"spec": {}}), json!({"spec": {"template": {"spec": {"containers": 1}}}}), json!({})] {
            let mut object = broken;
            object["apiVersion"] = json!("apps/v1");
            object["kind"] = json!("Deployment");
            assert!(matches!(fate(&mut object), Fate::Refused(_)));
        }
    }
}
