//! Which address stands for what.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Backend, PodFacts, ServiceFacts,
    builder::Builder,
    service::Member,
    slice::{self, Surroundings},
    status::Amendment,
};
use crate::source::Object;

/// Everything that has an address.
#[derive(Debug, Clone, Default)]
pub(super) struct Addresses {
    pub(super) pods: HashMap<IpAddr, Arc<PodFacts>>,
    pub(super) cluster_ips: HashMap<IpAddr, Arc<ServiceFacts>>,
    /// External IPs, and those of load balancers.
    pub(super) external: HashMap<SocketAddr, Port>,
    /// Of the nodes.
    pub(super) nodes: HashSet<IpAddr>,
    pub(super) node_ports: HashMap<u16, Port>,
    /// Ports of nodes that lead to a port of one pod.
    pub(super) host_ports: HashMap<SocketAddr, (Arc<PodFacts>, u16)>,
    /// Of objects that are refused. Nobody is called there: it may be a meshed pod.
    pub(super) withheld: HashSet<IpAddr>,
}

/// A port of a Service, by its number.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) service: Arc<ServiceFacts>,
    pub(super) number: u16,
}

pub(super) type Pods = BTreeMap<String, Arc<PodFacts>>;

impl Builder<'_> {
    /// Two live pods can't have one address: an enrolled one has it, so that nobody calls it in plaintext for the
    /// other's sake, and of equal ones the first by name. The status of whoever has not says so.
    pub(super) fn index_pods(&mut self) -> (Pods, Addresses) {
        let pods: Pods =
            std::mem::take(&mut self.pods).into_iter().map(|(place, pod)| (place, Arc::new(pod))).collect();
        let mut addresses = Addresses {
            withheld: std::mem::take(&mut self.withheld),
            nodes: std::mem::take(&mut self.learnt.nodes),
            ..Addresses::default()
        };
        let mut ranked: Vec<&Arc<PodFacts>> = pods.values().filter(|pod| !pod.finished).collect();
        ranked.sort_by_key(|pod| (pod.terminating, !pod.enrolled && !pod.injected));
        for pod in ranked {
            addresses.nodes.extend(&pod.node_addresses);
            for (address, port) in pod.host_ports() {
                addresses.host_ports.entry(address).or_insert_with(|| (pod.clone(), port));
            }
            for address in &pod.addresses {
                match addresses.pods.entry(*address) {
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
        (pods, addresses)
    }

    /// Puts pods behind the Services that select them; one whose address another pod has is not behind any.
    pub(super) fn fill_services(&mut self, pods: &Pods, addresses: &Addresses) {
        let owned = |pod: &&Arc<PodFacts>| {
            let owns = |address| addresses.pods.get(address).is_some_and(|owner| owner.uid == pod.uid);
            !pod.finished && (pod.host_network || pod.addresses.iter().any(owns))
        };
        for (place, selected) in std::mem::take(&mut self.selected) {
            if let Some(service) = self.services.get_mut(&place) {
                let selected = selected.iter().filter_map(|place| pods.get(place)).filter(owned);
                service.members = selected.map(|pod| Member::selected(pod, service.publish_not_ready)).collect();
            }
        }
    }

    pub(super) fn take_slices(&mut self, addresses: &Addresses) {
        let objects = self.objects;
        let node_ports = self.services.values().flat_map(|service| &service.ports).filter_map(|port| port.node_port);
        let node_ports: HashSet<u16> = node_ports.collect();
        let services = self
            .services
            .values()
            .flat_map(|service| service.cluster_ips.iter().chain(&service.balanced_ips).chain(&service.external_ips));
        let services: HashSet<IpAddr> = services.copied().collect();
        let networks = self.networks.clone();
        for (key, stored) in &objects.items {
            let Object::EndpointSlice(slice) = &*stored.object else {
                continue;
            };
            let labels = slice.metadata.labels.as_ref();
            let name = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            let service = name.and_then(|name| self.services.get_mut(&format!("{}/{name}", key.namespace)));
            let surroundings = Surroundings {
                addresses,
                services: &services,
                node_ports: &node_ports,
                networks: &networks,
                // Written by the API server itself, of itself, again and again.
                of_api_server: key.namespace == "default" && key.name == "kubernetes",
            };
            let taken = match (name, service) {
                (None, _) => Err("metadata.labels: expected kubernetes.io/service-name, found none".to_owned()),
                (Some(name), None) => {
                    Err(format!("belongs to Service {}/{name}, which is not in force", key.namespace))
                }
                // Kubernetes makes slices of selectors by itself; here the selector is read directly.
                (Some(_), Some(service)) if service.selector.is_some() => {
                    Ok(vec!["not used: the Service has a selector, which says the same".to_owned()])
                }
                (Some(_), Some(service)) => {
                    slice::members(slice, service.publish_not_ready, &surroundings).map(|(members, notes)| {
                        service.members.extend(members);
                        notes
                    })
                }
            };
            self.status(key, stored, taken);
        }
    }

    /// Gives the Services their addresses, and says behind which of them each pod is, by its UID.
    pub(super) fn index_services(&mut self, addresses: &mut Addresses) -> HashMap<Arc<str>, Vec<Arc<ServiceFacts>>> {
        let mut services_of: HashMap<Arc<str>, Vec<Arc<ServiceFacts>>> = HashMap::new();
        let services: Vec<Arc<ServiceFacts>> = std::mem::take(&mut self.services).into_values().map(Arc::new).collect();
        // What a controller has given goes before what is only claimed.
        for service in &services {
            self.index_external(service, &service.balanced_ips, addresses);
        }
        for service in services {
            for address in &service.cluster_ips {
                match addresses.cluster_ips.entry(*address) {
                    Entry::Vacant(free) => drop(free.insert(service.clone())),
                    Entry::Occupied(owner) => {
                        let owner = &owner.get().place;
                        let message =
                            format!("spec.clusterIP: {address} is also the address of Service {owner}, which has it");
                        let object = format!("Service {}", service.place);
                        self.amendments.push(Amendment::Refused { object, message });
                    }
                }
            }
            for port in &service.ports {
                let entry = || Port { service: service.clone(), number: port.port };
                if let Some(node_port) = port.node_port {
                    addresses.node_ports.entry(node_port).or_insert_with(entry);
                }
            }
            self.index_external(&service, &service.external_ips, addresses);
            let pods = service.members.iter().filter_map(|member| match &member.backend {
                Backend::Pod(pod) => Some(pod),
                Backend::Node(_) | Backend::External(_) => None,
            });
            for pod in pods {
                services_of.entry(pod.uid.clone()).or_default().push(service.clone());
            }
        }
        services_of
    }

    /// Whoever may write a Service may claim any external address; an inside one would be somebody else's.
    fn index_external(&mut self, service: &Arc<ServiceFacts>, claimed: &[IpAddr], addresses: &mut Addresses) {
        for address in claimed {
            let object = format!("Service {}", service.place);
            if self.networks.contain(*address) || addresses.pods.contains_key(address) {
                let message = format!("external address {address} lies inside the cluster's networks; it is not taken");
                self.amendments.push(Amendment::Note { object, message });
                continue;
            }
            for port in &service.ports {
                match addresses.external.entry(SocketAddr::new(*address, port.port)) {
                    Entry::Vacant(free) => drop(free.insert(Port { service: service.clone(), number: port.port })),
                    Entry::Occupied(owner) if owner.get().service.place == service.place => {}
                    Entry::Occupied(owner) => {
                        let owner = &owner.get().service.place;
                        let message =
                            format!("external address {address}:{} is also Service {owner}'s, which has it", port.port);
                        self.amendments.push(Amendment::Note { object: object.clone(), message });
                    }
                }
            }
        }
    }
}
