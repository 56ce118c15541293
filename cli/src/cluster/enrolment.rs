//! Which namespaces are in the mesh, and what enrolling one would break.

mod look;
mod mend;

use std::collections::BTreeMap;

use byrnie_api::labels::{MESH, MESH_DISABLED, is_enrolled};
use byrnie_api::{MESH_CONFIG_NAME, MeshConfig};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde::Serialize;

use super::{Cluster, pods};
use crate::failure::Failure;

pub use look::{Finding, Gravity, findings};
pub(crate) use mend::workload;

/// A namespace, as the mesh sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Enrolment {
    /// Its name.
    pub namespace: String,
    /// It is in the mesh.
    pub enrolled: bool,
    /// It was told to stay out, whatever else it says.
    pub ignored: bool,
    /// Pods with a proxy.
    pub meshed: u64,
    /// Pods that should have one and do not: they were made before the namespace was enrolled.
    pub unmeshed: u64,
    /// Pods that stay out on purpose: hostNetwork, Windows, or their own annotation.
    pub outside: u64,
}

/// The number of pods of each kind.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    meshed: u64,
    unmeshed: u64,
    outside: u64,
}

impl Cluster {
    /// Every namespace, with its pods counted.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub async fn enrolments(&self) -> Result<Vec<Enrolment>, Failure> {
        let api: Api<Namespace> = Api::all(self.client());
        let namespaces = self.list("list namespaces", &api, &ListParams::default()).await?;
        let adopted = self.adopted_meshes().await?;
        let pods = self.pods(None).await?;
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !pods::is_finished(pod)) {
            counts.entry(pod.namespace().unwrap_or_default()).or_default().add(pod);
        }
        let described = namespaces.iter().map(|namespace| {
            let name = namespace.name_any();
            let Count { meshed, unmeshed, outside } = counts.get(&name).copied().unwrap_or_default();
            Enrolment {
                enrolled: is_enrolled(&name, namespace.labels(), &adopted),
                ignored: namespace.labels().get(MESH).is_some_and(|value| value == MESH_DISABLED),
                namespace: name,
                meshed,
                unmeshed,
                outside,
            }
        });
        Ok(described.collect())
    }

    /// The Open Service Meshes whose namespaces the mesh takes over, as MeshConfig names them.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub(crate) async fn adopted_meshes(&self) -> Result<Vec<String>, Failure> {
        let api: Api<MeshConfig> = Api::all(self.client());
        let config = self.call("read MeshConfig default", api.get_opt(MESH_CONFIG_NAME)).await?;
        Ok(config.map(|config| config.spec.adopted_meshes).unwrap_or_default())
    }

    /// The names of all enrolled namespaces.
    ///
    /// # Errors
    /// The API server does not answer, or refuses.
    pub async fn enrolled(&self) -> Result<Vec<String>, Failure> {
        let api: Api<Namespace> = Api::all(self.client());
        let all = self.list("list namespaces", &api, &ListParams::default()).await?;
        let adopted = self.adopted_meshes().await?;
        let enrolled = all.iter().filter(|each| is_enrolled(&each.name_any(), each.labels(), &adopted));
        Ok(enrolled.map(ResourceExt::name_any).collect())
    }
}

impl Count {
    fn add(&mut self, pod: &Pod) {
        if pods::is_meshed(pod) {
            self.meshed += 1;
        } else if pods::stays_out(pod).is_some() {
            self.outside += 1;
        } else {
            self.unmeshed += 1;
        }
    }
}
