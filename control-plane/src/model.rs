//! The mesh as the source describes it, indexed for the questions that proxies ask. Built anew from all objects after
//! every change, and never changed afterwards.

mod destination;
mod pod;
mod service;
mod subset;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use byrnie_api::{MeshSettings, Problem, Workload, labels};
use byrnie_identity::TrustDomain;
use byrnie_proto::mesh::v1::{AppProtocol, ObjectStatus};
use k8s_openapi::api::core::v1::Pod;

pub use self::{
    destination::{Resolved, ResolvedEndpoint},
    pod::PodFacts,
    service::{Member, PortFacts, ServiceFacts, Target},
    view::MeshView,
};
use crate::source::{KUBERNETES, MeshedBy, Object, ObjectKey, Objects, Stored};

/// The mesh at one moment.
#[derive(Debug, Clone)]
pub struct Model {
    /// What holds for the whole mesh.
    pub settings: Arc<MeshSettings>,
    /// By what a pod counts as meshed.
    pub meshed_by: MeshedBy,
    /// What became of the objects of the source; in Kubernetes those of others only where there is something to say.
    pub statuses: Vec<ObjectStatus>,
    /// The namespaces that are in the mesh.
    pub enrolled: BTreeSet<String>,
    /// `metadata.generation` of the mesh's own objects, where there is one.
    pub generations: BTreeMap<Arc<ObjectKey>, i64>,
    pods: BTreeMap<String, Arc<PodFacts>>,
    by_uid: HashMap<Arc<str>, Arc<PodFacts>>,
    by_address: HashMap<IpAddr, Arc<PodFacts>>,
    by_cluster_ip: HashMap<IpAddr, Arc<ServiceFacts>>,
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
        self.by_address.get(&address)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodFacts>> {
        self.pods.values()
    }

    /// Whether the address is in one of the networks that MeshConfig names.
    pub fn is_inside(&self, address: IpAddr) -> bool {
        let networks = self.settings.service_cidrs.iter().chain(&self.settings.pod_cidrs);
        networks.into_iter().any(|network| network.contains(&address))
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
            let message = format!(
                "spec.trustDomain: expected {fixed}, found {}: the identities of this state directory belong to the former; \
                 a new trust domain needs a new state directory",
                settings.trust_domain
            );
            Err((stored, message))
        }
        _ => Ok(settings),
    }
}

/// A change of one object's status.
enum Amendment {
    /// It is not taken after all.
    Refused { object: String, message: String },
    /// It is taken, with a note.
    Note { object: String, message: String },
}

struct Builder<'a> {
    objects: &'a Objects,
    settings: Arc<MeshSettings>,
    statuses: Vec<ObjectStatus>,
    /// What is found out about an object when its status is written already.
    amendments: Vec<Amendment>,
    settings_refused: bool,
    enrolled: BTreeSet<String>,
    pods: BTreeMap<String, PodFacts>,
    /// Whose they are.
    uids: HashMap<Arc<str>, String>,
    services: BTreeMap<String, ServiceFacts>,
}

impl<'a> Builder<'a> {
    fn new(objects: &'a Objects, settings: &Arc<MeshSettings>) -> Self {
        Self {
            objects,
            settings: settings.clone(),
            statuses: Vec::new(),
            amendments: Vec::new(),
            settings_refused: false,
            enrolled: BTreeSet::new(),
            pods: BTreeMap::new(),
            uids: HashMap::new(),
            services: BTreeMap::new(),
        }
    }

    fn build(mut self) -> Model {
        for problem in &self.objects.problems {
            let object = problem.object.as_ref().map(ToString::to_string).unwrap_or_default();
            let place = if problem.line > 0 { format!("{}:{}: ", problem.file, problem.line) } else { String::new() };
            let file = problem.file.to_string();
            self.statuses.push(ObjectStatus {
                object,
                file,
                accepted: false,
                message: format!("{place}{}", problem.message),
            });
        }
        self.take_settings();
        self.take_unreadable_namespaces();
        for (key, stored) in &self.objects.items {
            self.take(key, stored);
        }
        self.apply_policies();
        let (pods, by_address) = self.index_pods();
        self.index(pods, by_address)
    }

    fn take_settings(&mut self) {
        match settings(self.objects, Some(&self.settings.trust_domain.clone())) {
            Ok(settings) => self.settings = Arc::new(settings),
            Err((stored, message)) => {
                self.settings_refused = true;
                let place = stored.as_ref().map(Stored::place);
                self.statuses.push(ObjectStatus {
                    object: format!("MeshConfig {}", byrnie_api::MESH_CONFIG_NAME),
                    file: stored.map(|stored| stored.file.to_string()).unwrap_or_default(),
                    accepted: false,
                    message: format!("{}{message}; what held before stays in force", place.unwrap_or_default()),
                });
            }
        }
    }

    /// Nobody knows whether they are enrolled. As if they were: what is not called in plaintext harms nobody.
    fn take_unreadable_namespaces(&mut self) {
        let enrolled = BTreeMap::from([(labels::MESH.to_owned(), labels::MESH_ENABLED.to_owned())]);
        let unreadable = self.objects.problems.iter().filter(|problem| problem.is_about("Namespace"));
        for key in unreadable.filter_map(|problem| problem.object.as_ref()) {
            if !self.objects.items.contains_key(key) && labels::is_enrolled(&key.name, &enrolled, &[]) {
                self.enrolled.insert(key.name.clone());
            }
        }
    }

    fn take(&mut self, key: &ObjectKey, stored: &Stored) {
        let taken = match &*stored.object {
            Object::Namespace(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                if labels::is_enrolled(&key.name, &labels, &self.settings.adopted_meshes) {
                    self.enrolled.insert(key.name.clone());
                }
                Ok(Vec::new())
            }
            Object::Pod(pod) => self.take_pod(key, pod),
            Object::Service(service) => ServiceFacts::read(service, &key.namespace, &key.name).map(|(facts, notes)| {
                self.services.insert(facts.place.to_string(), facts);
                notes
            }),
            Object::ServiceAccount(_) => Ok(Vec::new()),
            Object::Mesh(object) => match &**object {
                // What became of these is said elsewhere: by the settings, by the problem that refused them.
                byrnie_api::Object::MeshConfig(_) if self.settings_refused => return,
                byrnie_api::Object::Refused(_) => return,
                object => in_words(&object.against(&self.settings)),
            },
            // Says what became of it where it is applied.
            Object::EndpointSlice(_) => return,
        };
        self.status(key, stored, taken);
    }

    fn take_pod(&mut self, key: &ObjectKey, pod: &Pod) -> Result<Vec<String>, String> {
        let (trust_domain, meshed_by) = (&self.settings.trust_domain, self.objects.meshed_by);
        let (facts, notes) = PodFacts::read(pod, &key.namespace, &key.name, trust_domain, meshed_by)?;
        self.take_uid(&facts)?;
        self.pods.insert(facts.place(), facts);
        Ok(notes)
    }

    /// What a certificate is issued to is a UID: two pods of one UID would speak for each other.
    fn take_uid(&mut self, pod: &PodFacts) -> Result<(), String> {
        match self.uids.entry(pod.uid.clone()) {
            Entry::Vacant(free) => {
                free.insert(pod.place());
                Ok(())
            }
            Entry::Occupied(owner) => {
                Err(format!("metadata.uid: {} is also the UID of pod {}, which has it", pod.uid, owner.get()))
            }
        }
    }

    fn status(&mut self, key: &ObjectKey, stored: &Stored, taken: Result<Vec<String>, String>) {
        let accepted = taken.is_ok();
        let message = taken.map_or_else(|refused| format!("{}{refused}", stored.place()), |notes| notes.join("; "));
        // A cluster has thousands of pods and Services of which there is nothing to say.
        let ours = matches!(&*stored.object, Object::Mesh(_));
        if self.objects.meshed_by == MeshedBy::Sidecar && message.is_empty() && !ours {
            return;
        }
        self.statuses.push(ObjectStatus { object: key.to_string(), file: stored.file.to_string(), accepted, message });
    }

    /// Policies, and what Services declare of ports.
    fn apply_policies(&mut self) {
        let enrolled = self.enrolled.clone();
        let objects = self.objects;
        let mut by_namespace: HashMap<&str, Vec<&byrnie_api::Object>> = HashMap::new();
        for stored in objects.items.values() {
            if let Object::Mesh(object) = &*stored.object
                && let Some(namespace) = object.namespace()
            {
                by_namespace.entry(namespace).or_default().push(object);
            }
        }
        let by_sidecar = objects.meshed_by == MeshedBy::Sidecar;
        for pod in self.pods.values_mut() {
            pod.enrolled &= enrolled.contains(&*pod.namespace);
            if by_sidecar && pod.enrolled && !pod.injected && !pod.host_network && !pod.finished {
                let object = format!("Pod {}", pod.place());
                self.amendments.push(Amendment::Note { object, message: NO_SIDECAR.to_owned() });
            }
            let workload =
                Workload { namespace: &pod.namespace, labels: &pod.labels, service_account: &pod.service_account };
            let candidates = by_namespace.get(&*pod.namespace).into_iter().flatten().copied();
            let policies = byrnie_api::compile(&self.settings, candidates, &workload);
            pod.policies = policies;
        }
        let mut declared: BTreeMap<(String, u16), BTreeSet<AppProtocol>> = BTreeMap::new();
        for service in self.services.values() {
            let prefix = format!("{}/", service.namespace);
            let pods = self.pods.range(prefix.clone()..).take_while(|(place, _)| place.starts_with(&prefix));
            for pod in pods.map(|(_, pod)| pod).filter(|pod| service.selects(pod)) {
                for port in &service.ports {
                    let target = match &port.target {
                        Target::Number(number) => Some(*number),
                        Target::Name(name) => pod.named_port(name),
                    };
                    if let Some(target) = target {
                        declared.entry((pod.place(), target)).or_default().insert(port.protocol);
                    }
                }
            }
        }
        for ((place, port), mut protocols) in declared {
            // Where two Services disagree on a port, nothing is declared.
            protocols.remove(&AppProtocol::Unspecified);
            let protocol = match (protocols.pop_first(), protocols.is_empty()) {
                (Some(protocol), true) => protocol,
                _ => AppProtocol::Unspecified,
            };
            if let Some(pod) = self.pods.get_mut(&place) {
                pod.declared.insert(port, protocol);
            }
        }
    }

    /// Two live pods can't have one address: an enrolled one has it, so that nobody calls it in plaintext for the
    /// other's sake, and of equal ones the first by name. The status of whoever has not says so.
    fn index_pods(&mut self) -> (BTreeMap<String, Arc<PodFacts>>, HashMap<IpAddr, Arc<PodFacts>>) {
        let pods: BTreeMap<String, Arc<PodFacts>> =
            std::mem::take(&mut self.pods).into_iter().map(|(place, pod)| (place, Arc::new(pod))).collect();
        let mut by_address: HashMap<IpAddr, Arc<PodFacts>> = HashMap::new();
        let mut ranked: Vec<&Arc<PodFacts>> = pods.values().filter(|pod| !pod.finished).collect();
        ranked.sort_by_key(|pod| (pod.terminating, !pod.enrolled));
        for pod in ranked {
            for address in &pod.addresses {
                match by_address.entry(*address) {
                    Entry::Vacant(free) => drop(free.insert(pod.clone())),
                    // Its address may be given away already.
                    Entry::Occupied(_) if pod.terminating => {}
                    Entry::Occupied(owner) => {
                        let owner = owner.get().place();
                        let message =
                            format!("status.podIPs: {address} is also the address of pod {owner}, which has it");
                        self.amendments.push(Amendment::Refused { object: format!("Pod {}", pod.place()), message });
                    }
                }
            }
        }
        (pods, by_address)
    }

    fn index(mut self, pods: BTreeMap<String, Arc<PodFacts>>, by_address: HashMap<IpAddr, Arc<PodFacts>>) -> Model {
        for service in self.services.values_mut() {
            let owned = |pod: &&Arc<PodFacts>| {
                pod.addresses.iter().any(|address| by_address.get(address).is_some_and(|owner| owner.uid == pod.uid))
            };
            let prefix = format!("{}/", service.namespace);
            let near =
                pods.range(prefix.clone()..).take_while(|(place, _)| place.starts_with(&prefix)).map(|(_, pod)| pod);
            let selected = near.filter(|pod| service.selects(pod)).filter(owned);
            service.members = selected.map(|pod| Member::selected(pod, service.publish_not_ready)).collect();
        }
        self.take_slices(&by_address);
        let mut by_cluster_ip: HashMap<IpAddr, Arc<ServiceFacts>> = HashMap::new();
        let mut services_of: HashMap<Arc<str>, Vec<Arc<ServiceFacts>>> = HashMap::new();
        for service in std::mem::take(&mut self.services).into_values().map(Arc::new) {
            for address in &service.cluster_ips {
                if let Some(owner) = by_cluster_ip.get(address) {
                    let message = format!(
                        "spec.clusterIP: {address} is also the address of Service {}, which has it",
                        owner.place
                    );
                    let object = format!("Service {}", service.place);
                    self.amendments.push(Amendment::Refused { object, message });
                } else {
                    by_cluster_ip.insert(*address, service.clone());
                }
            }
            for member in &service.members {
                services_of.entry(member.pod.uid.clone()).or_default().push(service.clone());
            }
        }
        self.amend();
        let by_uid = pods.values().map(|pod| (pod.uid.clone(), pod.clone())).collect();
        let meshed_by = self.objects.meshed_by;
        Model {
            settings: self.settings,
            meshed_by,
            statuses: self.statuses,
            enrolled: self.enrolled,
            generations: self.objects.generations.clone(),
            pods,
            by_uid,
            by_address,
            by_cluster_ip,
            services_of,
        }
    }

    /// Writes what was found out late into the statuses; of an object that had nothing to say there is none yet.
    fn amend(&mut self) {
        let mut places: HashMap<String, usize> =
            self.statuses.iter().enumerate().map(|(place, status)| (status.object.clone(), place)).collect();
        for amendment in std::mem::take(&mut self.amendments) {
            let (object, message, refused) = match amendment {
                Amendment::Refused { object, message } => (object, message, true),
                Amendment::Note { object, message } => (object, message, false),
            };
            let place = *places.entry(object.clone()).or_insert_with(|| {
                let file = KUBERNETES.to_owned();
                self.statuses.push(ObjectStatus { object, file, accepted: true, message: String::new() });
                self.statuses.len() - 1
            });
            let Some(status) = self.statuses.get_mut(place) else {
                continue;
            };
            if refused {
                status.accepted = false;
                status.message = message;
            } else if status.accepted {
                let before = std::mem::take(&mut status.message);
                status.message = if before.is_empty() { message } else { format!("{before}; {message}") };
            }
        }
    }

    fn take_slices(&mut self, by_address: &HashMap<IpAddr, Arc<PodFacts>>) {
        let objects = self.objects;
        for (key, stored) in &objects.items {
            let Object::EndpointSlice(slice) = &*stored.object else {
                continue;
            };
            let labels = slice.metadata.labels.as_ref();
            let name = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            let service = name.and_then(|name| self.services.get_mut(&format!("{}/{name}", key.namespace)));
            let taken = match (name, service) {
                (None, _) => Err("metadata.labels: expected kubernetes.io/service-name, found none".to_owned()),
                (Some(name), None) => {
                    Err(format!("belongs to Service {}/{name}, which is not in force", key.namespace))
                }
                // Kubernetes makes slices of selectors by itself; here the selector is read directly.
                (Some(_), Some(service)) if service.selector.is_some() => {
                    Ok(vec!["not used: the Service has a selector, which says the same".to_owned()])
                }
                (Some(_), Some(service)) => service::slice_members(slice, service.publish_not_ready, |address| {
                    by_address.get(&address).cloned()
                })
                .map(|(members, notes)| {
                    service.members.extend(members);
                    notes
                }),
            };
            self.status(key, stored, taken);
        }
    }
}

/// What `byrnie check` looks for among the notes on pods.
const NO_SIDECAR: &str = "should be meshed and is not: its namespace is enrolled, and the pod has no proxy; other meshed \
    pods refuse to call it unless an MtlsPolicy permits it; delete it, so that it is made anew with a proxy, or annotate \
    it byrnie.dev/inject: \"false\"";

/// Refused where anything is wrong.
fn in_words(problems: &[Problem]) -> Result<Vec<String>, String> {
    let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
    if words.is_empty() { Ok(words) } else { Err(words.join("; ")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
