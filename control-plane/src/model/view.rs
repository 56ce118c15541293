//! What proxies are told: the model joined with what the CA issued.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use byrnie_identity::TrustBundle;
use byrnie_policy::MtlsMode;
use byrnie_proto::mesh::v1::{Bundle, DeclaredPort, Destination, Endpoint, Meshed, Self_, resource::Body};

use super::{Backend, Model, Networks, PodFacts, Resolved, ResolvedEndpoint, choice::choose};
use crate::{hub::View, journal::unix, source::MeshedBy};

/// Everything that answers are made of, at one moment.
#[derive(Debug, Clone)]
pub struct MeshView {
    /// What the source says.
    pub model: Arc<Model>,
    /// Pods that an SVID was issued to, by UID, and when the newest ends, Unix seconds; counts under
    /// [`MeshedBy::Issuance`].
    pub meshed: Arc<HashMap<Arc<str>, i64>>,
    /// Whom to trust.
    pub bundle: TrustBundle,
    /// The moment.
    pub now: SystemTime,
}

impl View for MeshView {
    fn is_personal(&self, name: &str) -> bool {
        if name == SELF {
            return true;
        }
        let dialled = name.strip_prefix(DESTINATION).and_then(|text| text.parse().ok());
        dialled.is_some_and(|dialled| self.model.resolve(dialled).is_personal())
    }

    fn answer(&self, name: &str, viewer: &Arc<str>) -> Body {
        if name == SELF {
            return self.own(viewer);
        }
        if let Some(trust_domain) = name.strip_prefix(BUNDLE) {
            return self.bundle(trust_domain);
        }
        let Some(text) = name.strip_prefix(DESTINATION) else {
            return Body::Error(format!(
                "{name:?} is no resource; expected `self`, `bundle/<trust domain>` or `destination/<ip>:<port>`"
            ));
        };
        match text.parse::<SocketAddr>() {
            Ok(dialled) if dialled.port() != 0 => Body::Destination(self.destination(dialled, viewer)),
            _ => Body::Error(format!("{text:?} is no destination; expected `<ip>:<port>`, IPv6 in brackets")),
        }
    }
}

/// Resource names.
pub(crate) const SELF: &str = "self";
const BUNDLE: &str = "bundle/";
const DESTINATION: &str = "destination/";

/// Every endpoint weighs the same until something says otherwise.
const WEIGHT: u32 = 1;

impl MeshView {
    fn own(&self, viewer: &str) -> Body {
        let Some(pod) = self.model.pod_by_uid(viewer) else {
            return Body::Error(format!("pod with UID {viewer} is not in the source"));
        };
        let Networks { pods, services } = &self.model.networks;
        let networks = |list: &[ipnet::IpNet]| list.iter().map(ToString::to_string).collect();
        let port =
            |(port, protocol): (&u16, &_)| DeclaredPort { port: u32::from(*port), protocol: i32::from(*protocol) };
        Body::Self_(Self_ {
            workload: pod.workload.to_string(),
            spiffe_id: pod.spiffe_id.to_string(),
            pod_uid: pod.uid.to_string(),
            terminating: pod.terminating,
            policies: Some(pod.policies.clone().into()),
            service_cidrs: networks(services),
            pod_cidrs: networks(pods),
            ports: pod.declared.iter().map(port).collect(),
        })
    }

    fn bundle(&self, trust_domain: &str) -> Body {
        if trust_domain == self.bundle.trust_domain().as_str() {
            Body::Bundle(Bundle::from(&self.bundle))
        } else {
            Body::Error(format!(
                "trust domain {trust_domain:?} is not known here; this is {}",
                self.bundle.trust_domain()
            ))
        }
    }

    /// The whole answer, at most [`crate::limits::ENDPOINTS`] endpoints.
    pub fn destination(&self, dialled: SocketAddr, viewer: &str) -> Destination {
        let Resolved { kind, service, protocol, endpoints, choice } = self.model.resolve(dialled);
        let client = self.model.pod_by_uid(viewer).map(|pod| &**pod);
        let endpoints = choose(endpoints, choice, viewer, client);
        let mut modes = BTreeMap::new();
        Destination {
            kind: kind.into(),
            service: service.to_string(),
            protocol: protocol.into(),
            endpoints: endpoints.iter().map(|endpoint| self.endpoint(endpoint, &mut modes)).collect(),
        }
    }

    fn endpoint(&self, endpoint: &ResolvedEndpoint, modes: &mut BTreeMap<(Arc<str>, u16), (bool, i64)>) -> Endpoint {
        let (address, port) = (endpoint.address.ip(), endpoint.address.port());
        let mut answer = Endpoint {
            address: match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            },
            port: u32::from(port),
            weight: WEIGHT,
            zone: endpoint.zone.to_string(),
            workload: address.to_string(),
            terminating: endpoint.terminating,
            ..Endpoint::default()
        };
        let pod = match &endpoint.backend {
            Backend::Pod(pod) => pod,
            Backend::Node(_) => return Endpoint { meshed: Meshed::NotEnrolled.into(), ..answer },
            Backend::External(_) => return Endpoint { meshed: Meshed::External.into(), ..answer },
        };
        answer.workload = pod.workload.to_string();
        answer.pod_uid = pod.uid.to_string();
        let meshed = self.meshed(pod, port);
        answer.meshed = meshed.into();
        match meshed {
            Meshed::Yes => answer.spiffe_id = pod.spiffe_id.to_string(),
            Meshed::EnrolledUnmeshed => {
                (answer.permissive, answer.permissive_until) =
                    *modes.entry((pod.uid.clone(), port)).or_insert_with(|| self.permissive(pod, port));
            }
            Meshed::NotEnrolled | Meshed::External | Meshed::Unspecified => {}
        }
        answer
    }

    /// A fact, not a wish: the pod has a proxy with an identity, and its capture includes the port.
    fn meshed(&self, pod: &PodFacts, port: u16) -> Meshed {
        let member = match self.model.meshed_by {
            MeshedBy::Issuance => self.is_issued(pod),
            MeshedBy::Sidecar => pod.injected,
        };
        if member && pod.exclusions.captures_inbound(port) {
            Meshed::Yes
        } else if member || pod.enrolled {
            Meshed::EnrolledUnmeshed
        } else {
            Meshed::NotEnrolled
        }
    }

    /// The CA issued to it. It stays a fact when the certificate ends: an enrolled pod whose proxy could not renew is
    /// refused, not called in plaintext. Whoever takes a pod out of the mesh waits for its certificate's end.
    fn is_issued(&self, pod: &PodFacts) -> bool {
        let expiry = self.meshed.get(&pod.uid);
        expiry.is_some_and(|not_after| pod.enrolled || *not_after > unix(self.now))
    }

    fn permissive(&self, pod: &PodFacts, port: u16) -> (bool, i64) {
        let holding = pod.policies.mtls_at(port, self.now);
        (holding.mode == MtlsMode::Permissive, holding.until.map_or(0, unix))
    }
}
