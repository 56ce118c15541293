//! Whether a pod of an enrolled namespace is to have a proxy, by our annotations and by those of Open Service Mesh; and
//! whether it has one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use crate::problem::quote;
use crate::{Problem, labels};

/// Whether a pod is to have a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injection {
    /// It is.
    Wanted,
    /// It is not, and why: the annotation that says so, or that is not there.
    Unwanted(String),
}

/// What the annotations say, for a pod of a namespace that [`labels::is_enrolled`] holds to be in the mesh.
///
/// The pod's word goes before its namespace's, and ours before Open Service Mesh's. A namespace with our label has
/// proxies in all pods; one that is enrolled by OSM's label alone only where OSM's annotation asks for them, as in OSM.
///
/// # Errors
/// A value that is neither of those that may stand there: nobody knows then what was meant.
pub fn injection(
    namespace_labels: &BTreeMap<String, String>,
    namespace_annotations: &BTreeMap<String, String>,
    pod_annotations: &BTreeMap<String, String>,
) -> Result<Injection, Problem> {
    match pod_annotations.get(labels::INJECT).map(String::as_str) {
        Some(labels::INJECT_ON) => return Ok(Injection::Wanted),
        Some(labels::INJECT_OFF) => return Ok(unwanted("the pod's annotation", labels::INJECT, labels::INJECT_OFF)),
        Some(other) => {
            let path = format!("metadata.annotations[{}]", labels::INJECT);
            return Err(Problem::new(path, "`true` or `false`", quote(other)));
        }
        None => {}
    }
    if let Some(value) = pod_annotations.get(labels::OSM_INJECTION) {
        return osm("metadata.annotations", "the pod's annotation", value);
    }
    if namespace_labels.get(labels::MESH).is_some_and(|value| value == labels::MESH_ENABLED) {
        return Ok(Injection::Wanted);
    }
    match namespace_annotations.get(labels::OSM_INJECTION) {
        Some(value) => osm("the namespace's metadata.annotations", "the namespace's annotation", value),
        None => Ok(Injection::Unwanted(format!(
            "neither the pod nor its namespace has the annotation {}: enabled, which a namespace needs that is in the \
             mesh by the label {}",
            labels::OSM_INJECTION,
            labels::OSM_MONITORED_BY
        ))),
    }
}

/// Whether the proxy was injected: the pod has both of our containers, and the API server lets nobody change that. Whoever
/// writes them by hand is called with TLS, or not at all.
pub fn is_meshed(spec: &PodSpec) -> bool {
    let mut containers = spec.init_containers.iter().flatten();
    let proxy = |container: &Container| {
        container.name == labels::PROXY_CONTAINER && container.restart_policy.as_deref() == Some("Always")
    };
    containers.clone().any(proxy) && containers.any(|container| container.name == labels::CAPTURE_CONTAINER)
}

/// The values that OSM's own injector took, in whatever case.
fn osm(path: &str, whose: &str, value: &str) -> Result<Injection, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "enabled" | "yes" | "true" => Ok(Injection::Wanted),
        "disabled" | "no" | "false" => Ok(unwanted(whose, labels::OSM_INJECTION, value)),
        _ => {
            let path = format!("{path}[{}]", labels::OSM_INJECTION);
            Err(Problem::new(path, "`enabled` or `disabled`", quote(value)))
        }
    }
}

fn unwanted(whose: &str, annotation: &str, value: &str) -> Injection {
    Injection::Unwanted(format!("{whose} {annotation}: {value}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn a_pod_is_meshed_by_both_containers() {
        let container = |name: &str, restart: Option<&str>| Container {
            name: name.to_owned(),
            restart_policy: restart.map(str::to_owned),
            ..Container::default()
        };
        let with = |containers: Vec<Container>| PodSpec { init_containers: Some(containers), ..PodSpec::default() };
        let (capture, proxy) = (container("byrnie-capture", None), container("byrnie-proxy", Some("Always")));
        assert!(is_meshed(&with(vec![capture.clone(), proxy.clone()])));
        assert!(is_meshed(&with(vec![proxy.clone(), capture.clone()])));
        assert!(!is_meshed(&with(vec![capture.clone()])));
        assert!(!is_meshed(&with(vec![proxy])));
        assert!(!is_meshed(&with(vec![capture, container("byrnie-proxy", None)])));
        assert!(!is_meshed(&PodSpec::default()));
    }

    fn nothing() -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    fn wanted(
        labels: &BTreeMap<String, String>,
        namespace: &BTreeMap<String, String>,
        pod: &BTreeMap<String, String>,
    ) -> bool {
        injection(labels, namespace, pod).unwrap() == Injection::Wanted
    }

    #[test]
    fn our_label_puts_a_proxy_into_every_pod_that_does_not_say_no() {
        let ours = one(labels::MESH, "enabled");
        assert!(wanted(&ours, &nothing(), &nothing()));
        assert!(wanted(&ours, &one(labels::OSM_INJECTION, "disabled"), &nothing()));
        assert!(!wanted(&ours, &nothing(), &one(labels::INJECT, "false")));
        assert!(!wanted(&ours, &nothing(), &one(labels::OSM_INJECTION, "disabled")));
    }

    #[test]
    fn osms_label_needs_osms_annotation_and_the_pods_goes_before_the_namespaces() {
        let osm = one(labels::OSM_MONITORED_BY, "osm");
        let (on, off) = (one(labels::OSM_INJECTION, "Enabled"), one(labels::OSM_INJECTION, "no"));
        assert!(!wanted(&osm, &nothing(), &nothing()));
        assert!(wanted(&osm, &on, &nothing()));
        assert!(wanted(&osm, &nothing(), &on));
        assert!(!wanted(&osm, &on, &off));
        assert!(wanted(&osm, &off, &one(labels::INJECT, "true")));
    }

    #[test]
    fn a_value_that_nobody_understands_is_no_answer() {
        let ours = one(labels::MESH, "enabled");
        let problem = injection(&ours, &nothing(), &one(labels::INJECT, "flase")).unwrap_err();
        assert_eq!(
            problem.to_string(),
            "metadata.annotations[byrnie.dev/inject]: expected `true` or `false`, found `flase`"
        );
        let osm = one(labels::OSM_MONITORED_BY, "osm");
        assert!(injection(&osm, &one(labels::OSM_INJECTION, "on"), &nothing()).is_err());
    }
}
