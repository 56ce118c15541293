//! The labels and annotations by which namespaces and pods say what they want. There is no other list of them.

use std::collections::BTreeMap;

/// On a namespace: [`MESH_ENABLED`] enrols it.
pub const MESH: &str = "byrnie.dev/mesh";

/// The one value of [`MESH`] that enrols.
pub const MESH_ENABLED: &str = "enabled";

/// The value of [`MESH`] by which `byrnie namespace ignore` keeps a namespace out, whatever other labels it has.
pub const MESH_DISABLED: &str = "disabled";

/// Annotation of a pod: [`INJECT_OFF`] keeps the proxy out of it, [`INJECT_ON`] goes before what OSM's annotations say.
pub const INJECT: &str = "byrnie.dev/inject";

/// The value of [`INJECT`] that asks for the proxy.
pub const INJECT_ON: &str = "true";

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

/// Annotation of a pod: the image of its proxy, over MeshConfig's.
pub const PROXY_IMAGE: &str = "byrnie.dev/proxy-image";

/// Annotation of a pod: what its proxy logs.
pub const LOG_LEVEL: &str = "byrnie.dev/log-level";

/// Annotation of a pod: see `TerminationDelay`.
pub const TERMINATION_DELAY: &str = "byrnie.dev/termination-delay-seconds";

/// Annotations of a pod: CPU and memory that its proxy asks for and may have, as Kubernetes quantities.
pub const PROXY_CPU_REQUEST: &str = "byrnie.dev/proxy-cpu-request";
/// See [`PROXY_CPU_REQUEST`].
pub const PROXY_CPU_LIMIT: &str = "byrnie.dev/proxy-cpu-limit";
/// See [`PROXY_CPU_REQUEST`].
pub const PROXY_MEMORY_REQUEST: &str = "byrnie.dev/proxy-memory-request";
/// See [`PROXY_CPU_REQUEST`].
pub const PROXY_MEMORY_LIMIT: &str = "byrnie.dev/proxy-memory-limit";

/// Annotation of a pod: `"true"` lets it share its process namespace with the proxy, which is refused otherwise.
pub const ALLOW_SHARED_PROCESS_NAMESPACE: &str = "byrnie.dev/allow-shared-process-namespace";

/// Annotation that the injector leaves on a pod: the version that injected it.
pub const INJECTED: &str = "byrnie.dev/injected";

/// The init container that puts the capture rules into the pod's network namespace.
pub const CAPTURE_CONTAINER: &str = "byrnie-capture";

/// The native sidecar.
pub const PROXY_CONTAINER: &str = "byrnie-proxy";

/// The volume with the pod's token and the trust bundle.
pub const IDENTITY_VOLUME: &str = "byrnie-identity";

/// The volume (in memory) with the proxy's key and sockets.
pub const STATE_VOLUME: &str = "byrnie-state";

/// Where [`IDENTITY_VOLUME`] is mounted: `token` and `bundle.pem` are in it.
pub const IDENTITY_DIR: &str = "/var/run/secrets/byrnie";

/// Where [`STATE_VOLUME`] is mounted.
pub const STATE_DIR: &str = "/var/run/byrnie";

/// The user that the proxy runs as; the other images have the same.
pub const PROXY_UID: i64 = 1500;

/// The ConfigMap of every enrolled namespace with the roots of the mesh, PEM.
pub const BUNDLE_CONFIG_MAP: &str = "byrnie-trust-bundle";

/// The key of [`BUNDLE_CONFIG_MAP`] with the roots.
pub const BUNDLE_KEY: &str = "bundle.pem";

/// Deployment, Service, ServiceAccount and Lease of the control plane.
pub const CONTROL_PLANE: &str = "byrnie-control-plane";

/// Where proxies reach the control plane, TCP.
pub const CONTROL_PLANE_PORT: u16 = 15_128;

/// Deployment, Service, ServiceAccount and both webhook configurations of the injector.
pub const INJECTOR: &str = "byrnie-injector";

/// The Secret with the mesh's root, in [`SYSTEM_NAMESPACE`].
pub const CA_SECRET: &str = "byrnie-ca";

/// The Secret (`kubernetes.io/tls`) with the injector's serving certificate, in [`SYSTEM_NAMESPACE`].
pub const INJECTOR_SECRET: &str = "byrnie-injector-tls";

/// The Secret (`kubernetes.io/tls`) with an ingress controller's client certificate, in the controller's namespace,
/// where MeshConfig names no other.
pub const INGRESS_SECRET: &str = "byrnie-ingress-client";

/// Label of everything that the control plane makes: [`MANAGED`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The value of [`MANAGED_BY`].
pub const MANAGED: &str = "byrnie";

/// Annotation of the control plane's Lease: the replica that waits for it while one of an older version holds it.
pub const WANTED_BY: &str = "byrnie.dev/wanted-by";

/// OSM's: on a namespace, the name of the mesh that monitors it; enrols it where MeshConfig adopts that name.
pub const OSM_MONITORED_BY: &str = "openservicemesh.io/monitored-by";

/// OSM's: annotation of a namespace or pod, `enabled` or `disabled`.
pub const OSM_INJECTION: &str = "openservicemesh.io/sidecar-injection";

/// OSM's: annotation of a pod, read as [`EXCLUDE_INBOUND_PORTS`] is.
pub const OSM_EXCLUDE_INBOUND_PORTS: &str = "openservicemesh.io/inbound-port-exclusion-list";

/// OSM's: annotation of a pod, read as [`EXCLUDE_OUTBOUND_PORTS`] is.
pub const OSM_EXCLUDE_OUTBOUND_PORTS: &str = "openservicemesh.io/outbound-port-exclusion-list";

/// OSM's: annotation of a pod, read as [`EXCLUDE_OUTBOUND_CIDRS`] is.
pub const OSM_EXCLUDE_OUTBOUND_CIDRS: &str = "openservicemesh.io/outbound-ip-range-exclusion-list";

/// OSM's: annotation of a pod that would leave everything else uncaptured. It is not followed: it could only open.
pub const OSM_INCLUDE_OUTBOUND_CIDRS: &str = "openservicemesh.io/outbound-ip-range-inclusion-list";

/// The audience to which the ServiceAccount token of a proxy is bound.
pub const TOKEN_AUDIENCE: &str = "byrnie.dev/ca";

/// The namespace of Byrnie's own workloads.
pub const SYSTEM_NAMESPACE: &str = "byrnie-system";

/// The namespaces that are never in the mesh: what they run must come up before any proxy can.
pub const NEVER_ENROLLED: [&str; 2] = ["kube-system", SYSTEM_NAMESPACE];

/// Whether a namespace with these labels is in the mesh: by [`MESH`], or by [`OSM_MONITORED_BY`] with one of the
/// `adopted_meshes` (`MeshSettings::adopted_meshes`). Those of [`NEVER_ENROLLED`] never are.
pub fn is_enrolled(namespace: &str, labels: &BTreeMap<String, String>, adopted_meshes: &[String]) -> bool {
    let says_so = match labels.get(MESH).map(String::as_str) {
        Some(MESH_ENABLED) => true,
        Some(MESH_DISABLED) => false,
        _ => labels.get(OSM_MONITORED_BY).is_some_and(|name| adopted_meshes.contains(name)),
    };
    says_so && !NEVER_ENROLLED.contains(&namespace)
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
        assert!(is_enrolled("shop", &one(MESH, "enabled"), &[]));
        assert!(!is_enrolled("shop", &one(MESH, "disabled"), &[]));
        assert!(!is_enrolled("shop", &BTreeMap::new(), &[]));
    }

    #[test]
    fn another_meshs_label_enrols_where_that_mesh_is_adopted() {
        let adopted = ["osm".to_owned()];
        assert!(is_enrolled("shop", &one(OSM_MONITORED_BY, "osm"), &adopted));
        assert!(!is_enrolled("shop", &one(OSM_MONITORED_BY, "osm-2"), &adopted));
        assert!(!is_enrolled("shop", &one(OSM_MONITORED_BY, "osm"), &[]));
        let mut ignored = one(OSM_MONITORED_BY, "osm");
        ignored.insert(MESH.to_owned(), MESH_DISABLED.to_owned());
        assert!(!is_enrolled("shop", &ignored, &adopted));
    }

    #[test]
    fn the_namespaces_that_bring_the_mesh_up_are_never_enrolled() {
        for namespace in NEVER_ENROLLED {
            assert!(!is_enrolled(namespace, &one(MESH, "enabled"), &[]));
            assert!(!is_enrolled(namespace, &one(OSM_MONITORED_BY, "osm"), &["osm".to_owned()]));
        }
    }

    #[test]
    fn a_pod_has_a_proxy_unless_it_says_false() {
        assert!(is_injected(&BTreeMap::new()));
        assert!(is_injected(&one(INJECT, "true")));
        assert!(!is_injected(&one(INJECT, "false")));
    }
}
