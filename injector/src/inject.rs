//! Puts the proxy into a pod. A pure function: the webhook and `byrnie inject` call it with the same result.
//!
//! What is injected is made anew each time, from the settings alone. A container of our name that is there already (the
//! API server asks again when another webhook has changed the pod; somebody copies a live pod) is replaced by ours and
//! never trusted; of what it says only the original probes are read, and only where a container's own probe points to
//! them. So injecting an injected pod gives the same pod.

mod checks;
mod containers;
mod graft;
mod ports;
mod probes;

use std::collections::BTreeMap;
use std::fmt;

use byrnie_api::{ImageReference, Injection, MeshSettings, Problem, SidecarSettings, injection, labels};
use byrnie_identity::TrustDomain;
use byrnie_proto::probes::Nonce;
use clap::ValueEnum;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

pub use graft::graft;

/// What holds for every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// The proxy's image where neither the mesh nor the pod names one, and when it is pulled.
    pub image: ProxyImage,
    /// How proxies are run.
    pub sidecar: SidecarSettings,
    /// Names of Open Service Meshes whose namespaces the mesh takes over.
    pub adopted_meshes: Vec<String>,
}

impl Settings {
    /// What the mesh says, with the image that the injector was installed with.
    pub fn new(mesh: &MeshSettings, image: &ProxyImage) -> Self {
        Self {
            trust_domain: mesh.trust_domain.clone(),
            image: image.clone(),
            sidecar: mesh.sidecar.clone(),
            adopted_meshes: mesh.adopted_meshes.clone(),
        }
    }
}

/// The image that the injector was installed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyImage {
    /// Its name.
    pub reference: ImageReference,
    /// When a node pulls it, and whatever image stands in its place.
    pub pull_policy: PullPolicy,
}

impl Default for ProxyImage {
    /// The one of this version.
    fn default() -> Self {
        const IMAGE: &str = concat!("byrnie/proxy:", env!("CARGO_PKG_VERSION"));
        Self { reference: IMAGE.parse().expect("a constant, read in a test"), pull_policy: PullPolicy::default() }
    }
}

/// When a node pulls an image; the names are Kubernetes', and on a command line also those that are easier to type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Each time a container starts.
    #[value(alias = "always")]
    Always,
    /// Where it is not there.
    #[default]
    #[value(alias = "if-not-present")]
    IfNotPresent,
    /// It must be there.
    #[value(alias = "never")]
    Never,
}

impl PullPolicy {
    /// As Kubernetes spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// What is known of the namespace that a pod is made in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl NamespaceFacts {
    /// A namespace that is in the mesh by our label, for when there is no API server to ask.
    pub fn enrolled(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }.with_our_label()
    }

    /// The same once it is enrolled by our label.
    #[must_use]
    pub fn with_our_label(mut self) -> Self {
        self.labels.insert(labels::MESH.to_owned(), labels::MESH_ENABLED.to_owned());
        self
    }
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The pod with its proxy, and what its author should know.
    Injected {
        /// The whole pod.
        pod: Box<Pod>,
        /// Sentences.
        warnings: Vec<String>,
    },
    /// The pod stays as it is.
    PassedBy(PassedBy),
}

/// Why a pod stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassedBy {
    /// Its namespace is not in the mesh.
    NotEnrolled,
    /// The annotation that says so, or that is missing.
    OptedOut(String),
    /// It shares the address of its node.
    HostNetwork,
    /// The proxy runs on Linux.
    Windows,
    /// Nothing is to change.
    AlreadyInjected,
}

impl PassedBy {
    /// Whether the pod's author should hear of it: whether its connections stay unprotected though its namespace is in
    /// the mesh.
    pub const fn is_worth_a_warning(&self) -> bool {
        matches!(self, Self::OptedOut(_) | Self::HostNetwork | Self::Windows)
    }
}

impl fmt::Display for PassedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnrolled => f.write_str("its namespace is not in the mesh"),
            Self::OptedOut(why) => f.write_str(why),
            Self::HostNetwork => f.write_str("hostNetwork: it has the address of its node, which others share"),
            Self::Windows => f.write_str("it is for Windows; the proxy runs on Linux"),
            Self::AlreadyInjected => f.write_str("it has the proxy already, in this form"),
        }
    }
}

/// Puts the proxy into `pod`, which is made in `namespace`. `nonce` is a new one, for the pod's probes; one that they have
/// already stays.
///
/// # Errors
/// Everything that can't work in the mesh, or that nobody understands, each with its field.
pub fn inject(
    pod: &Pod,
    namespace: &NamespaceFacts,
    settings: &Settings,
    nonce: Nonce,
) -> Result<Outcome, Vec<Problem>> {
    if !labels::is_enrolled(&namespace.name, &namespace.labels, &settings.adopted_meshes) {
        return Ok(Outcome::PassedBy(PassedBy::NotEnrolled));
    }
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let wanted = injection(&namespace.labels, &namespace.annotations, annotations).map_err(|problem| vec![problem])?;
    let Some(spec) = &pod.spec else {
        return Err(vec![Problem::new("spec", "what the pod runs", "nothing")]);
    };
    if let Some(reason) = passes_by(spec, wanted) {
        let forged = checks::names_of_ours(spec);
        return if forged.is_empty() { Ok(Outcome::PassedBy(reason)) } else { Err(forged) };
    }
    let mut problems = checks::refusals(pod, spec, annotations);
    let sidecar = settings.sidecar.with_annotations(annotations).unwrap_or_else(|malformed| {
        problems.extend(malformed);
        SidecarSettings::default()
    });
    let mut injected = pod.clone();
    let spec = injected.spec.get_or_insert_default();
    let ours = take_ours(spec);
    let probes = probes::rewrite(spec, &ours, nonce, &mut problems);
    containers::delay_termination(spec, sidecar.termination_delay);
    if !problems.is_empty() {
        problems.truncate(crate::limits::PROBLEMS);
        return Err(problems);
    }
    let parts = containers::Parts { settings, sidecar: &sidecar, spec, probes, was: &ours };
    let (capture, proxy) = (parts.capture(), parts.proxy());
    let rest = spec.init_containers.take().unwrap_or_default();
    spec.init_containers = Some([capture, proxy].into_iter().chain(rest).collect());
    containers::put_volumes(spec);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    injected.metadata.annotations.get_or_insert_default().insert(labels::INJECTED.to_owned(), version);
    if injected == *pod {
        return Ok(Outcome::PassedBy(PassedBy::AlreadyInjected));
    }
    let warnings = checks::warnings(&injected, annotations);
    Ok(Outcome::Injected { pod: Box::new(injected), warnings })
}

/// Why a pod of a namespace that is in the mesh stays outside on purpose; `None` also where nobody can tell, because
/// [`inject`] would refuse it.
pub fn stays_outside(pod: &Pod, namespace: &NamespaceFacts) -> Option<PassedBy> {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let wanted = injection(&namespace.labels, &namespace.annotations, annotations).ok()?;
    passes_by(pod.spec.as_ref()?, wanted)
}

fn passes_by(spec: &PodSpec, wanted: Injection) -> Option<PassedBy> {
    const OS: &str = "kubernetes.io/os";
    let selects_windows = spec.node_selector.as_ref().and_then(|selector| selector.get(OS));
    let is_windows = spec.os.as_ref().is_some_and(|os| os.name == "windows")
        || selects_windows.is_some_and(|name| name == "windows");
    match wanted {
        Injection::Unwanted(why) => Some(PassedBy::OptedOut(why)),
        Injection::Wanted if spec.host_network == Some(true) => Some(PassedBy::HostNetwork),
        Injection::Wanted if is_windows => Some(PassedBy::Windows),
        Injection::Wanted => None,
    }
}

/// What stood in the pod under our names.
#[derive(Default)]
struct Ours {
    /// How many there were.
    count: usize,
    capture: Option<Container>,
    proxy: Option<Container>,
}

fn take_ours(spec: &mut PodSpec) -> Ours {
    let (taken, rest): (Vec<_>, Vec<_>) =
        spec.init_containers.take().unwrap_or_default().into_iter().partition(|each| is_ours(&each.name));
    let mut ours = Ours { count: taken.len(), ..Ours::default() };
    for container in taken {
        let place = if container.name == labels::PROXY_CONTAINER { &mut ours.proxy } else { &mut ours.capture };
        *place = Some(container);
    }
    spec.init_containers = Some(rest);
    ours
}

fn is_ours(container: &str) -> bool {
    [labels::CAPTURE_CONTAINER, labels::PROXY_CONTAINER].contains(&container)
}

#[cfg(test)]
pub(crate) mod tests;
