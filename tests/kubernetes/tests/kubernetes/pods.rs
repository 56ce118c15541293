//! Pods as tests describe them.

use serde_json::{Value, json};

/// The names of a pod's init containers, in their order.
pub(crate) fn init_containers(pod: &Value) -> Vec<String> {
    let containers = pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
    containers.iter().map(|container| container["name"].as_str().unwrap().to_owned()).collect()
}

/// Fields that the injector is to find in a pod's annotations.
pub(crate) fn annotated(name: &str, value: &str) -> Value {
    json!({ "metadata": { "annotations": { name: value } } })
}
