//! What the control plane asks the API server, and what it writes there: who a token belongs to, the root that all
//! replicas share, and (one replica at a time) what others read. Objects are followed by [`crate::source`].

mod bundles;
mod ca;
mod client;
mod conditions;
mod events;
mod ingress;
mod keys;
mod leader;
mod lease;
mod notices;
#[cfg(test)]
pub(crate) mod testing;
mod token;
mod webhook;
mod writer;

use std::collections::BTreeMap;

use byrnie_api::labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PatchParams;

pub(crate) use self::{
    ca::{CaError, authority},
    client::{ApiError, Cluster, connect, patiently},
    leader::write,
    token::{Claims, Reviewer, TokenRefused},
};

/// What everything that the control plane makes is labelled with.
fn managed() -> BTreeMap<String, String> {
    BTreeMap::from([(labels::MANAGED_BY.to_owned(), labels::MANAGED.to_owned())])
}

/// Whether the control plane has made it.
fn is_managed(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(labels::MANAGED_BY)).is_some_and(|value| value == labels::MANAGED)
}

/// Server-side apply of what is the control plane's alone, whoever wrote it before.
fn apply() -> PatchParams {
    PatchParams::apply(labels::CONTROL_PLANE).force()
}
