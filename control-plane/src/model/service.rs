//! What the mesh needs to know of a Service.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use byrnie_proto::mesh::v1::AppProtocol;
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    PodFacts,
    choice::{Choice, Near},
};

/// A Service of the source.
#[derive(Debug, Clone)]
pub struct ServiceFacts {
    /// `namespace/name`.
    pub place: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
    /// Empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`: addresses that whoever writes the Service claims for it.
    pub external_ips: Vec<IpAddr>,
    /// Those that a load balancer has for it, as its controller says.
    pub balanced_ips: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<PortFacts>,
    /// `None`: its endpoints are in EndpointSlices.
    pub selector: Option<BTreeMap<String, String>>,
    /// Endpoints count also while they are not ready.
    pub publish_not_ready: bool,
    pub(super) choice: Choice,
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
    /// The port of every node that leads to it.
    pub node_port: Option<u16>,
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

/// Who serves at an endpoint.
#[derive(Debug, Clone)]
pub enum Backend {
    /// A pod.
    Pod(Arc<PodFacts>),
    /// A node, or the API server: in the cluster, and never in the mesh.
    Node(IpAddr),
    /// Somebody outside of the cluster.
    External(IpAddr),
}

/// What stands behind a Service.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who.
    pub backend: Backend,
    /// Only this address; `None`: any of the pod's.
    pub address: Option<IpAddr>,
    /// May take connections.
    pub ready: bool,
    /// Is going away.
    pub terminating: bool,
    /// The name of its node; empty: unknown.
    pub node: Arc<str>,
    /// Its zone; empty: unknown.
    pub zone: Arc<str>,
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
        let mut notes = Vec::new();
        match spec.type_.as_deref() {
            None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {}
            Some("ExternalName") => return Ok((Self::alias(namespace, name), vec![ALIAS.to_owned()])),
            Some(other) => {
                return Err(format!(
                    "spec.type: expected ClusterIP, NodePort, LoadBalancer or ExternalName, found {other:?}"
                ));
            }
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
            external_ips: addresses(spec.external_ips.iter().flatten(), &mut notes),
            balanced_ips: addresses(balanced(service), &mut notes),
            ports,
            selector: spec.selector.clone().filter(|selector| !selector.is_empty()),
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            choice: choice(spec, &mut notes)?,
            members: Vec::new(),
        };
        Ok((facts, notes))
    }

    /// Nothing but a name in the DNS.
    fn alias(namespace: &str, name: &str) -> Self {
        Self {
            place: format!("{namespace}/{name}").into(),
            namespace: namespace.into(),
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            balanced_ips: Vec::new(),
            ports: Vec::new(),
            selector: None,
            publish_not_ready: false,
            choice: Choice::default(),
            members: Vec::new(),
        }
    }

    /// The port of this number.
    pub fn port(&self, number: u16) -> Option<&PortFacts> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Whether its pods' addresses stand for themselves.
    pub fn is_headless(&self) -> bool {
        self.cluster_ips.is_empty()
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
        let node_port = port.node_port.and_then(port_number);
        Ok(Self { name: port.name.clone().unwrap_or_default(), port: number, target, node_port, protocol })
    }
}

impl Backend {
    /// A pod's UID; else the address.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Pod(pod) => Cow::Borrowed(&*pod.uid),
            Self::Node(address) | Self::External(address) => Cow::Owned(address.to_string()),
        }
    }

    /// Whether it is this pod.
    pub fn is(&self, pod: &PodFacts) -> bool {
        matches!(self, Self::Pod(itself) if itself.uid == pod.uid)
    }
}

impl Member {
    pub(super) fn selected(pod: &Arc<PodFacts>, publish_not_ready: bool) -> Self {
        Self {
            backend: Backend::Pod(pod.clone()),
            address: None,
            ready: pod.ready || publish_not_ready,
            terminating: pod.terminating,
            node: pod.node.clone(),
            zone: pod.zone.clone(),
            ports: None,
        }
    }

    /// The pod's port that stands behind a port of the Service; `None`: this pod does not serve it.
    pub fn target(&self, port: &PortFacts) -> Option<u16> {
        match (&self.ports, &port.target, &self.backend) {
            (Some(ports), _, _) => ports.get(&port.name).copied(),
            (None, Target::Number(number), _) => Some(*number),
            (None, Target::Name(name), Backend::Pod(pod)) => pod.named_port(name),
            (None, Target::Name(_), Backend::Node(_) | Backend::External(_)) => None,
        }
    }
}

const ALIAS: &str = "spec.type ExternalName: a name in the DNS only; what it stands for is judged by its address";

fn choice(spec: &ServiceSpec, notes: &mut Vec<String>) -> Result<Choice, String> {
    let unknown =
        |field: &str, expected: &str, found: &str| Err(format!("spec.{field}: expected {expected}, found {found:?}"));
    let lasting = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => false,
        Some("ClientIP") => true,
        Some(other) => return unknown("sessionAffinity", "None or ClientIP", other),
    };
    let preferred = match spec.traffic_distribution.as_deref() {
        None | Some("") => Near::Anywhere,
        Some("PreferClose" | "PreferSameZone") => Near::PreferZone,
        Some("PreferSameNode") => Near::PreferNode,
        // A preference: whoever does not know it may pass it over.
        Some(other) => {
            notes.push(format!("spec.trafficDistribution {other}: not supported yet; endpoints of all zones are used"));
            Near::Anywhere
        }
    };
    let near = match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => preferred,
        Some("Local") => Near::OnNode,
        Some(other) => return unknown("internalTrafficPolicy", "Cluster or Local", other),
    };
    Ok(Choice { near, lasting })
}

/// A load balancer's address of mode `Proxy` leads out to that balancer, and is not the Service (KEP-1860).
fn balanced(service: &Service) -> impl Iterator<Item = &String> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref());
    let balanced = ingress.into_iter().flatten().filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    balanced.filter_map(|ingress| ingress.ip.as_ref())
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>, notes: &mut Vec<String>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if !addresses.contains(&address) => addresses.push(address),
            Ok(_) => {}
            Err(_) => notes.push(format!("external address: expected an IP address, found {text:?}; it is not taken")),
        }
    }
    addresses
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

pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
