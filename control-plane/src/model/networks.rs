//! What lies inside of the cluster: the networks that MeshConfig states, and those that Nodes and ServiceCIDRs name. Both
//! count: what one of them says is inside is never taken for a host outside.

use std::{collections::HashSet, net::IpAddr};

use byrnie_api::MeshSettings;
use byrnie_policy::DefaultAction;
use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Node, networking::v1::ServiceCIDR};

use super::{PodFacts, builder::Builder, status::Amendment};
use crate::{limits, source::ObjectKey};

/// The cluster's networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    /// Of the pods.
    pub pods: Vec<IpNet>,
    /// Of the Services' cluster IPs.
    pub services: Vec<IpNet>,
}

/// What the objects of the cluster say of its networks.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    pods: Vec<IpNet>,
    services: Vec<IpNet>,
    /// Of all nodes, whether pods run there or not.
    pub(super) nodes: HashSet<IpAddr>,
}

impl Networks {
    /// Whether the address is in one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.pods.iter().chain(&self.services).any(|network| network.contains(&address))
    }

    fn of(settings: &MeshSettings, learnt: &Learnt) -> Self {
        let both = |stated: &[IpNet], learnt: &[IpNet]| {
            let beyond = cover(learnt).into_iter().filter(|network| !stated.iter().any(|wide| wide.contains(network)));
            stated.iter().copied().chain(beyond).collect()
        };
        Self {
            pods: both(&settings.pod_cidrs, &learnt.pods),
            services: both(&settings.service_cidrs, &learnt.services),
        }
    }
}

impl Learnt {
    /// Its pods' networks and its addresses; what of them is not taken.
    pub(super) fn node(&mut self, node: &Node) -> Vec<String> {
        let mut notes = Vec::new();
        let spec = node.spec.iter();
        let texts = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        for text in texts.filter(|text| !text.is_empty()) {
            match text.parse::<IpNet>().map(|network| network.trunc()) {
                Ok(network) if is_of_one_node(&network) => self.pods.push(network),
                Ok(network) => notes.push(format!("spec.podCIDRs: {network} is too wide for one node; it is not used")),
                Err(_) => notes.push(format!("spec.podCIDRs: expected a network, found {text:?}; it is not used")),
            }
        }
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let addresses = addresses.filter_map(|address| address.address.parse::<IpAddr>().ok());
        self.nodes.extend(
            addresses
                .map(|address| address.to_canonical())
                .filter(|address| !(address.is_unspecified() || address.is_loopback() || address.is_multicast())),
        );
        notes
    }

    /// Networks that cluster IPs are taken from; what of them is not taken.
    pub(super) fn service_cidr(&mut self, object: &ServiceCIDR) -> Vec<String> {
        let mut notes = Vec::new();
        for text in object.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()) {
            match text.parse::<IpNet>() {
                Ok(network) => self.services.push(network.trunc()),
                Err(_) => notes.push(format!("spec.cidrs: expected a network, found {text:?}; it is not used")),
            }
        }
        notes
    }
}

impl Builder<'_> {
    /// Joins what was learnt with what is stated. `egress.default: Allow` is in force only where the pods' networks are
    /// known: a pod that was just made would count as outside, and be called in plaintext.
    pub(super) fn take_networks(&mut self) {
        self.networks = Networks::of(&self.settings, &self.learnt);
        if self.settings.egress_default != DefaultAction::Allow || !self.settings.pod_cidrs.is_empty() {
            return;
        }
        let found = if self.networks.pods.is_empty() {
            "no Node names its podCIDRs".to_owned()
        } else if let Some((pod, address)) = self.outside() {
            format!("pod {} has {address}, which is in no Node's podCIDRs", pod.place())
        } else {
            return;
        };
        self.egress_held = true;
        // Its status says why it is refused.
        if self.settings_refused {
            return;
        }
        let message = format!(
            "spec.egress.default: `Allow` needs the networks of all pods, and they are not known: {found}; `Deny` is in \
             force, and everything else of the object; state the networks in spec.networks.podCIDRs"
        );
        let object = ObjectKey {
            kind: byrnie_api::Kind::MeshConfig.to_string(),
            namespace: String::new(),
            name: byrnie_api::MESH_CONFIG_NAME.to_owned(),
        };
        self.amendments.push(Amendment::Refused { object: object.to_string(), message });
    }

    /// A pod whose address is in none of the pods' networks: some network plugins do not use those of the Nodes.
    fn outside(&self) -> Option<(&PodFacts, IpAddr)> {
        let is_outside = |address: &&IpAddr| !self.networks.pods.iter().any(|network| network.contains(*address));
        let mut live = self.pods.values().filter(|pod| !pod.finished);
        live.find_map(|pod| Some((pod, *pod.addresses.iter().find(is_outside)?)))
    }
}

/// Whoever has a node's credentials may write its networks, once: they must not cut the whole mesh off from everything.
fn is_of_one_node(network: &IpNet) -> bool {
    network.prefix_len() >= if network.addr().is_ipv4() { 8 } else { 32 }
}

/// At most [`limits::NETWORKS`] that cover all of these. Where they are more, they are widened: an address that counts as
/// inside too much is refused; one too little could be a pod that is called in plaintext.
fn cover(networks: &[IpNet]) -> Vec<IpNet> {
    let mut covering = IpNet::aggregate(&networks.to_vec());
    while covering.len() > limits::NETWORKS {
        let longest = covering.iter().map(IpNet::prefix_len).max().unwrap_or(0);
        let widened = covering.iter().map(|network| match network.supernet() {
            Some(wider) if network.prefix_len() == longest => wider,
            _ => *network,
        });
        covering = IpNet::aggregate(&widened.collect());
    }
    covering
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use serde_json::json;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_networks_of_many_nodes_become_few_that_leave_none_out() {
        let adjacent: Vec<IpNet> = (0..=255).map(|node| format!("10.244.{node}.0/24").parse().unwrap()).collect();
        assert_eq!(cover(&adjacent), networks(&["10.244.0.0/16"]));
        let gaps: Vec<IpNet> = (0..4096)
            .map(|node| format!("10.{}.{}.0/24", node / 128, node % 128 * 2).parse().unwrap())
            .chain((0..100).map(|node| format!("fd00:0:0:{:x}::/64", node * 2).parse().unwrap()))
            .collect();
        let covering = cover(&gaps);
        assert!(covering.len() <= limits::NETWORKS, "{}", covering.len());
        assert!(gaps.iter().all(|network| covering.iter().any(|wide| wide.contains(network))));
        assert!(!covering.iter().any(|wide| wide.contains(&"192.0.2.1".parse::<IpAddr>().unwrap())));
        assert!(cover(&[]).is_empty());
    }

    #[test]
    fn what_is_stated_and_what_is_learnt_both_count() {
        let settings = MeshSettings { pod_cidrs: networks(&["10.0.0.0/8"]), ..MeshSettings::default() };
        let mut learnt = Learnt::default();
        let node = json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::5/64"]}});
        assert!(learnt.node(&serde_json::from_value(node).unwrap()).is_empty());
        let service_cidr = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
        assert!(learnt.service_cidr(&serde_json::from_value(service_cidr).unwrap()).is_empty());
        let found = Networks::of(&settings, &learnt);
        assert_eq!(found.pods, networks(&["10.0.0.0/8", "fd00:1::/64"]));
        assert_eq!(found.services, networks(&["10.96.0.0/16"]));
    }

    #[test]
    fn a_node_that_claims_half_of_the_world_or_says_nonsense_is_not_believed() {
        let mut learnt = Learnt::default();
        let node = json!({"spec": {"podCIDRs": ["128.0.0.0/1", "8000::/1", "pods", "10.1.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "192.0.2.9"}, {"type": "ExternalIP", "address": "2001:db8::9"}]}});
        let notes = learnt.node(&serde_json::from_value(node).unwrap());
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert_eq!(learnt.pods, networks(&["10.1.0.0/24"]));
        let nodes: HashSet<IpAddr> = ["192.0.2.9", "2001:db8::9"].map(|text| text.parse().unwrap()).into();
        assert_eq!(learnt.nodes, nodes);
    }
}
