//! Where the objects come from. The model is level-triggered: a source hands over all objects that there are, again
//! after every change; nobody downstream has to follow single events.

pub mod directory;
mod document;
mod watcher;

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use tokio::sync::watch;

pub use self::directory::{DirectorySource, SourceError};

/// A supplier of objects.
pub trait Source: Send + Sync {
    /// All objects as they are now, and again after every change.
    fn objects(&self) -> watch::Receiver<Arc<Objects>>;
}

/// All objects of a source at one moment.
#[derive(Debug, Default, Clone)]
pub struct Objects {
    /// What could be read, one of each key.
    pub items: BTreeMap<ObjectKey, Stored>,
    /// What could not be read or taken.
    pub problems: Vec<Problem>,
}

/// An object and its place.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The object.
    pub object: Arc<Object>,
    /// The file, relative to the source.
    pub file: Arc<str>,
    /// The line at which its document begins, from 1.
    pub line: u64,
}

/// Why a file or an object of it is not what the model has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the source.
    pub file: Arc<str>,
    /// From 1; 0: the file as a whole.
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
#[derive(Debug, Clone)]
pub enum Object {
    /// `v1`
    Namespace(Box<Namespace>),
    /// `v1`
    Pod(Box<Pod>),
    /// `v1`
    Service(Box<Service>),
    /// `v1`
    ServiceAccount(Box<ServiceAccount>),
    /// `discovery.k8s.io/v1`
    EndpointSlice(Box<EndpointSlice>),
    /// `byrnie.dev/v1alpha1`
    Mesh(Box<byrnie_api::Object>),
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
