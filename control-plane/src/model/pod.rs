//! What the mesh needs to know of a pod.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use aws_lc_rs::digest;
use byrnie_api::{CaptureExclusions, is_meshed, labels};
use byrnie_identity::{SpiffeId, TrustDomain};
use byrnie_policy::Policies;
use byrnie_proto::mesh::v1 as proto;
use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec, PodStatus};

use super::service::port_number;
use crate::source::MeshedBy;

/// A pod of the source.
#[derive(Debug, Clone)]
pub struct PodFacts {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// `metadata.uid`; where the source names none, one made of namespace and name.
    pub uid: Arc<str>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The service account's name.
    pub service_account: Arc<str>,
    /// What the pod's proxy must prove.
    pub spiffe_id: SpiffeId,
    /// `namespace/name` of the controlling workload, or of the pod where there is none.
    pub workload: Arc<str>,
    /// The pod's own addresses, of both families; none where it shares its node's.
    pub addresses: Vec<IpAddr>,
    /// The addresses of its node, as far as they are known.
    pub node_addresses: Vec<IpAddr>,
    /// The name of its node; empty: unknown.
    pub node: Arc<str>,
    /// It shares its node's addresses (`hostNetwork`), and so is no member of the mesh.
    pub host_network: bool,
    /// Label `topology.kubernetes.io/zone`; empty: unknown.
    pub zone: Arc<str>,
    /// May take connections.
    pub ready: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// Its containers have ended: its address may belong to another pod by now.
    pub finished: bool,
    /// Its namespace is enrolled, and it does not opt out.
    pub enrolled: bool,
    /// Its spec has our capture and our proxy; says something in Kubernetes only.
    pub injected: bool,
    /// Its inbound ports that are not captured.
    pub exclusions: CaptureExclusions,
    /// What concerns its connections.
    pub policies: Policies,
    /// What its Services declare of its ports.
    pub declared: BTreeMap<u16, proto::AppProtocol>,
    named_ports: HashMap<String, u16>,
    /// Address (`None`: any of the node's) and port on the node, and the pod's port to which it leads.
    host_ports: Vec<(Option<IpAddr>, u16, u16)>,
}

impl PodFacts {
    /// Reads a pod; policies and declared ports are the model's to fill in. The second part of the result is what is
    /// taken otherwise than written.
    ///
    /// # Errors
    /// Why it can't be in the model.
    pub(crate) fn read(
        pod: &Pod,
        namespace: &str,
        name: &str,
        trust_domain: &TrustDomain,
        meshed_by: MeshedBy,
    ) -> Result<(Self, Vec<String>), String> {
        let spec = pod.spec.as_ref().ok_or("spec: expected a pod's, found none")?;
        let host_network = spec.host_network == Some(true);
        let service_account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let spiffe_id = SpiffeId::workload(trust_domain, namespace, service_account)
            .map_err(|error| format!("namespace and service account make no SPIFFE ID: {error}"))?;
        let empty = BTreeMap::new();
        let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
        let mut notes = Vec::new();
        if host_network {
            notes.push("spec.hostNetwork: the pod shares its node's address and stays outside of the mesh".to_owned());
        }
        let read = match meshed_by {
            MeshedBy::Issuance => CaptureExclusions::from_annotations(annotations),
            MeshedBy::Sidecar => CaptureExclusions::from_arguments(capture_arguments(spec)),
        };
        let exclusions = read.unwrap_or_else(|problems| {
            notes.extend(problems.iter().map(|problem| format!("{problem}; nothing is excluded")));
            CaptureExclusions::default()
        });
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let facts = Self {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid(pod, namespace, name)?,
            service_account: service_account.into(),
            spiffe_id,
            workload: format!("{namespace}/{}", workload_name(pod, name)).into(),
            addresses: addresses("status.podIPs", pod.status.iter().flat_map(pod_ips).filter(|_| !host_network))?,
            node_addresses: node_addresses(pod, host_network)?,
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            host_network,
            zone: labels.get("topology.kubernetes.io/zone").map(String::as_str).unwrap_or_default().into(),
            ready: is_ready(pod),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            finished: matches!(phase(pod), Some("Succeeded" | "Failed")),
            enrolled: labels::is_injected(annotations),
            injected: !host_network && is_meshed(spec),
            exclusions,
            policies: Policies::default(),
            declared: BTreeMap::new(),
            named_ports: named_ports(spec),
            host_ports: host_ports(spec),
            labels,
        };
        Ok((facts, notes))
    }

    /// The number of a named container port.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.named_ports.get(name).copied()
    }

    /// Where it serves: its own address of the same family, or where it has none of its own, its node's.
    pub fn same_family(&self, dialled: IpAddr) -> Option<IpAddr> {
        let addresses = if self.host_network { &self.node_addresses } else { &self.addresses };
        addresses.iter().find(|address| address.is_ipv4() == dialled.is_ipv4()).copied()
    }

    /// Places on its node that lead to a port of it.
    pub fn host_ports(&self) -> impl Iterator<Item = (SocketAddr, u16)> {
        let own = self.host_ports.iter().filter(|_| !self.host_network);
        own.flat_map(|(only, on_node, port)| {
            let nodes = self.node_addresses.iter().filter(move |address| only.is_none_or(|only| only == **address));
            nodes.map(move |address| (SocketAddr::new(*address, *on_node), *port))
        })
    }

    /// `namespace/name` of the pod itself.
    pub fn place(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A directory may leave UIDs out. What stands in is of RFC 9562's version 8: made of the name, the same each time.
fn uid(pod: &Pod, namespace: &str, name: &str) -> Result<Arc<str>, String> {
    if let Some(uid) = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) {
        let plain = uid.len() <= 128 && uid.bytes().all(|byte| byte.is_ascii_graphic());
        return if plain {
            Ok(uid.into())
        } else {
            Err("metadata.uid: expected at most 128 printable ASCII characters".to_owned())
        };
    }
    let hash = digest::digest(&digest::SHA256, format!("pod {namespace}/{name}").as_bytes());
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(hash.as_ref()) {
        *to = *from;
    }
    let mut number = u128::from_be_bytes(bytes);
    number = (number & !(0xf << 76)) | (0x8 << 76);
    number = (number & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{number:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    Ok(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)).into())
}

fn capture_arguments(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let capture = spec.init_containers.iter().flatten().find(|container| container.name == labels::CAPTURE_CONTAINER);
    capture.into_iter().flat_map(|capture| capture.command.iter().chain(&capture.args).flatten()).map(String::as_str)
}

/// As they stand in a pod's status.
pub(super) fn pod_ips(status: &PodStatus) -> impl Iterator<Item = &str> {
    status.pod_ip.as_deref().into_iter().chain(status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()))
}

fn host_ips(status: &PodStatus) -> impl Iterator<Item = &str> {
    status.host_ip.as_deref().into_iter().chain(status.host_ips.iter().flatten().map(|ip| ip.ip.as_str()))
}

/// A pod on its node's network says the node's addresses as its own.
fn node_addresses(pod: &Pod, host_network: bool) -> Result<Vec<IpAddr>, String> {
    let status = || pod.status.iter();
    let of_pod = status().flat_map(pod_ips).filter(|_| host_network);
    addresses("status.hostIPs", status().flat_map(host_ips).chain(of_pod))
}

fn addresses<'a>(place: &str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpAddr>, String> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        let address: IpAddr = text.parse().map_err(|_| format!("{place}: expected IP addresses, found {text:?}"))?;
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(format!("{place}: {address} can be no pod's address"));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// What a hand-written pod does not say is taken for the good case: it runs, and it is ready.
fn is_ready(pod: &Pod) -> bool {
    let runs = matches!(phase(pod), None | Some("" | "Running"));
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let condition = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    runs && condition.is_none_or(|condition| condition.status == "True")
}

/// The controller's name; of a ReplicaSet that a Deployment made, the Deployment's.
fn workload_name<'a>(pod: &'a Pod, name: &'a str) -> &'a str {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return name;
    };
    let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    match hash {
        Some(hash) if owner.kind == "ReplicaSet" => {
            let stripped = owner.name.strip_suffix(hash.as_str()).and_then(|rest| rest.strip_suffix('-'));
            stripped.filter(|rest| !rest.is_empty()).unwrap_or(&owner.name)
        }
        _ => &owner.name,
    }
}

fn named_ports(spec: &PodSpec) -> HashMap<String, u16> {
    let mut named = HashMap::new();
    for port in tcp_ports(spec) {
        if let (Some(name), Ok(number)) = (&port.name, u16::try_from(port.container_port)) {
            // Of two of the same name the first counts, as in Kubernetes.
            named.entry(name.clone()).or_insert(number);
        }
    }
    named
}

fn host_ports(spec: &PodSpec) -> Vec<(Option<IpAddr>, u16, u16)> {
    let host_port = |port: &ContainerPort| {
        let on_node = port.host_port.and_then(port_number)?;
        let address =
            port.host_ip.as_deref().filter(|text| !text.is_empty()).map(str::parse::<IpAddr>).transpose().ok()?;
        let address = address.map(|address| address.to_canonical()).filter(|address| !address.is_unspecified());
        Some((address, on_node, port_number(port.container_port)?))
    };
    tcp_ports(spec).filter_map(host_port).collect()
}

fn tcp_ports(spec: &PodSpec) -> impl Iterator<Item = &ContainerPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports.filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")))
}
