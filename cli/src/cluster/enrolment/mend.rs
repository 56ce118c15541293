//! The commands and objects that mend what [`super::look`] finds.

use byrnie_api::labels::{CONTROL_PLANE_PORT, EXCLUDE_INBOUND_PORTS, OSM_EXCLUDE_INBOUND_PORTS, SYSTEM_NAMESPACE};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::cluster::pods::is_finished;

/// The port of the pods behind a Service's port, and the workload that they are of, as kubectl names it.
pub(super) fn behind(service: &Service, port: i32, pods: &[Pod]) -> (Option<i32>, Option<String>) {
    let Some(spec) = &service.spec else {
        return (None, None);
    };
    let pod = selected(service, pods).next();
    let target = spec
        .ports
        .iter()
        .flatten()
        .find(|each| each.port == port)
        .map(|each| each.target_port.clone().unwrap_or(IntOrString::Int(each.port)));
    let number = match target {
        Some(IntOrString::Int(number)) => Some(number),
        Some(IntOrString::String(name)) => {
            let containers = pod.and_then(|pod| pod.spec.as_ref()).into_iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|each| each.name.as_deref() == Some(name.as_str())).map(|each| each.container_port)
        }
        None => None,
    };
    (number, pod.and_then(workload))
}

/// Whether every pod behind a Service has that port out of the mesh, by [`exclude_inbound`] or otherwise. Without pods
/// nothing is known.
pub(super) fn is_excluded(service: &Service, port: i32, pods: &[Pod]) -> bool {
    let is_named = |pod: &Pod| {
        let listed = [EXCLUDE_INBOUND_PORTS, OSM_EXCLUDE_INBOUND_PORTS].map(|key| pod.annotations().get(key));
        let mut ports = listed.into_iter().flatten().flat_map(|list| list.split(','));
        ports.any(|each| each.trim().parse() == Ok(port))
    };
    let mut behind = selected(service, pods).filter(|pod| !is_finished(pod)).peekable();
    behind.peek().is_some() && behind.all(is_named)
}

/// The pods behind a Service.
fn selected<'a>(service: &Service, pods: &'a [Pod]) -> impl Iterator<Item = &'a Pod> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
    pods.iter().filter(move |pod| {
        !selector.is_empty() && selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
    })
}

/// The workload that a pod is of: `deployment/web`. `None` for one that nobody makes anew.
pub(crate) fn workload(pod: &Pod) -> Option<String> {
    let owner = pod.owner_references().first()?;
    match owner.kind.as_str() {
        // A ReplicaSet of a Deployment is named after it, with a hash.
        "ReplicaSet" => Some(match owner.name.rsplit_once('-') {
            Some((deployment, _)) => format!("deployment/{deployment}"),
            None => format!("replicaset/{}", owner.name),
        }),
        kind => Some(format!("{}/{}", kind.to_ascii_lowercase(), owner.name)),
    }
}

/// Lets connections to one port reach the application without the proxy.
pub(super) fn exclude_inbound(namespace: &str, workload: &str, port: i32) -> String {
    let annotations = format!("{{\"byrnie.dev/exclude-inbound-ports\":\"{port}\"}}");
    let patch = format!("{{\"spec\":{{\"template\":{{\"metadata\":{{\"annotations\":{annotations}}}}}}}}}");
    format!("kubectl -n {namespace} patch {workload} --type merge -p '{patch}'")
}

/// Lets every pod of the namespace out to the control plane and to DNS.
pub(super) fn network_policy(namespace: &str) -> String {
    format!(
        "kubectl apply -f - <<'EOF'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-byrnie
  namespace: {namespace}
spec:
  podSelector: {{}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {SYSTEM_NAMESPACE}
    ports:
    - port: {CONTROL_PLANE_PORT}
  - ports:
    - port: 53
      protocol: UDP
    - port: 53
EOF"
    )
}

/// Lets plaintext reach the pods behind a Service, by port, for a time.
pub(super) fn permissive(namespace: &str, service: &Service) -> String {
    let spec = service.spec.as_ref();
    let labels = spec.and_then(|spec| spec.selector.as_ref()).into_iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("\n      {key}: {value:?}")).collect();
    let selector = if labels.is_empty() { String::new() } else { format!("  selector:\n    matchLabels:{labels}\n") };
    format!(
        "give the client a certificate of the mesh (IngressPolicy, docs/install.md); or, in plaintext:
kubectl apply -f - <<'EOF'
apiVersion: byrnie.dev/v1alpha1
kind: MtlsPolicy
metadata:
  name: {}-outside
  namespace: {namespace}
spec:
{selector}  mode: Permissive
EOF",
        service.name_any()
    )
}
