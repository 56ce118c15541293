//! Byrnie's own objects in a cluster: what they are ([`objects`], of [`Values`]), and how they get there and away.
//!
//! The objects are made once, here, typed. `byrnie install` sends them to the API server, `--dry-run` prints them, and
//! the Helm chart is written from the same functions ([`chart`]).

mod admission;
pub mod apply;
pub mod chart;
mod manifest;
pub mod rbac;
pub mod ready;
pub mod remove;
pub mod trust_domain;
mod values;
mod workloads;

use byrnie_api::labels::SYSTEM_NAMESPACE;
use k8s_openapi::api::core::v1::Namespace;

pub use manifest::Manifest;
pub use values::{BYRNIE, HELM, Resources, Values};

/// The label that says whose an object is.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The label of everything that an installation consists of; what the control plane makes later does not have it.
pub const PART_OF: &str = "app.kubernetes.io/part-of";

/// The label with the version that an object was installed by.
pub const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// The oldest Kubernetes that has everything: native sidecars (1.29), and ValidatingAdmissionPolicy and the conditions of
/// webhooks in their final form (1.30).
pub const OLDEST_KUBERNETES: (u32, u32) = (1, 30);

/// Every object of an installation, in the order in which they are applied: what others need comes first, and the
/// webhooks, which refuse until the injector is there, come last.
pub fn objects(values: &Values) -> Vec<Manifest> {
    let mut objects = vec![namespace(values)];
    objects.extend(crds(values));
    objects.extend(rbac::objects(values));
    objects.extend(admission::policies(values));
    objects.extend(workloads::objects(values));
    objects.extend(admission::webhooks(values));
    objects
}

/// Our namespace. Its pods meet the strictest of Kubernetes' Pod Security Standards, and nobody else's belong there.
fn namespace(values: &Values) -> Manifest {
    let mut labels = values.labels("namespace");
    labels.insert("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned());
    Manifest::of(&Namespace { metadata: manifest::metadata(SYSTEM_NAMESPACE, None, labels), ..Namespace::default() })
}

fn crds(values: &Values) -> Vec<Manifest> {
    let labelled = byrnie_api::crds().into_iter().map(|mut crd| {
        crd.metadata.labels = Some(values.labels("crds"));
        Manifest::of(&crd)
    });
    labelled.collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
