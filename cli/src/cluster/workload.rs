//! What `deploy/web` means: the pods behind it.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use kube::core::{ParseExpressionError, Selector};

use super::Cluster;
use crate::failure::{Exit, Failure};

/// `kind/name`, as kubectl writes it, where the kind is one that has pods.
#[derive(Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    /// Of a Deployment.
    Deployment(&'a str),
    /// Of a StatefulSet.
    StatefulSet(&'a str),
    /// Of a DaemonSet.
    DaemonSet(&'a str),
    /// Of one pod.
    Pod(&'a str),
}

impl<'a> Reference<'a> {
    /// `None` for what is no `kind/name` of these; `namespace/name` is somebody else's to read.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (kind, name) = text.split_once('/').filter(|(_, name)| !name.is_empty() && !name.contains('/'))?;
        Some(match kind {
            "deploy" | "deployment" | "deployments" | "deployment.apps" => Self::Deployment(name),
            "sts" | "statefulset" | "statefulsets" | "statefulset.apps" => Self::StatefulSet(name),
            "ds" | "daemonset" | "daemonsets" | "daemonset.apps" => Self::DaemonSet(name),
            "po" | "pod" | "pods" => Self::Pod(name),
            _ => return None,
        })
    }
}

impl Cluster {
    /// The UIDs of the pods that a reference means.
    ///
    /// # Errors
    /// There is no such object, or it has no pods.
    pub async fn pod_uids(&self, namespace: &str, of: &Reference<'_>) -> Result<BTreeSet<String>, Failure> {
        let client = self.client();
        let what = format!("get {of:?} in namespace {namespace}");
        let selector = match of {
            Reference::Pod(name) => {
                let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, namespace);
                let pod = self.call(&what, api.get(name)).await?;
                return Ok(pod.uid().into_iter().collect());
            }
            Reference::Deployment(name) => {
                let api: Api<Deployment> = Api::namespaced(client, namespace);
                self.call(&what, api.get(name)).await?.spec.map(|spec| spec.selector)
            }
            Reference::StatefulSet(name) => {
                let api: Api<StatefulSet> = Api::namespaced(client, namespace);
                self.call(&what, api.get(name)).await?.spec.map(|spec| spec.selector)
            }
            Reference::DaemonSet(name) => {
                let api: Api<DaemonSet> = Api::namespaced(client, namespace);
                self.call(&what, api.get(name)).await?.spec.map(|spec| spec.selector)
            }
        };
        let api: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(self.client(), namespace);
        let selector: Selector = selector.unwrap_or_default().try_into().map_err(|error: ParseExpressionError| {
            Failure::new(Exit::Refused, format!("the selector of {of:?} can't be read")).found(error)
        })?;
        let params = ListParams::default().labels_from(&selector);
        let pods = self.list("list pods", &api, &params).await?;
        let uids: BTreeSet<String> = pods.iter().filter_map(ResourceExt::uid).collect();
        if uids.is_empty() {
            return Err(Failure::new(Exit::Negative, format!("{of:?} in namespace {namespace} has no pods"))
                .next(format!("kubectl -n {namespace} get pods")));
        }
        Ok(uids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_as_kubectl_names_it() {
        assert_eq!(Reference::parse("deploy/web"), Some(Reference::Deployment("web")));
        assert_eq!(Reference::parse("sts/db"), Some(Reference::StatefulSet("db")));
        assert_eq!(Reference::parse("pod/web-1"), Some(Reference::Pod("web-1")));
        for other in ["shop/web", "web", "deploy/", "deploy/a/b", "secret/x"] {
            assert_eq!(Reference::parse(other), None, "{other}");
        }
    }
}
