//! Where the objects come from. The model is level-triggered: a source hands over all objects that there are, again
//! after every change; nobody downstream has to follow single events.

pub mod directory;
mod document;
pub mod kubernetes;
mod watcher;

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use tokio::sync::watch;

pub use self::{
    directory::{DirectorySource, SourceError},
    kubernetes::{KubernetesSource, NotListed},
};

/// In the place of a file's name: the object is the API server's.
pub const KUBERNETES: &str = "kubernetes";

/// A supplier of objects.
pub trait Source: Send + Sync {
    /// All objects as they are now, and again after every change.
    fn objects(&self) -> watch::Receiver<Arc<Objects>>;
}

/// All objects of a source at one moment.
#[derive(Debug, Default, Clone)]
pub struct Objects {
    /// What could be read, one of each key.
    pub items: BTreeMap<Arc<ObjectKey>, Stored>,
    /// What could not be read or taken.
    pub problems: Vec<Problem>,
    /// `metadata.generation` of the mesh's own objects, read or not, where there is one.
    pub generations: BTreeMap<Arc<ObjectKey>, i64>,
    /// By what a pod of this source counts as meshed.
    pub meshed_by: MeshedBy,
}

/// By what a pod counts as meshed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum MeshedBy {
    /// The CA issued to it: a directory says nothing about proxies.
    #[default]
    Issuance,
    /// Its spec has our capture and our proxy. Kubernetes lets nobody change that afterwards, and all replicas of the
    /// control plane see it at the same time, whichever of them issued.
    Sidecar,
}

/// An object and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The object.
    pub object: Arc<Object>,
    /// The file, relative to the source; `kubernetes` for an object of the API server.
    pub file: Arc<str>,
    /// The line at which its document begins, from 1; 0: it is in no file.
    pub line: u64,
}

/// Why a file or an object of it is not what the model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the source; `kubernetes` for an object of the API server.
    pub file: Arc<str>,
    /// From 1; 0: the file as a whole, or no file.
    pub line: u64,
    /// Which object, where that much was readable.
    pub object: Option<ObjectKey>,
    /// What was expected, what was found, and what holds meanwhile.
    pub message: String,
}

/// Kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// An object of a kind that we know.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// `v1`
    Namespace(Box<Namespace>),
    /// `v1`
    Pod(Box<Pod>),
    /// `v1`
    Service(Box<Service>),
    /// `v1`
    ServiceAccount(Box<ServiceAccount>),
    /// `v1`; the API server's only
    Node(Box<Node>),
    /// `networking.k8s.io/v1`; the API server's only
    ServiceCidr(Box<ServiceCIDR>),
    /// `discovery.k8s.io/v1`
    EndpointSlice(Box<EndpointSlice>),
    /// `byrnie.dev/v1alpha1`
    Mesh(Box<byrnie_api::Object>),
}

impl Stored {
    /// `file:line: `, to go before a message; empty for what is in no file.
    pub fn place(&self) -> String {
        if self.line == 0 { String::new() } else { format!("{}:{}: ", self.file, self.line) }
    }
}

impl Problem {
    /// Whether it concerns an object of this kind.
    pub fn is_about(&self, kind: &str) -> bool {
        self.object.as_ref().is_some_and(|object| object.kind == kind)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}
