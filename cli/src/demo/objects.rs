//! The objects of the demo's mesh, as an operator would write them: the control plane reads them from a directory.

use std::io;
use std::path::Path;

use byrnie_netlab::LabNetworks;

use super::topology::{self, CONTROL_PLANE, INGRESS, ORDERS, PARTNER, PODS, PORT, Pod, STOCK, TRUST_DOMAIN, WEB};

/// Writes all of them.
pub(super) fn write(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, text) in [("mesh.yaml", mesh()), ("workloads.yaml", workloads()), ("policies.yaml", policies())] {
        std::fs::write(dir.join(name), text)?;
    }
    Ok(())
}

fn mesh() -> String {
    let networks = LabNetworks::default();
    let (ingress_namespace, ingress_account) = INGRESS.parts();
    format!(
        "apiVersion: byrnie.dev/v1alpha1
kind: MeshConfig
metadata: {{ name: default }}
spec:
  trustDomain: {TRUST_DOMAIN}
  svidTtl: 24h
  mtls: {{ floor: Strict }}
  egress: {{ default: Deny }}
  networks:
    podCIDRs: [\"{}\", \"{}\"]
  ingressCertificates:
  - {{ namespace: {ingress_namespace}, serviceAccount: {ingress_account} }}
---
apiVersion: v1
kind: Namespace
metadata: {{ name: shop, labels: {{ byrnie.dev/mesh: enabled }} }}
---
apiVersion: v1
kind: Namespace
metadata: {{ name: ingress }}
---
apiVersion: v1
kind: Namespace
metadata: {{ name: legacy }}
",
        networks.pods_v4, networks.pods_v6
    )
}

fn workloads() -> String {
    let pods = PODS.into_iter().filter(|pod| *pod != CONTROL_PLANE);
    pods.map(workload).collect()
}

fn workload(pod: Pod) -> String {
    let (namespace, name) = pod.parts();
    let [v4, v6] = pod.addresses();
    format!(
        "---
apiVersion: v1
kind: ServiceAccount
metadata: {{ namespace: {namespace}, name: {name} }}
---
apiVersion: v1
kind: Pod
metadata: {{ namespace: {namespace}, name: {name}, labels: {{ app: {name} }} }}
spec:
  serviceAccountName: {name}
  containers:
  - {{ name: app, image: none, ports: [{{ containerPort: {PORT} }}] }}
status:
  phase: Running
  podIP: \"{v4}\"
  podIPs: [{{ ip: \"{v4}\" }}, {{ ip: \"{v6}\" }}]
  conditions: [{{ type: Ready, status: \"True\" }}]
---
apiVersion: v1
kind: Service
metadata: {{ namespace: {namespace}, name: {name} }}
spec:
  clusterIP: None
  selector: {{ app: {name} }}
  ports: [{{ name: http, port: {PORT}, targetPort: {PORT}, appProtocol: http }}]
"
    )
}

fn policies() -> String {
    let [partner_v4, partner_v6] = PARTNER.addresses();
    let (_, stock) = STOCK.parts();
    format!(
        "{}{}---
apiVersion: byrnie.dev/v1alpha1
kind: IngressPolicy
metadata: {{ namespace: shop, name: from-ingress }}
spec:
  selector: {{ matchLabels: {{ app: {} }} }}
  ports: [{PORT}]
  principals: [\"{}\"]
---
apiVersion: byrnie.dev/v1alpha1
kind: EgressPolicy
metadata: {{ namespace: shop, name: to-partner }}
spec:
  serviceAccounts: [{stock}]
  to:
  - {{ cidrs: [\"{partner_v4}/32\", \"{partner_v6}/128\"], ports: [{PORT}] }}
",
        allow(ORDERS, WEB),
        allow(STOCK, ORDERS),
        WEB.parts().1,
        INGRESS.spiffe_id(),
    )
}

/// Only `from` may call `to`.
fn allow(to: Pod, from: Pod) -> String {
    let (namespace, name) = to.parts();
    let (_, caller) = from.parts();
    format!(
        "---
apiVersion: byrnie.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{ namespace: {namespace}, name: {name} }}
spec:
  selector: {{ matchLabels: {{ app: {name} }} }}
  action: Allow
  rules:
  - from: [{{ serviceAccount: {caller} }}]
    to: [{{ ports: [{}] }}]
",
        topology::PORT
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_object_of_ours_is_one_that_the_mesh_takes() {
        for text in [mesh(), workloads(), policies()] {
            for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
                let value: serde_json::Value = serde_saphyr::from_str(document).unwrap();
                if value["apiVersion"].as_str().is_some_and(byrnie_api::is_ours) {
                    byrnie_api::parse(value).unwrap();
                }
            }
        }
    }
}
