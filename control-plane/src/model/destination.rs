//! What an address that an application dialled stands for.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use byrnie_proto::mesh::v1::{AppProtocol, DestinationKind};

use super::{Member, Model, PodFacts, PortFacts, ServiceFacts};

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
}

/// One pod and the address at which it serves.
#[derive(Debug, Clone)]
pub struct ResolvedEndpoint {
    /// The pod.
    pub pod: Arc<PodFacts>,
    /// Where.
    pub address: SocketAddr,
    /// Is going away.
    pub terminating: bool,
}

impl Model {
    /// Resolves any address.
    pub fn resolve(&self, dialled: SocketAddr) -> Resolved {
        // An IPv4 address may come in IPv6 clothes from a socket that takes both.
        let address = dialled.ip().to_canonical();
        if let Some(service) = self.by_cluster_ip.get(&address) {
            return match service.ports.iter().find(|port| port.port == dialled.port()) {
                Some(port) => Resolved::service(service, port, address),
                None => Resolved::nothing(DestinationKind::UnknownInternal),
            };
        }
        if let Some(pod) = self.by_address.get(&address) {
            return self.resolve_pod(pod, SocketAddr::new(address, dialled.port()));
        }
        Resolved::nothing(if self.is_inside(address) {
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
            let member = service.members.iter().find(|member| member.pod.uid == pod.uid);
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
            endpoints: vec![ResolvedEndpoint { pod: pod.clone(), address, terminating: pod.terminating }],
        }
    }
}

impl Resolved {
    fn service(service: &Arc<ServiceFacts>, port: &PortFacts, dialled: IpAddr) -> Self {
        let serving = service.members.iter().filter(|member| member.ready);
        let mut endpoints: Vec<ResolvedEndpoint> =
            serving.filter_map(|member| endpoint(member, port, dialled)).collect();
        endpoints.sort_by_key(|endpoint| endpoint.address);
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        Self { kind: DestinationKind::Service, service: service.place.clone(), protocol: port.protocol, endpoints }
    }

    fn nothing(kind: DestinationKind) -> Self {
        Self { kind, service: Arc::from(""), protocol: AppProtocol::Unspecified, endpoints: Vec::new() }
    }
}

/// The member's address of the family that was dialled.
fn endpoint(member: &Member, port: &PortFacts, dialled: IpAddr) -> Option<ResolvedEndpoint> {
    let same_family = |address: &&IpAddr| address.is_ipv4() == dialled.is_ipv4();
    let address = match &member.address {
        Some(address) => Some(address).filter(same_family),
        None => member.pod.addresses.iter().find(same_family),
    }?;
    let target = member.target(port)?;
    Some(ResolvedEndpoint {
        pod: member.pod.clone(),
        address: SocketAddr::new(*address, target),
        terminating: member.terminating,
    })
}
