//! `MeshConfig`: what holds for the whole mesh.

mod sidecar;

use std::time::Duration;

use byrnie_identity::{SpiffeId, TrustDomain};
use byrnie_policy::DefaultAction;
use ipnet::IpNet;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::quote;
use crate::{Action, MtlsMode, Problem, SidecarSettings, Status, labels, syntax};
pub use sidecar::{MeshResources, MeshSidecar, SidecarExclusions, SidecarResources};

/// The name of the one `MeshConfig`.
pub const MESH_CONFIG_NAME: &str = "default";

/// What holds for the whole mesh. There is one, named `default`; what it leaves out has the default named there.
#[allow(clippy::duplicated_attributes, reason = "every column has its own type")]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "byrnie.dev",
    version = "v1alpha1",
    kind = "MeshConfig",
    plural = "meshconfigs",
    derive = "PartialEq",
    doc = "What holds for the whole mesh. There is one, named `default`.",
    status = "Status",
    category = "byrnie",
    shortname = "mesh",
    printcolumn(
        name = "Trust Domain",
        type_ = "string",
        json_path = ".spec.trustDomain",
        description = "The trust domain of every identity."
    ),
    printcolumn(
        name = "Floor",
        type_ = "string",
        json_path = ".spec.mtls.floor",
        description = "What no MtlsPolicy may go under."
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status",
        description = "Whether the mesh does what the object says."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = kube::core::Rule::new("self.metadata.name == 'default'")
        .message("metadata.name must be `default`: a mesh has one MeshConfig")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// The trust domain of every identity that the mesh issues. Default: `cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub trust_domain: Option<String>,
    /// How long a workload's certificate lives, from `1h` to `7d`. Default: `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 32), regex(pattern = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    pub svid_ttl: Option<String>,
    /// What holds for mutual TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MeshMtls>,
    /// What holds for callers of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<MeshAuthorization>,
    /// What holds for traffic that leaves the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<MeshEgress>,
    /// What the inside of the cluster is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<MeshNetworks>,
    /// Client certificates to issue to ingress controllers, which are outside of the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_certificates: Vec<IngressCertificate>,
    /// How the proxies are run; a pod's annotations change it for that pod. Taken up by pods made from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Box<MeshSidecar>>,
    /// Names of Open Service Meshes whose namespaces (label `openservicemesh.io/monitored-by`) this mesh takes over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    pub adopted_meshes: Vec<String>,
}

/// What holds for mutual TLS in the whole mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshMtls {
    /// What no MtlsPolicy may go under: with `Strict` a Permissive one is refused. Default: `Permissive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<MtlsMode>,
}

/// What holds for callers of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshAuthorization {
    /// What holds for a mesh member at a workload that no enforced Allow selects. Default: `Allow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Action>,
}

/// What holds for traffic that leaves the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshEgress {
    /// What holds for a destination that no EgressPolicy names. Default: `Deny`. `Allow` is in force only where the
    /// networks of all pods are known: by `networks.podCIDRs`, or in Kubernetes by the Nodes' podCIDRs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Action>,
}

/// What the inside of the cluster is, besides what the control plane learns in Kubernetes from Nodes (`spec.podCIDRs`) and
/// ServiceCIDRs: both count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeshNetworks {
    /// Networks of the Services' cluster IPs, in CIDR notation.
    #[serde(default, rename = "serviceCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub service_cidrs: Vec<String>,
    /// Networks of the pods, in CIDR notation.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<String>,
}

/// A service account outside of the mesh that gets a client certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IngressCertificate {
    /// The namespace of the ingress controller.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its service account.
    #[schemars(length(min = 1, max = 253))]
    pub service_account: String,
    /// In Kubernetes: the Secret (type `kubernetes.io/tls`) of the same namespace that gets it. Default:
    /// `byrnie-ingress-client`; for another name the control plane needs a Role of its own (docs/rbac.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// A `MeshConfig` that was understood, with every default in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// The trust domain of every identity that the mesh issues.
    pub trust_domain: TrustDomain,
    /// How long a workload's certificate lives.
    pub svid_ttl: Duration,
    /// What no MtlsPolicy may go under.
    pub mtls_floor: MtlsMode,
    /// What holds for a mesh member at a workload that no enforced Allow selects.
    pub authorization_default: DefaultAction,
    /// What holds for a destination that no EgressPolicy names.
    pub egress_default: DefaultAction,
    /// Networks of the Services' cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// Networks of the pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Identities outside of the mesh that get a client certificate.
    pub ingress_certificates: Vec<IngressCertificate>,
    /// How the proxies are run.
    pub sidecar: SidecarSettings,
    /// Names of Open Service Meshes whose namespaces this mesh takes over.
    pub adopted_meshes: Vec<String>,
}

impl Default for MeshSettings {
    /// What holds where there is no `MeshConfig`.
    fn default() -> Self {
        Self {
            trust_domain: DEFAULT_TRUST_DOMAIN.parse().expect("the default is a trust domain"),
            svid_ttl: DEFAULT_SVID_TTL,
            mtls_floor: MtlsMode::Permissive,
            authorization_default: DefaultAction::Allow,
            egress_default: DefaultAction::Deny,
            service_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
            ingress_certificates: Vec::new(),
            sidecar: MeshSidecar::default().settings(&mut Vec::new()),
            adopted_meshes: Vec::new(),
        }
    }
}

impl MeshConfigSpec {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<Problem> {
        self.settings().err().unwrap_or_default()
    }

    /// What it says, with every default in its place.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn settings(&self) -> Result<MeshSettings, Vec<Problem>> {
        let mut problems = Vec::new();
        let otherwise = MeshSettings::default();
        let named = self.trust_domain.as_deref();
        let trust_domain = named.and_then(|text| syntax::trust_domain("spec.trustDomain", text, &mut problems));
        let trust_domain = trust_domain.unwrap_or(otherwise.trust_domain);
        let svid_ttl = self.svid_ttl.as_deref().and_then(|text| svid_ttl(text, &mut problems));
        let networks = self.networks.clone().unwrap_or_default();
        let service_cidrs = syntax::cidrs("spec.networks.serviceCIDRs", &networks.service_cidrs, &mut problems);
        let pod_cidrs = syntax::cidrs("spec.networks.podCIDRs", &networks.pod_cidrs, &mut problems);
        for (index, certificate) in self.ingress_certificates.iter().enumerate() {
            certificate.check(index, &trust_domain, &mut problems);
            let place = |certificate: &IngressCertificate| {
                (certificate.namespace.clone(), certificate.secret_name().to_owned())
            };
            let others = self.ingress_certificates.iter().take(index);
            if others.clone().any(|other| place(other) == place(certificate)) {
                let path = format!("spec.ingressCertificates[{index}].secretName");
                let found = quote(certificate.secret_name());
                problems.push(Problem::new(path, "a Secret that no other entry of the namespace names", found));
            }
        }
        let sidecar = self.sidecar.clone().unwrap_or_default().settings(&mut problems);
        for (index, name) in self.adopted_meshes.iter().enumerate() {
            let path = format!("spec.adoptedMeshes[{index}]");
            if syntax::label_value(&path, name, &mut problems) && name.is_empty() {
                problems.push(Problem::new(path, "the name of a mesh, such as `osm`", "an empty text"));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let said = |action: Option<Action>, otherwise| action.map_or(otherwise, DefaultAction::from);
        let authorization = self.authorization.as_ref().and_then(|authorization| authorization.default);
        let egress = self.egress.as_ref().and_then(|egress| egress.default);
        Ok(MeshSettings {
            trust_domain,
            svid_ttl: svid_ttl.unwrap_or(otherwise.svid_ttl),
            mtls_floor: self.mtls.as_ref().and_then(|mtls| mtls.floor).unwrap_or(otherwise.mtls_floor),
            authorization_default: said(authorization, otherwise.authorization_default),
            egress_default: said(egress, otherwise.egress_default),
            service_cidrs,
            pod_cidrs,
            ingress_certificates: self.ingress_certificates.clone(),
            sidecar,
            adopted_meshes: self.adopted_meshes.clone(),
        })
    }
}

impl IngressCertificate {
    /// The Secret that gets it.
    pub fn secret_name(&self) -> &str {
        self.secret_name.as_deref().unwrap_or(labels::INGRESS_SECRET)
    }

    fn check(&self, index: usize, trust_domain: &TrustDomain, problems: &mut Vec<Problem>) {
        let path = format!("spec.ingressCertificates[{index}]");
        let named = syntax::namespace(&format!("{path}.namespace"), &self.namespace, problems)
            & syntax::object_name(&format!("{path}.serviceAccount"), &self.service_account, problems);
        if let Some(name) = &self.secret_name {
            syntax::object_name(&format!("{path}.secretName"), name, problems);
        }
        if named && let Err(error) = SpiffeId::workload(trust_domain, &self.namespace, &self.service_account) {
            problems.push(Problem::new(path, "the parts of a SPIFFE ID", error.to_string()));
        }
    }
}

/// The trust domain of a mesh that names none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

const HOUR: Duration = Duration::from_secs(3_600);
const DEFAULT_SVID_TTL: Duration = HOUR.saturating_mul(24);
/// Below, a control plane that is away for the time of a node's restart would already cost certificates.
const SHORTEST_SVID_TTL: Duration = HOUR;
/// Above, a stolen key is worth too much, and the issuing intermediate would have to live longer.
const LONGEST_SVID_TTL: Duration = HOUR.saturating_mul(24 * 7);

fn svid_ttl(text: &str, problems: &mut Vec<Problem>) -> Option<Duration> {
    let ttl = syntax::duration(text).filter(|ttl| (SHORTEST_SVID_TTL..=LONGEST_SVID_TTL).contains(ttl));
    if ttl.is_none() {
        problems.push(Problem::new("spec.svidTtl", "a duration from `1h` to `7d`, such as `24h`", quote(text)));
    }
    ttl
}
