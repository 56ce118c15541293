//! What an address that an application dialled stands for.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
};

use byrnie_proto::mesh::v1::{AppProtocol, DestinationKind};

use super::{
    Backend, Member, Model, PodFacts, PortFacts, ServiceFacts,
    choice::{Choice, Near},
    index::Port,
};
use crate::limits;

/// What Kubernetes takes node ports from, where nobody has set another range.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// The answer, as far as the source alone gives it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What stands there.
    pub kind: DestinationKind,
    /// `namespace/name`; empty where there is none.
    pub service: Arc<str>,
    /// What is declared of the port.
    pub protocol: AppProtocol,
    /// Where connections may go.
    pub endpoints: Vec<ResolvedEndpoint>,
    /// Which of them a client gets.
    pub(super) choice: Choice,
}

/// An address at which somebody serves.
#[derive(Debug, Clone)]
pub struct ResolvedEndpoint {
    /// Who.
    pub backend: Backend,
    /// Where.
    pub address: SocketAddr,
    /// Is going away.
    pub terminating: bool,
    /// The name of the node; empty: unknown.
    pub node: Arc<str>,
    /// The zone; empty: unknown.
    pub zone: Arc<str>,
}

impl Model {
    /// Resolves any address.
    pub fn resolve(&self, dialled: SocketAddr) -> Resolved {
        // An IPv4 address may come in IPv6 clothes from a socket that takes both.
        let address = dialled.ip().to_canonical();
        let dialled = SocketAddr::new(address, dialled.port());
        let known = &self.addresses;
        if let Some(service) = known.cluster_ips.get(&address) {
            return match service.port(dialled.port()) {
                Some(port) => Resolved::service(service, port, address, service.choice),
                None => Resolved::nothing(DestinationKind::UnknownInternal),
            };
        }
        if let Some(pod) = known.pods.get(&address) {
            return self.resolve_pod(pod, dialled);
        }
        if known.withheld.contains(&address) {
            return Resolved::nothing(DestinationKind::UnknownInternal);
        }
        // Of these, addresses without such a port are whatever they are otherwise.
        let on_node = known.nodes.contains(&address);
        let by_external = known.external.get(&dialled);
        if let Some((pod, port)) = known.host_ports.get(&dialled).filter(|_| on_node && by_external.is_none()) {
            return pod.same_family(address).map_or_else(
                || Resolved::nothing(DestinationKind::UnknownInternal),
                |own| self.resolve_pod(pod, SocketAddr::new(own, *port)),
            );
        }
        let by_node = known.node_ports.get(&dialled.port()).filter(|_| on_node);
        if let Some(Port { service, number }) = by_external.or(by_node)
            && let Some(port) = service.port(*number)
        {
            // A policy for cluster-internal traffic is one for the cluster IP (KEP-2086).
            let choice = Choice { near: Near::Anywhere, ..service.choice };
            return Resolved::service(service, port, address, choice);
        }
        // The port of a Service that is not known yet: it would lead to pods.
        let to_a_service = on_node && NODE_PORTS.contains(&dialled.port());
        Resolved::nothing(if to_a_service || self.networks.contain(address) {
            DestinationKind::UnknownInternal
        } else {
            DestinationKind::External
        })
    }

    /// A pod's address stands for the pod. Behind a headless Service it is how the Service is called; the Service is
    /// named where there is no doubt which one.
    fn resolve_pod(&self, pod: &Arc<PodFacts>, address: SocketAddr) -> Resolved {
        let services = self.services_of.get(&pod.uid).map(Vec::as_slice).unwrap_or_default();
        let serves = |service: &&Arc<ServiceFacts>| {
            let member = service.members.iter().find(|member| member.backend.is(pod));
            member.is_some_and(|member| service.ports.iter().any(|port| member.target(port) == Some(address.port())))
        };
        let mut headless = services.iter().filter(|service| service.is_headless()).filter(serves);
        let service = match (headless.next(), headless.next()) {
            (Some(service), None) => service.place.clone(),
            _ => Arc::from(""),
        };
        Resolved {
            kind: DestinationKind::Pod,
            service,
            protocol: pod.declared.get(&address.port()).copied().unwrap_or(AppProtocol::Unspecified),
            endpoints: vec![ResolvedEndpoint {
                backend: Backend::Pod(pod.clone()),
                address,
                terminating: pod.terminating,
                node: pod.node.clone(),
                zone: pod.zone.clone(),
            }],
            choice: Choice::default(),
        }
    }
}

impl Resolved {
    /// Whether the answer depends on who asks.
    pub fn is_personal(&self) -> bool {
        self.choice != Choice::default() || self.endpoints.len() > limits::ENDPOINTS
    }

    fn service(service: &Arc<ServiceFacts>, port: &PortFacts, dialled: IpAddr, choice: Choice) -> Self {
        let serving = service.members.iter().filter(|member| member.ready);
        let mut endpoints: Vec<ResolvedEndpoint> =
            serving.filter_map(|member| endpoint(member, port, dialled)).collect();
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        let (kind, service, protocol) = (DestinationKind::Service, service.place.clone(), port.protocol);
        Self { kind, service, protocol, endpoints, choice }
    }

    fn nothing(kind: DestinationKind) -> Self {
        let (service, protocol) = (Arc::from(""), AppProtocol::Unspecified);
        Self { kind, service, protocol, endpoints: Vec::new(), choice: Choice::default() }
    }
}

/// The member's address of the family that was dialled.
fn endpoint(member: &Member, port: &PortFacts, dialled: IpAddr) -> Option<ResolvedEndpoint> {
    let address = match (&member.address, &member.backend) {
        (Some(address), _) => Some(*address).filter(|address| address.is_ipv4() == dialled.is_ipv4()),
        (None, Backend::Pod(pod)) => pod.same_family(dialled),
        (None, Backend::Node(_) | Backend::External(_)) => None,
    }?;
    let target = member.target(port)?;
    Some(ResolvedEndpoint {
        backend: member.backend.clone(),
        address: SocketAddr::new(address, target),
        terminating: member.terminating,
        node: member.node.clone(),
        zone: member.zone.clone(),
    })
}
