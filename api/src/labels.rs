//! The labels and annotations by which namespaces and pods say what they want. There is no other list of them.

use std::collections::BTreeMap;

/// On a namespace: [`MESH_ENABLED`] enrols it.
pub const MESH: &str = "byrnie.dev/mesh";

/// The one value of [`MESH`] that enrols.
pub const MESH_ENABLED: &str = "enabled";

/// Annotation of a pod: [`INJECT_OFF`] keeps the proxy out of it.
pub const INJECT: &str = "byrnie.dev/inject";

/// The one value of [`INJECT`] that keeps the proxy out.
pub const INJECT_OFF: &str = "false";

/// Annotation of a pod: ports, separated by commas, whose incoming connections are not captured.
pub const EXCLUDE_INBOUND_PORTS: &str = "byrnie.dev/exclude-inbound-ports";

/// Annotation of a pod: ports, separated by commas, to which outgoing connections are not captured.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "byrnie.dev/exclude-outbound-ports";

/// Annotation of a pod: networks, separated by commas, to which outgoing connections are not captured.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "byrnie.dev/exclude-outbound-cidrs";

/// Annotation of a pod: user IDs, separated by commas, whose outgoing connections are not captured.
pub const EXCLUDE_UIDS: &str = "byrnie.dev/exclude-uids";

/// Annotation of a pod: network interfaces, separated by commas, whose connections are not captured.
pub const EXCLUDE_INTERFACES: &str = "byrnie.dev/exclude-interfaces";

/// The audience to which the ServiceAccount token of a proxy is bound.
pub const TOKEN_AUDIENCE: &str = "byrnie.dev/ca";

/// The namespace of Byrnie's own workloads.
pub const SYSTEM_NAMESPACE: &str = "byrnie-system";

/// Whether a namespace with these labels is in the mesh.
///
/// `kube-system` and Byrnie's own namespace never are: what they run must come up before any proxy can.
pub fn is_enrolled(namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    namespace != "kube-system"
        && namespace != SYSTEM_NAMESPACE
        && labels.get(MESH).is_some_and(|value| value == MESH_ENABLED)
}

/// Whether a pod of an enrolled namespace is to have a proxy.
pub fn is_injected(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(INJECT).is_none_or(|value| value != INJECT_OFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn a_namespace_is_enrolled_by_its_label_and_by_that_value_only() {
        assert!(is_enrolled("shop", &one(MESH, "enabled")));
        assert!(!is_enrolled("shop", &one(MESH, "disabled")));
        assert!(!is_enrolled("shop", &BTreeMap::new()));
    }

    #[test]
    fn the_namespaces_that_bring_the_mesh_up_are_never_enrolled() {
        assert!(!is_enrolled("kube-system", &one(MESH, "enabled")));
        assert!(!is_enrolled(SYSTEM_NAMESPACE, &one(MESH, "enabled")));
    }

    #[test]
    fn a_pod_has_a_proxy_unless_it_says_false() {
        assert!(is_injected(&BTreeMap::new()));
        assert!(is_injected(&one(INJECT, "true")));
        assert!(!is_injected(&one(INJECT, "false")));
    }
}
