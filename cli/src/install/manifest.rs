//! One object of the installation, as it is sent to the API server.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::{ApiResource, DynamicObject};
use serde::Serialize;

/// One object of the installation.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Where the API server has its kind.
    pub resource: ApiResource,
    /// The object.
    pub object: DynamicObject,
}

impl Manifest {
    /// From a typed object.
    pub(super) fn of<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        let object = serde_json::to_value(object).and_then(serde_json::from_value);
        // No object of the installation has a map with keys that are no text, which alone can't be JSON.
        Self { resource: ApiResource::erase::<K>(&()), object: object.expect("a Kubernetes object is JSON") }
    }

    /// The kind.
    pub fn kind(&self) -> &str {
        &self.resource.kind
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// The namespace, of what is in one.
    pub fn namespace(&self) -> Option<&str> {
        self.object.metadata.namespace.as_deref()
    }

    /// As YAML.
    ///
    /// # Errors
    /// None that the objects of the installation can give.
    pub fn yaml(&self) -> Result<String, serde_saphyr::ser_error::Error> {
        // By way of a JSON value, which has its fields in the order of the alphabet.
        serde_saphyr::to_string(&serde_json::to_value(&self.object).unwrap_or_default())
    }
}

/// `Kind namespace/name`, or `Kind name`.
impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name()),
            None => write!(f, "{} {}", self.kind(), self.name()),
        }
    }
}

/// Metadata with a name, a namespace or none, and labels.
pub(super) fn metadata(
    name: &str,
    namespace: Option<&str>,
    labels: std::collections::BTreeMap<String, String>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}
