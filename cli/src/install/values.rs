//! What may differ between two installations.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

/// What may differ between two installations; everything else is the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Values {
    /// What stands before `/proxy`, `/control-plane` and `/injector` in the names of the images.
    pub image_prefix: String,
    /// The tag of the images.
    pub version: String,
    /// When kubelet pulls them: `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// What the control plane and the injector log.
    pub log: String,
    /// Pods of the control plane.
    pub control_plane_replicas: i32,
    /// Pods of the injector.
    pub injector_replicas: i32,
    /// What a pod of the control plane asks for and may have.
    pub control_plane_resources: Resources,
    /// What a pod of the injector asks for and may have.
    pub injector_resources: Resources,
    /// Names, besides `byrnie-ingress-client`, of the Secrets into which the control plane may write client certificates of
    /// ingress controllers.
    pub ingress_secrets: Vec<String>,
    /// Whose the objects are: [`BYRNIE`] or [`HELM`].
    #[serde(skip, default = "byrnie")]
    pub managed_by: &'static str,
}

/// The annotation of the control plane's Deployment with the values that it was installed with, as JSON.
const VALUES: &str = "byrnie.dev/install-values";

fn byrnie() -> &'static str {
    BYRNIE
}

/// `app.kubernetes.io/managed-by` of what `byrnie install` makes.
pub const BYRNIE: &str = "byrnie";

/// The same of what the Helm chart makes.
pub const HELM: &str = "Helm";

/// Kubernetes quantities.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU that the scheduler sets aside. There is no limit: one would slow handshakes down when they are most.
    pub cpu: String,
    /// Memory that the scheduler sets aside.
    pub memory: String,
    /// Memory above which the kernel ends the process.
    pub memory_limit: String,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            image_prefix: "byrnie".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pull_policy: "IfNotPresent".into(),
            log: "info".into(),
            // One can go away, with its node or for an update, and nobody notices.
            control_plane_replicas: 2,
            injector_replicas: 2,
            control_plane_resources: Resources::new("100m", "128Mi", "1Gi"),
            injector_resources: Resources::new("50m", "32Mi", "256Mi"),
            ingress_secrets: Vec::new(),
            managed_by: BYRNIE,
        }
    }
}

impl Resources {
    fn new(cpu: &str, memory: &str, memory_limit: &str) -> Self {
        Self { cpu: cpu.into(), memory: memory.into(), memory_limit: memory_limit.into() }
    }

    pub(super) fn requirements(&self) -> ResourceRequirements {
        let quantity = |name: &str, value: &str| (name.to_owned(), Quantity(value.to_owned()));
        ResourceRequirements {
            requests: Some(BTreeMap::from([quantity("cpu", &self.cpu), quantity("memory", &self.memory)])),
            limits: Some(BTreeMap::from([quantity("memory", &self.memory_limit)])),
            ..ResourceRequirements::default()
        }
    }
}

impl Values {
    /// The image of one of the three: `proxy`, `control-plane` or `injector`.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.image_prefix, self.version)
    }

    /// The values that an installation has left in the annotations of the control plane's Deployment, as far as they can be
    /// read.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        serde_json::from_str(annotations.get(VALUES)?).ok()
    }

    /// The annotations that [`Self::from_annotations`] reads. The chart has its own way to remember.
    pub(super) fn annotations(&self) -> Option<BTreeMap<String, String>> {
        let json = serde_json::to_string(self).ok().filter(|_| self.managed_by == BYRNIE)?;
        Some(BTreeMap::from([(VALUES.to_owned(), json)]))
    }

    /// The labels of an object of `component`.
    pub(super) fn labels(&self, component: &str) -> BTreeMap<String, String> {
        let mut labels = selector(component);
        labels.insert(super::VERSION_LABEL.to_owned(), self.version.clone());
        labels.insert(super::MANAGED_BY.to_owned(), self.managed_by.to_owned());
        labels.insert(super::PART_OF.to_owned(), BYRNIE.to_owned());
        labels
    }
}

/// The labels by which a workload knows its pods; these never change, the API server does not let them.
pub(super) fn selector(component: &str) -> BTreeMap<String, String> {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    BTreeMap::from([label("app.kubernetes.io/name", BYRNIE), label("app.kubernetes.io/component", component)])
}
