//! What EndpointSlices put behind Services that select nothing.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::{
    Backend, Networks,
    index::Addresses,
    service::{Member, port_number},
};

/// What an endpoint's address may be, if it is no pod's.
pub(super) struct Surroundings<'a> {
    pub(super) addresses: &'a Addresses,
    /// Cluster IPs and external ones.
    pub(super) services: &'a HashSet<IpAddr>,
    /// Every node's ports that lead to Services.
    pub(super) node_ports: &'a HashSet<u16>,
    pub(super) networks: &'a Networks,
    /// The slice says where the API server is.
    pub(super) of_api_server: bool,
}

/// The members that a slice names, and what of it is not in force.
///
/// # Errors
/// Why nothing of it is.
pub(super) fn members(
    slice: &EndpointSlice,
    publish_not_ready: bool,
    surroundings: &Surroundings<'_>,
) -> Result<(Vec<Member>, Vec<String>), String> {
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return Err(format!("addressType {}: not supported yet; expected IPv4 or IPv6", slice.address_type));
    }
    let tcp = slice.ports.iter().flatten().filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    let ports = tcp.filter_map(|port| Some((port.name.clone().unwrap_or_default(), port_number(port.port?)?)));
    let ports: Arc<BTreeMap<String, u16>> = Arc::new(ports.collect());
    let (mut members, mut notes) = (Vec::new(), Vec::new());
    for endpoint in slice.endpoints.iter().flatten() {
        // Kubernetes: all addresses of an endpoint are the same; consumers use the first.
        let Some(text) = endpoint.addresses.first() else {
            continue;
        };
        let address: IpAddr = text.parse().map_err(|_| format!("endpoints: expected IP addresses, found {text:?}"))?;
        let address = address.to_canonical();
        match surroundings.backend(address, &ports) {
            Ok(backend) => members.push(member(endpoint, backend, address, &ports, publish_not_ready)),
            Err(reason) => notes.push(format!("endpoint {address}: {reason}; it gets no connections")),
        }
    }
    Ok((members, notes))
}

/// Kubernetes calls what terminates not ready; that it still serves is said apart.
fn member(
    endpoint: &Endpoint,
    backend: Backend,
    address: IpAddr,
    ports: &Arc<BTreeMap<String, u16>>,
    publish_not_ready: bool,
) -> Member {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let terminating = conditions.terminating.unwrap_or(false);
    let ready = conditions.ready.unwrap_or(true);
    let (gone, node, zone) = match &backend {
        Backend::Pod(pod) => (pod.terminating, Some(pod.node.clone()), Some(pod.zone.clone())),
        Backend::Node(_) | Backend::External(_) => (false, None, None),
    };
    let named = |found: Option<Arc<str>>, written: &Option<String>| {
        let found = found.filter(|text| !text.is_empty());
        found.unwrap_or_else(|| written.as_deref().unwrap_or_default().into())
    };
    Member {
        node: named(node, &endpoint.node_name),
        zone: named(zone, &endpoint.zone),
        backend,
        address: Some(address),
        ready: ready || publish_not_ready || (terminating && conditions.serving.unwrap_or(false)),
        terminating: terminating || gone,
        ports: Some(ports.clone()),
    }
}

impl Surroundings<'_> {
    /// What stands at an endpoint's address. Where it may be a meshed pod by another way, nothing does.
    fn backend(&self, address: IpAddr, ports: &BTreeMap<String, u16>) -> Result<Backend, &'static str> {
        let Addresses { pods, nodes, host_ports, withheld, .. } = self.addresses;
        if let Some(pod) = pods.get(&address) {
            return Ok(Backend::Pod(pod.clone()));
        }
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err("can be nobody's address");
        }
        if self.of_api_server {
            return Ok(Backend::Node(address));
        }
        if withheld.contains(&address) {
            return Err("is the address of an object that is refused");
        }
        // Before the nodes: a Service's external address may be that of a node.
        if self.services.contains(&address) {
            return Err("is the address of a Service");
        }
        if nodes.contains(&address) {
            let leads_on = |port: &u16| {
                self.node_ports.contains(port) || host_ports.contains_key(&SocketAddr::new(address, *port))
            };
            if ports.values().any(leads_on) {
                return Err("is a node's address at a port that leads to pods");
            }
            return Ok(Backend::Node(address));
        }
        if self.networks.contain(address) {
            return Err("lies inside the cluster's networks, and is no pod's");
        }
        Ok(Backend::External(address))
    }
}
