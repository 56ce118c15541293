//! What the mesh needs to know of a Service.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use byrnie_proto::mesh::v1::AppProtocol;
use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::PodFacts;

/// A Service of the source.
#[derive(Debug, Clone)]
pub struct ServiceFacts {
    /// `namespace/name`.
    pub place: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// Empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<PortFacts>,
    /// `None`: its endpoints are in EndpointSlices.
    pub selector: Option<BTreeMap<String, String>>,
    /// Endpoints count also while they are not ready.
    pub publish_not_ready: bool,
    /// What stands behind it; the model fills it in.
    pub members: Vec<Member>,
}

/// A port of a Service.
#[derive(Debug, Clone)]
pub struct PortFacts {
    /// The name; empty where there is none.
    pub name: String,
    /// The Service's own port.
    pub port: u16,
    /// The pods' port.
    pub target: Target,
    /// What is spoken there.
    pub protocol: AppProtocol,
}

/// Which port of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The same of every pod.
    Number(u16),
    /// The container port of this name.
    Name(String),
}

/// A pod behind a Service.
#[derive(Debug, Clone)]
pub struct Member {
    /// The pod.
    pub pod: Arc<PodFacts>,
    /// Only this address of it; `None`: any.
    pub address: Option<IpAddr>,
    /// May take connections.
    pub ready: bool,
    /// Is going away.
    pub terminating: bool,
    /// What an EndpointSlice says of its ports, by the Service port's name; `None`: the Service port's target.
    pub ports: Option<Arc<BTreeMap<String, u16>>>,
}

impl ServiceFacts {
    /// Reads a Service. The second part of the result is what is taken otherwise than written.
    ///
    /// # Errors
    /// Why it can't be in the model: nothing of it is in force then, and its addresses are refused.
    pub(super) fn read(service: &Service, namespace: &str, name: &str) -> Result<(Self, Vec<String>), String> {
        let spec = service.spec.as_ref().ok_or("spec: expected a Service's, found none")?;
        refuse_unsupported(spec)?;
        let mut notes = Vec::new();
        if spec.traffic_distribution.is_some() {
            notes.push("spec.trafficDistribution: not supported yet; endpoints of all zones are used".to_owned());
        }
        let mut ports = Vec::new();
        for port in spec.ports.iter().flatten() {
            match port.protocol.as_deref() {
                None | Some("TCP") => ports.push(PortFacts::read(port)?),
                Some(other) => {
                    notes.push(format!("port {}: {other} is not carried by the mesh; it goes as it is", port.port))
                }
            }
        }
        let facts = Self {
            place: format!("{namespace}/{name}").into(),
            namespace: namespace.into(),
            cluster_ips: cluster_ips(spec)?,
            ports,
            selector: spec.selector.clone().filter(|selector| !selector.is_empty()),
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            members: Vec::new(),
        };
        Ok((facts, notes))
    }

    /// Whether its pods' addresses stand for themselves.
    pub fn is_headless(&self) -> bool {
        self.cluster_ips.is_empty()
    }

    /// Whether its selector, if it has one, selects the pod.
    pub(super) fn selects(&self, pod: &PodFacts) -> bool {
        self.namespace == pod.namespace
            && self
                .selector
                .as_ref()
                .is_some_and(|selector| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
    }
}

impl PortFacts {
    fn read(port: &ServicePort) -> Result<Self, String> {
        let number = port_number(port.port)
            .ok_or_else(|| format!("spec.ports: expected a port from 1 to 65535, found {}", port.port))?;
        let target = match &port.target_port {
            None => Target::Number(number),
            Some(IntOrString::String(name)) => Target::Name(name.clone()),
            Some(IntOrString::Int(target)) => {
                let expected = || format!("port {number}: targetPort: expected a name or 1 to 65535, found {target}");
                Target::Number(port_number(*target).ok_or_else(expected)?)
            }
        };
        let protocol = app_protocol(port.app_protocol.as_deref().unwrap_or_default());
        Ok(Self { name: port.name.clone().unwrap_or_default(), port: number, target, protocol })
    }
}

impl Member {
    pub(super) fn selected(pod: &Arc<PodFacts>, publish_not_ready: bool) -> Self {
        Self {
            pod: pod.clone(),
            address: None,
            ready: pod.ready || publish_not_ready,
            terminating: pod.terminating,
            ports: None,
        }
    }

    /// The pod's port that stands behind a port of the Service; `None`: this pod does not serve it.
    pub fn target(&self, port: &PortFacts) -> Option<u16> {
        match (&self.ports, &port.target) {
            (Some(ports), _) => ports.get(&port.name).copied(),
            (None, Target::Number(number)) => Some(*number),
            (None, Target::Name(name)) => self.pod.named_port(name),
        }
    }
}

/// The members that an EndpointSlice names, and what of it is not in force.
pub(super) fn slice_members(
    slice: &EndpointSlice,
    publish_not_ready: bool,
    pod_at: impl Fn(IpAddr) -> Option<Arc<PodFacts>>,
) -> Result<(Vec<Member>, Vec<String>), String> {
    if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        return Err(format!("addressType {}: not supported yet; expected IPv4 or IPv6", slice.address_type));
    }
    let tcp = slice.ports.iter().flatten().filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    let ports = tcp.filter_map(|port| Some((port.name.clone().unwrap_or_default(), port_number(port.port?)?)));
    let ports: Arc<BTreeMap<String, u16>> = Arc::new(ports.collect());
    let (mut members, mut notes) = (Vec::new(), Vec::new());
    for endpoint in slice.endpoints.iter().flatten() {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        // Kubernetes: all addresses of an endpoint are the same; consumers use the first.
        let Some(text) = endpoint.addresses.first() else {
            continue;
        };
        let address: IpAddr = text.parse().map_err(|_| format!("endpoints: expected IP addresses, found {text:?}"))?;
        let address = address.to_canonical();
        let Some(pod) = pod_at(address) else {
            notes.push(format!(
                "endpoint {address}: not supported yet, because it is no pod's address; it gets no connections"
            ));
            continue;
        };
        members.push(Member {
            address: Some(address),
            ready: conditions.ready.unwrap_or(true) || publish_not_ready,
            terminating: conditions.terminating.unwrap_or(false) || pod.terminating,
            ports: Some(ports.clone()),
            pod,
        });
    }
    Ok((members, notes))
}

fn refuse_unsupported(spec: &ServiceSpec) -> Result<(), String> {
    let refused = |what: &str, expected: &str| Err(format!("{what}: not supported yet; expected {expected}"));
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => {}
        Some(other) => return refused(&format!("spec.type {other}"), "ClusterIP"),
    }
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => {}
        Some(other) => return refused(&format!("spec.sessionAffinity {other}"), "None"),
    }
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => {}
        Some(other) => return refused(&format!("spec.internalTrafficPolicy {other}"), "Cluster"),
    }
    if spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty()) {
        return refused("spec.externalIPs", "none");
    }
    Ok(())
}

fn cluster_ips(spec: &ServiceSpec) -> Result<Vec<IpAddr>, String> {
    let listed = spec.cluster_ips.iter().flatten().map(String::as_str);
    let mut addresses = Vec::new();
    for text in spec.cluster_ip.as_deref().into_iter().chain(listed) {
        if matches!(text, "" | "None") {
            continue;
        }
        let address: IpAddr =
            text.parse().map_err(|_| format!("spec.clusterIP: expected an IP address or None, found {text:?}"))?;
        let address = address.to_canonical();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let headless =
        spec.cluster_ip.as_deref() == Some("None") || spec.cluster_ips.iter().flatten().any(|text| text == "None");
    match (addresses.is_empty(), headless) {
        (true, false) => {
            Err("spec.clusterIP: expected an IP address or None, found nothing: a source allocates no addresses"
                .to_owned())
        }
        (false, true) => Err("spec.clusterIPs: expected addresses or None, found both".to_owned()),
        _ => Ok(addresses),
    }
}

/// Kubernetes' own names, IANA's where they leave no doubt, and ours. Postgres, Redis and MongoDB clients speak
/// first: they are plain TCP. What is not listed is not declared.
fn app_protocol(name: &str) -> AppProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http,
        "h2c" | "http2" | "kubernetes.io/h2c" => AppProtocol::H2c,
        "grpc" => AppProtocol::Grpc,
        "tcp" | "tls" | "https" | "kubernetes.io/wss" | "redis" | "postgres" | "postgresql" | "mongo" | "mongodb"
        | "amqp" => AppProtocol::Tcp,
        "byrnie.dev/server-first" | "mysql" | "smtp" | "submission" | "ssh" | "ftp" | "imap" | "imap2" | "pop3" => {
            AppProtocol::ServerFirst
        }
        _ => AppProtocol::Unspecified,
    }
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
