//! From objects to facts: each object read by itself, then what concerns several of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use byrnie_api::{MeshSettings, Workload, labels};
use byrnie_policy::DefaultAction;
use byrnie_proto::mesh::v1::{AppProtocol, ObjectStatus};
use k8s_openapi::api::core::v1::Pod;

use super::{
    Model, Networks, PodFacts, ServiceFacts, Target, in_words, networks::Learnt, pod::pod_ips, settings,
    status::Amendment,
};
use crate::source::{MeshedBy, Object, ObjectKey, Objects, Stored};

pub(super) struct Builder<'a> {
    pub(super) objects: &'a Objects,
    pub(super) settings: Arc<MeshSettings>,
    pub(super) statuses: Vec<ObjectStatus>,
    /// What is found out about an object when its status is written already.
    pub(super) amendments: Vec<Amendment>,
    pub(super) settings_refused: bool,
    pub(super) learnt: Learnt,
    pub(super) networks: Networks,
    /// `Deny` holds in the place of MeshConfig's `egress.default: Allow`.
    pub(super) egress_held: bool,
    enrolled: BTreeSet<String>,
    pub(super) pods: BTreeMap<String, PodFacts>,
    /// Whose they are.
    uids: HashMap<Arc<str>, String>,
    pub(super) services: BTreeMap<String, ServiceFacts>,
    /// The pods that each Service selects, by place.
    pub(super) selected: BTreeMap<String, Vec<String>>,
    /// Addresses of what is refused.
    pub(super) withheld: HashSet<IpAddr>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(objects: &'a Objects, settings: &Arc<MeshSettings>) -> Self {
        Self {
            objects,
            settings: settings.clone(),
            statuses: Vec::new(),
            amendments: Vec::new(),
            settings_refused: false,
            learnt: Learnt::default(),
            networks: Networks::default(),
            egress_held: false,
            enrolled: BTreeSet::new(),
            pods: BTreeMap::new(),
            uids: HashMap::new(),
            services: BTreeMap::new(),
            selected: BTreeMap::new(),
            withheld: HashSet::new(),
        }
    }

    pub(super) fn build(mut self) -> Model {
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
        self.take_networks();
        self.apply_policies();
        self.select();
        self.declare();
        let (pods, mut addresses) = self.index_pods();
        self.fill_services(&pods, &addresses);
        self.take_slices(&addresses);
        let services_of = self.index_services(&mut addresses);
        self.amend();
        Model {
            conditions: self.conditions(),
            settings: self.settings,
            networks: self.networks,
            meshed_by: self.objects.meshed_by,
            enrolled: self.enrolled,
            statuses: self.statuses,
            by_uid: pods.values().map(|pod| (pod.uid.clone(), pod.clone())).collect(),
            pods,
            addresses,
            services_of,
        }
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
            Object::Node(node) => Ok(self.learnt.node(node)),
            Object::ServiceCidr(networks) => Ok(self.learnt.service_cidr(networks)),
            Object::Mesh(object) => match &**object {
                // What became of these is said elsewhere: by the settings, by the problem that refused them.
                byrnie_api::Object::MeshConfig(_) if self.settings_refused => return,
                byrnie_api::Object::Refused(_) => return,
                object => in_words(&object.against(&self.settings)),
            },
            // Says what became of it where it is applied.
            Object::EndpointSlice(_) => return,
        };
        if taken.is_err() {
            self.withheld.extend(addresses_of(&stored.object));
        }
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

    /// Who is enrolled, and what policies say.
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
        let mut settings = MeshSettings::clone(&self.settings);
        if self.egress_held {
            settings.egress_default = DefaultAction::Deny;
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
            let policies = byrnie_api::compile(&settings, candidates, &workload);
            pod.policies = policies;
        }
    }

    /// Finds the pods of every selector by the rarest of its labels: to try each pod on each Service would be most of
    /// the work of a large namespace.
    fn select(&mut self) {
        let mut with_label: HashMap<(&str, &str, &str), Vec<&PodFacts>> = HashMap::new();
        for pod in self.pods.values() {
            for (key, value) in &pod.labels {
                with_label.entry((&pod.namespace, key, value)).or_default().push(pod);
            }
        }
        let mut selected = BTreeMap::new();
        for (place, service) in &self.services {
            let Some(selector) = &service.selector else {
                continue;
            };
            let mut rarest: Option<&[&PodFacts]> = None;
            for (key, value) in selector {
                let with = with_label.get(&(&*service.namespace, key, value)).map(Vec::as_slice).unwrap_or_default();
                if rarest.is_none_or(|rarest| with.len() < rarest.len()) {
                    rarest = Some(with);
                }
            }
            let rarest = rarest.unwrap_or_default();
            let all = |pod: &&&PodFacts| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
            selected.insert(place.clone(), rarest.iter().filter(all).map(|pod| pod.place()).collect());
        }
        self.selected = selected;
    }

    /// What Services declare of the ports of pods.
    fn declare(&mut self) {
        let mut declared: BTreeMap<(&String, u16), BTreeSet<AppProtocol>> = BTreeMap::new();
        for (place, pods) in &self.selected {
            let ports = self.services.get(place).map(|service| service.ports.as_slice()).unwrap_or_default();
            for (place, pod) in pods.iter().filter_map(|place| self.pods.get_key_value(place)) {
                for port in ports {
                    let target = match &port.target {
                        Target::Number(number) => Some(*number),
                        Target::Name(name) => pod.named_port(name),
                    };
                    if let Some(target) = target {
                        declared.entry((place, target)).or_default().insert(port.protocol);
                    }
                }
            }
        }
        let mut agreed: Vec<(String, u16, AppProtocol)> = Vec::new();
        for ((place, port), mut protocols) in declared {
            // Where two Services disagree on a port, nothing is declared.
            protocols.remove(&AppProtocol::Unspecified);
            let protocol = match (protocols.pop_first(), protocols.is_empty()) {
                (Some(protocol), true) => protocol,
                _ => AppProtocol::Unspecified,
            };
            agreed.push((place.clone(), port, protocol));
        }
        for (place, port, protocol) in agreed {
            if let Some(pod) = self.pods.get_mut(&place) {
                pod.declared.insert(port, protocol);
            }
        }
    }
}

/// What can be read of the addresses of an object that is refused.
fn addresses_of(object: &Object) -> Vec<IpAddr> {
    let texts: Vec<&str> = match object {
        Object::Pod(pod) if pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true)) => {
            pod.status.as_ref().map(pod_ips).into_iter().flatten().collect()
        }
        Object::Service(service) => {
            let spec = service.spec.iter();
            spec.flat_map(|spec| spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()))
                .map(String::as_str)
                .collect()
        }
        _ => Vec::new(),
    };
    texts.into_iter().filter_map(|text| text.parse().ok()).map(|address: IpAddr| address.to_canonical()).collect()
}

/// What `byrnie check` looks for among the notes on pods.
const NO_SIDECAR: &str = "should be meshed and is not: its namespace is enrolled, and the pod has no proxy; other meshed \
    pods refuse to call it unless an MtlsPolicy permits it; delete it, so that it is made anew with a proxy, or annotate \
    it byrnie.dev/inject: \"false\"";
