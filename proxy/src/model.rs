//! What the control plane said, parsed once: everything behind this module can rely on it. A message that is malformed
//! or that leaves open what must be known is refused as a whole (the caller then answers with a nack and keeps what it
//! had), because half a destination or half a policy would be a guess.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use byrnie_identity::SpiffeId;
use byrnie_policy::Policies;
use byrnie_proto::mesh::v1 as proto;
use ipnet::IpNet;

/// All that the proxy knows of its own pod.
#[derive(Debug, Clone)]
pub struct OwnPod {
    /// `namespace/name` of the workload.
    pub workload: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The identity that the pod was registered with.
    pub spiffe_id: SpiffeId,
    /// The pod's UID.
    pub pod_uid: Arc<str>,
    /// The pod is being deleted.
    pub terminating: bool,
    /// The policies that concern this pod.
    pub policies: Policies,
    /// What the cluster's inside is.
    pub networks: Networks,
    /// What the pod's Services declare of its ports.
    pub ports: HashMap<u16, AppProtocol>,
}

/// The cluster's own networks: service and pod CIDRs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

/// What an address that the application dialled stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// What stands there.
    pub kind: DestinationKind,
    /// `namespace/name` of the Service, where there is one.
    pub service: Option<Arc<str>>,
    /// What the Service declares of the port.
    pub protocol: AppProtocol,
    /// Where connections may go; empty where nothing answers.
    pub endpoints: Vec<Endpoint>,
}

/// What kind of thing a dialled address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationKind {
    /// An address of a Service.
    Service,
    /// A pod's own address.
    Pod,
    /// Inside the cluster's networks, but nothing stands there.
    UnknownInternal,
    /// Outside of the cluster's networks: egress policy decides.
    External,
}

/// One place that can serve a destination.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// The pod's IP and the application's own port.
    pub address: SocketAddr,
    /// Relative share of new connections.
    pub weight: u32,
    /// Topology zone; empty where unknown.
    pub zone: Arc<str>,
    /// `namespace/name` of the workload.
    pub workload: Arc<str>,
    /// UID of the pod.
    pub pod_uid: Arc<str>,
    /// How it must be called.
    pub meshed: Meshed,
    /// Going away: takes no new connections while others are there.
    pub terminating: bool,
}

/// How an endpoint must be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meshed {
    /// Through a tunnel, by exactly this identity; never in plaintext.
    Yes(SpiffeId),
    /// In an enrolled namespace, but without an issued identity or without capture of this port.
    EnrolledUnmeshed {
        /// A `Permissive` MtlsPolicy allows plaintext to it.
        permissive: bool,
        /// When that permission ends; `None`: not by itself.
        until: Option<SystemTime>,
    },
    /// In a namespace that is not enrolled.
    NotEnrolled,
    /// Behind a Service, but outside of the cluster: egress policy decides.
    External,
}

/// What is declared of the application protocol on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    /// Nothing is declared.
    #[default]
    Unknown,
    /// Opaque TCP.
    Tcp,
    /// TCP on which the server speaks first.
    ServerFirst,
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    H2c,
    /// gRPC, which is HTTP/2 without TLS.
    Grpc,
}

/// Why a message of the control plane was refused: goes back to it as the reason of the nack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: expected {expected}, found {found}")]
pub struct ModelError {
    /// Field of the message.
    pub place: String,
    /// What would have been taken.
    pub expected: &'static str,
    /// What was there.
    pub found: String,
}

/// Endpoints of one destination; the control plane sends a subset of at most 64 of a large Service, so that more than
/// this is a fault and not a large mesh.
const MAX_ENDPOINTS: usize = 1024;

/// Declared ports and networks of one pod: a port number has 65,535 values, a cluster a handful of networks.
const MAX_NETWORKS: usize = 1024;

impl Networks {
    /// The networks, in any order.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether `address` is inside the cluster. An IPv4 address in IPv6 notation counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The networks as they were given.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }
}

impl Destination {
    /// What an address outside of the cluster stands for: nothing but itself.
    pub fn external() -> Self {
        Self { kind: DestinationKind::External, service: None, protocol: AppProtocol::Unknown, endpoints: Vec::new() }
    }
}

impl AppProtocol {
    /// The label for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Tcp => "tcp",
            Self::ServerFirst => "server-first",
            Self::Http => "http",
            Self::H2c => "h2c",
            Self::Grpc => "grpc",
        }
    }
}

impl DestinationKind {
    /// The label for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Pod => "pod",
            Self::UnknownInternal => "unknown-internal",
            Self::External => "external",
        }
    }
}

impl TryFrom<proto::Self_> for OwnPod {
    type Error = ModelError;

    fn try_from(message: proto::Self_) -> Result<Self, ModelError> {
        let spiffe_id = spiffe_id("self.spiffe_id", &message.spiffe_id)?;
        let namespace: Arc<str> = match spiffe_id.namespace() {
            Some(namespace) => namespace.into(),
            None => {
                return Err(error("self.spiffe_id", "an ID of the form /ns/NAMESPACE/sa/NAME", message.spiffe_id));
            }
        };
        if message.workload.split_once('/').map(|(found, _)| found) != Some(&*namespace) {
            return Err(error("self.workload", "namespace/name in the namespace of self.spiffe_id", message.workload));
        }
        let Some(policies) = message.policies else {
            return Err(error("self.policies", "the pod's policies", "nothing".into()));
        };
        let policies = Policies::try_from(policies)
            .map_err(|refused| error("self.policies", "policies that this proxy knows", refused.to_string()))?;
        let mut networks = networks("self.service_cidrs", &message.service_cidrs)?;
        networks.extend(self::networks("self.pod_cidrs", &message.pod_cidrs)?);
        let mut ports = HashMap::new();
        for declared in &message.ports {
            ports.insert(port("self.ports.port", declared.port)?, protocol("self.ports.protocol", declared.protocol)?);
        }
        Ok(Self {
            workload: message.workload.into(),
            namespace,
            spiffe_id,
            pod_uid: message.pod_uid.into(),
            terminating: message.terminating,
            policies,
            networks: Networks(networks),
            ports,
        })
    }
}

impl TryFrom<proto::Destination> for Destination {
    type Error = ModelError;

    fn try_from(message: proto::Destination) -> Result<Self, ModelError> {
        let kind = match message.kind() {
            proto::DestinationKind::Service => DestinationKind::Service,
            proto::DestinationKind::Pod => DestinationKind::Pod,
            proto::DestinationKind::UnknownInternal => DestinationKind::UnknownInternal,
            proto::DestinationKind::External => DestinationKind::External,
            proto::DestinationKind::Unspecified => {
                return Err(error("destination.kind", "a kind that this proxy knows", message.kind.to_string()));
            }
        };
        if message.endpoints.len() > MAX_ENDPOINTS {
            return Err(error("destination.endpoints", "at most 1024", message.endpoints.len().to_string()));
        }
        if kind == DestinationKind::External && !message.endpoints.is_empty() {
            return Err(error("destination.endpoints", "none for an external destination", "some".into()));
        }
        let endpoints = message.endpoints.into_iter().map(Endpoint::try_from).collect::<Result<_, _>>()?;
        Ok(Self {
            kind,
            service: (!message.service.is_empty()).then(|| message.service.as_str().into()),
            protocol: protocol("destination.protocol", message.protocol)?,
            endpoints,
        })
    }
}

impl TryFrom<proto::Endpoint> for Endpoint {
    type Error = ModelError;

    fn try_from(message: proto::Endpoint) -> Result<Self, ModelError> {
        let address = address("endpoint.address", &message.address)?;
        let port = port("endpoint.port", message.port)?;
        let meshed = meshed(&message)?;
        Ok(Self {
            address: SocketAddr::new(address, port),
            weight: message.weight,
            zone: message.zone.into(),
            workload: message.workload.into(),
            pod_uid: message.pod_uid.into(),
            meshed,
            terminating: message.terminating,
        })
    }
}

fn meshed(message: &proto::Endpoint) -> Result<Meshed, ModelError> {
    let kind = message.meshed();
    let meshed = match kind {
        proto::Meshed::Yes => Meshed::Yes(spiffe_id("endpoint.spiffe_id", &message.spiffe_id)?),
        proto::Meshed::EnrolledUnmeshed => Meshed::EnrolledUnmeshed {
            permissive: message.permissive,
            until: end("endpoint.permissive_until", message.permissive_until)?,
        },
        proto::Meshed::NotEnrolled => Meshed::NotEnrolled,
        proto::Meshed::External => Meshed::External,
        proto::Meshed::Unspecified => {
            return Err(error("endpoint.meshed", "a value that this proxy knows", message.meshed.to_string()));
        }
    };
    if kind != proto::Meshed::EnrolledUnmeshed && (message.permissive || message.permissive_until != 0) {
        return Err(error("endpoint.permissive", "nothing but for an enrolled, unmeshed endpoint", "set".into()));
    }
    if kind != proto::Meshed::Yes && !message.spiffe_id.is_empty() {
        return Err(error("endpoint.spiffe_id", "nothing but for a meshed endpoint", message.spiffe_id.clone()));
    }
    Ok(meshed)
}

fn end(place: &str, seconds: i64) -> Result<Option<SystemTime>, ModelError> {
    if seconds == 0 {
        return Ok(None);
    }
    u64::try_from(seconds)
        .ok()
        .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)))
        .map(Some)
        .ok_or_else(|| error(place, "seconds since 1970, or 0", seconds.to_string()))
}

fn address(place: &str, bytes: &[u8]) -> Result<IpAddr, ModelError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(octets) => Ok(IpAddr::from(Ipv6Addr::from(octets)).to_canonical()),
        Err(_) => Err(error(place, "4 or 16 bytes", format!("{} bytes", bytes.len()))),
    }
}

fn port(place: &str, port: u32) -> Result<u16, ModelError> {
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(error(place, "1 to 65535", port.to_string())),
    }
}

fn protocol(place: &str, value: i32) -> Result<AppProtocol, ModelError> {
    match proto::AppProtocol::try_from(value) {
        Ok(proto::AppProtocol::Unspecified) => Ok(AppProtocol::Unknown),
        Ok(proto::AppProtocol::Tcp) => Ok(AppProtocol::Tcp),
        Ok(proto::AppProtocol::ServerFirst) => Ok(AppProtocol::ServerFirst),
        Ok(proto::AppProtocol::Http) => Ok(AppProtocol::Http),
        Ok(proto::AppProtocol::H2c) => Ok(AppProtocol::H2c),
        Ok(proto::AppProtocol::Grpc) => Ok(AppProtocol::Grpc),
        Err(_) => Err(error(place, "a protocol that this proxy knows", value.to_string())),
    }
}

fn spiffe_id(place: &str, text: &str) -> Result<SpiffeId, ModelError> {
    text.parse().map_err(|_| error(place, "a SPIFFE ID", text.chars().take(256).collect()))
}

fn networks(place: &str, texts: &[String]) -> Result<Vec<IpNet>, ModelError> {
    if texts.len() > MAX_NETWORKS {
        return Err(error(place, "at most 1024 networks", texts.len().to_string()));
    }
    texts
        .iter()
        .map(|text| text.parse().map_err(|_| error(place, "CIDR notation", text.chars().take(64).collect())))
        .collect()
}

fn error(place: &str, expected: &'static str, found: String) -> ModelError {
    ModelError { place: place.to_owned(), expected, found }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn endpoint() -> proto::Endpoint {
        proto::Endpoint {
            address: vec![10, 1, 0, 7],
            port: 8080,
            weight: 1,
            workload: "shop/orders".into(),
            pod_uid: "u".into(),
            meshed: proto::Meshed::Yes.into(),
            spiffe_id: "spiffe://cluster.local/ns/shop/sa/orders".into(),
            ..Default::default()
        }
    }

    fn destination(endpoint: proto::Endpoint) -> proto::Destination {
        proto::Destination {
            kind: proto::DestinationKind::Service.into(),
            service: "shop/orders".into(),
            endpoints: vec![endpoint],
            ..Default::default()
        }
    }

    fn refused(endpoint: proto::Endpoint) -> ModelError {
        Destination::try_from(destination(endpoint)).unwrap_err()
    }

    #[test]
    fn a_whole_destination_is_taken() {
        let taken = Destination::try_from(destination(endpoint())).unwrap();
        assert_eq!(taken.kind, DestinationKind::Service);
        assert_eq!(taken.endpoints[0].address, "10.1.0.7:8080".parse().unwrap());
        assert!(matches!(&taken.endpoints[0].meshed, Meshed::Yes(id) if id.path() == "/ns/shop/sa/orders"));
    }

    #[test]
    fn what_is_not_known_is_refused_and_not_guessed() {
        assert_eq!(refused(proto::Endpoint { meshed: 0, ..endpoint() }).place, "endpoint.meshed");
        assert_eq!(refused(proto::Endpoint { meshed: 99, ..endpoint() }).place, "endpoint.meshed");
        assert_eq!(refused(proto::Endpoint { spiffe_id: String::new(), ..endpoint() }).place, "endpoint.spiffe_id");
        assert_eq!(refused(proto::Endpoint { address: vec![1, 2, 3], ..endpoint() }).place, "endpoint.address");
        assert_eq!(refused(proto::Endpoint { port: 0, ..endpoint() }).place, "endpoint.port");
        assert_eq!(refused(proto::Endpoint { port: 65536, ..endpoint() }).place, "endpoint.port");
        let unknown = proto::Destination { kind: 0, ..destination(endpoint()) };
        assert_eq!(Destination::try_from(unknown).unwrap_err().place, "destination.kind");
        let unknown = proto::Destination { protocol: 77, ..destination(endpoint()) };
        assert_eq!(Destination::try_from(unknown).unwrap_err().place, "destination.protocol");
    }

    #[test]
    fn a_meshed_endpoint_can_not_be_permissive() {
        assert_eq!(refused(proto::Endpoint { permissive: true, ..endpoint() }).place, "endpoint.permissive");
        let unmeshed = proto::Endpoint { meshed: proto::Meshed::NotEnrolled.into(), ..endpoint() };
        assert_eq!(refused(unmeshed).place, "endpoint.spiffe_id");
    }

    #[test]
    fn an_end_of_a_permission_before_1970_is_refused() {
        let unmeshed = proto::Endpoint {
            meshed: proto::Meshed::EnrolledUnmeshed.into(),
            spiffe_id: String::new(),
            permissive: true,
            permissive_until: -1,
            ..endpoint()
        };
        assert_eq!(refused(unmeshed).place, "endpoint.permissive_until");
    }

    #[test]
    fn networks_contain_mapped_addresses_too() {
        let networks = Networks::new(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        assert!(networks.contains("10.3.4.5".parse().unwrap()));
        assert!(networks.contains("::ffff:10.3.4.5".parse().unwrap()));
        assert!(networks.contains("fd00::1".parse().unwrap()));
        assert!(!networks.contains("192.0.2.1".parse().unwrap()));
    }

    fn own() -> proto::Self_ {
        proto::Self_ {
            workload: "shop/orders".into(),
            spiffe_id: "spiffe://cluster.local/ns/shop/sa/orders".into(),
            pod_uid: "u".into(),
            policies: Some(Policies::default().into()),
            service_cidrs: vec!["10.96.0.0/12".into()],
            pod_cidrs: vec!["10.1.0.0/16".into()],
            ports: vec![proto::DeclaredPort { port: 80, protocol: proto::AppProtocol::Http.into() }],
            ..Default::default()
        }
    }

    #[test]
    fn a_whole_pod_is_taken() {
        let pod = OwnPod::try_from(own()).unwrap();
        assert_eq!(&*pod.namespace, "shop");
        assert_eq!(pod.ports.get(&80), Some(&AppProtocol::Http));
        assert_eq!(pod.networks.iter().count(), 2);
    }

    #[test]
    fn a_pod_without_policies_or_of_another_namespace_is_refused() {
        assert_eq!(OwnPod::try_from(proto::Self_ { policies: None, ..own() }).unwrap_err().place, "self.policies");
        let other = proto::Self_ { workload: "bank/orders".into(), ..own() };
        assert_eq!(OwnPod::try_from(other).unwrap_err().place, "self.workload");
        let malformed = proto::Self_ { policies: Some(Default::default()), ..own() };
        assert_eq!(OwnPod::try_from(malformed).unwrap_err().place, "self.policies");
    }
}
