//! The mesh as the source describes it, indexed for the questions that proxies ask. Built anew from all objects after
//! every change, and never changed afterwards.

mod builder;
mod choice;
mod destination;
mod index;
mod networks;
mod pod;
mod service;
mod slice;
mod status;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use byrnie_api::{MeshSettings, Problem};
use byrnie_identity::TrustDomain;
use byrnie_proto::mesh::v1::ObjectStatus;

use self::{builder::Builder, index::Addresses};
pub use self::{
    destination::{Resolved, ResolvedEndpoint},
    networks::Networks,
    pod::PodFacts,
    service::{Backend, Member, PortFacts, ServiceFacts, Target},
    status::Condition,
    view::MeshView,
};
use crate::source::{MeshedBy, Object, Objects, Stored};

/// The mesh at one moment.
#[derive(Debug, Clone)]
pub struct Model {
    /// What holds for the whole mesh.
    pub settings: Arc<MeshSettings>,
    /// What lies inside of the cluster.
    pub networks: Networks,
    /// By what a pod counts as meshed.
    pub meshed_by: MeshedBy,
    /// What became of the objects of the source; in Kubernetes those of others only where there is something to say.
    pub statuses: Vec<ObjectStatus>,
    /// The namespaces that are in the mesh.
    pub enrolled: BTreeSet<String>,
    /// What is to be written into the status of the mesh's own objects.
    pub conditions: Vec<Condition>,
    pods: BTreeMap<String, Arc<PodFacts>>,
    by_uid: HashMap<Arc<str>, Arc<PodFacts>>,
    addresses: Addresses,
    /// Services whose members include the pod with this UID.
    services_of: HashMap<Arc<str>, Vec<Arc<ServiceFacts>>>,
}

impl Model {
    /// Builds the model of these objects. `settings` hold where the objects name none that can be taken.
    pub fn build(objects: &Objects, settings: &Arc<MeshSettings>) -> Self {
        Builder::new(objects, settings).build()
    }

    /// The pod of a namespace and name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<PodFacts>> {
        self.pods.get(&format!("{namespace}/{name}"))
    }

    /// The pod with this UID.
    pub fn pod_by_uid(&self, uid: &str) -> Option<&Arc<PodFacts>> {
        self.by_uid.get(uid)
    }

    /// The pod that owns this address.
    pub fn pod_by_address(&self, address: IpAddr) -> Option<&Arc<PodFacts>> {
        self.addresses.pods.get(&address)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodFacts>> {
        self.pods.values()
    }
}

/// The settings that the objects name, if they name any.
///
/// # Errors
/// Everything that is wrong with them, or a trust domain other than `fixed`: identities can't change theirs.
pub fn settings(objects: &Objects, fixed: Option<&TrustDomain>) -> Result<MeshSettings, (Option<Stored>, String)> {
    let mut found = objects.items.values().filter_map(|stored| match &*stored.object {
        Object::Mesh(object) => match &**object {
            byrnie_api::Object::MeshConfig(config) => Some((stored, config)),
            _ => None,
        },
        _ => None,
    });
    let (stored, settings) = match found.next() {
        // One that is there and can't be read is not one that is missing: the defaults are laxer than it may be.
        None if objects.problems.iter().any(|problem| problem.is_about("MeshConfig")) => {
            return Err((None, "its only version can't be read".to_owned()));
        }
        None => (None, byrnie_api::MeshConfigSpec::default().settings()),
        Some((stored, config)) => (Some(stored.clone()), config.spec.settings()),
    };
    let settings = settings.map_err(|problems| (stored.clone(), in_words(&problems).err().unwrap_or_default()))?;
    match fixed {
        Some(fixed) if *fixed != settings.trust_domain => {
            let whose = match objects.meshed_by {
                MeshedBy::Issuance => "this state directory",
                MeshedBy::Sidecar => "the root in Secret byrnie-ca",
            };
            let message = format!(
                "spec.trustDomain: expected {fixed}, found {}: the identities of {whose} belong to the former; \
                 a new trust domain needs a new one",
                settings.trust_domain
            );
            Err((stored, message))
        }
        _ => Ok(settings),
    }
}

/// Refused where anything is wrong.
fn in_words(problems: &[Problem]) -> Result<Vec<String>, String> {
    let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
    if words.is_empty() { Ok(words) } else { Err(words.join("; ")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
