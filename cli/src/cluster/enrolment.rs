//! Which namespaces are in the mesh, and what enrolling one would break.

mod look;
mod mend;

use std::collections::BTreeMap;

use byrnie_api::labels::{MESH, MESH_DISABLED, is_enrolled};
use byrnie_api::{MESH_CONFIG_NAME, MeshConfig, MeshConfigSpec, MeshSettings};
use byrnie_injector::inject::{NamespaceFacts, stays_outside};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde::Serialize;

use super::{Cluster, pods, printable};
use crate::failure::{Exit, Failure};

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
        let mut by_namespace: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !pods::is_finished(pod)) {
            by_namespace.entry(pod.namespace().unwrap_or_default()).or_default().push(pod);
        }
        let described = namespaces.iter().map(|namespace| {
            let name = namespace.name_any();
            let enrolled = is_enrolled(&name, namespace.labels(), &adopted);
            // Of one that is not in the mesh: what would be, if it were.
            let facts = if enrolled { facts(namespace) } else { facts(namespace).with_our_label() };
            let mut count = Count::default();
            by_namespace.get(&name).into_iter().flatten().for_each(|pod| count.add(pod, &facts));
            let Count { meshed, unmeshed, outside } = count;
            Enrolment {
                enrolled,
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
        Ok(self.mesh_config().await?.adopted_meshes)
    }

    /// What the mesh says, with every default in its place.
    ///
    /// # Errors
    /// The MeshConfig is wrong, or the API server does not answer, or refuses.
    pub(crate) async fn mesh_settings(&self) -> Result<MeshSettings, Failure> {
        self.mesh_config().await?.settings().map_err(|problems| {
            let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Failure::new(Exit::Negative, format!("MeshConfig {MESH_CONFIG_NAME} is refused"))
                .expected("one that the mesh takes")
                .found(printable(&words.join("; ")))
                .next(format!("kubectl edit meshconfig {MESH_CONFIG_NAME}"))
        })
    }

    async fn mesh_config(&self) -> Result<MeshConfigSpec, Failure> {
        let api: Api<MeshConfig> = Api::all(self.client());
        let config = self.call("read MeshConfig default", api.get_opt(MESH_CONFIG_NAME)).await?;
        Ok(config.map(|config| config.spec).unwrap_or_default())
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

/// What the injector knows of a namespace.
pub(crate) fn facts(namespace: &Namespace) -> NamespaceFacts {
    NamespaceFacts {
        name: namespace.name_any(),
        labels: namespace.labels().clone(),
        annotations: namespace.annotations().clone(),
    }
}

impl Count {
    fn add(&mut self, pod: &Pod, namespace: &NamespaceFacts) {
        if pods::is_meshed(pod) {
            self.meshed += 1;
        } else if stays_outside(pod, namespace).is_some() {
            self.outside += 1;
        } else {
            self.unmeshed += 1;
        }
    }
}
