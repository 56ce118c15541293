//! Takes an installation away: the webhooks first, so that from then on nothing waits for an injector that is going.

use std::time::Duration;

use byrnie_api::labels::{BUNDLE_CONFIG_MAP, SYSTEM_NAMESPACE, is_enrolled};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use tokio::time::Instant;

use super::apply::{PAUSE, api, existing, installed, ours};
use super::{BYRNIE, MANAGED_BY, Manifest, Values};
use crate::cluster::{Cluster, pods};
use crate::failure::{Exit, Failure};

/// How to remove.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Although the mesh is in use.
    pub force: bool,
    /// The definitions of our kinds too, and with them every object of these kinds.
    pub definitions: bool,
    /// Until when to wait for the namespace to be gone.
    pub deadline: Instant,
}

/// Who still uses the mesh.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Namespaces that are enrolled.
    pub namespaces: Vec<String>,
    /// Pods that run with a proxy, `namespace/name`.
    pub pods: Vec<String>,
}

/// The label of Secrets that the control plane makes for ingress controllers.
const INGRESS_LABEL: &str = "byrnie.dev/ingress-certificate";

/// Pods that an error message names; the others are counted.
const MOST_NAMED: usize = 10;

/// Who uses the mesh now.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn in_use(cluster: &Cluster) -> Result<InUse, Failure> {
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    let namespaces = cluster.list("list namespaces", &namespaces, &ListParams::default()).await?;
    let adopted = cluster.adopted_meshes().await?;
    let enrolled = namespaces.iter().filter(|each| is_enrolled(&each.name_any(), each.labels(), &adopted));
    let name = |pod: &Pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let all = cluster.pods(None).await?;
    let meshed = all.iter().filter(|pod| pods::is_meshed(pod) && !pods::is_finished(pod));
    Ok(InUse { namespaces: enrolled.map(ResourceExt::name_any).collect(), pods: meshed.map(name).collect() })
}

impl InUse {
    /// What would break if the mesh went away now; `None` where nobody uses it.
    pub fn describe(&self) -> Option<String> {
        let mut lines = Vec::new();
        if !self.namespaces.is_empty() {
            lines.push(format!("enrolled: {}", self.namespaces.join(", ")));
        }
        if !self.pods.is_empty() {
            let named: Vec<&str> = self.pods.iter().take(MOST_NAMED).map(String::as_str).collect();
            let more = self.pods.len().saturating_sub(MOST_NAMED);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            lines.push(format!(
                "{} pods run with a proxy: {}{more}\n\
                 they go on until their certificates expire, then every connection of theirs is refused",
                self.pods.len(),
                named.join(", ")
            ));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// Removes everything; `tell` hears of each object.
///
/// # Errors
/// The mesh is in use, Helm installed it, the API server refuses, or the namespace does not go away.
pub async fn remove(cluster: &Cluster, options: Options, tell: &mut impl FnMut(&str)) -> Result<(), Failure> {
    let objects = super::objects(&Values::default());
    let there = existing(cluster, &objects).await?;
    for (manifest, found) in objects.iter().zip(&there) {
        if let Some(found) = found {
            ours(manifest, found).map_err(not_ours)?;
        }
    }
    if let Some(users) = in_use(cluster).await?.describe() {
        if !options.force {
            return Err(Failure::new(Exit::Negative, "the mesh is in use")
                .expected("no enrolled namespace, and no pod with a proxy")
                .found(users)
                .next("byrnie namespace remove NAMESPACE --restart   (or --force, which breaks them)"));
        }
        tell(&format!("warning: the mesh is in use\n{users}"));
    }
    // What was installed, and what an installation that stopped half-way left without our labels is not touched.
    let mut found: Vec<Manifest> = installed(cluster, &objects).await?.into_iter().map(|(_, found)| found).collect();
    found.retain(|object| options.definitions || object.kind() != "CustomResourceDefinition");
    found.sort_by_key(|object| order(object.kind()));
    for object in found.iter().filter(|object| object.kind() != "Namespace") {
        delete(cluster, object, tell).await?;
    }
    left_by_the_control_plane(cluster, tell).await?;
    for namespace in found.iter().filter(|object| object.kind() == "Namespace") {
        delete(cluster, namespace, tell).await?;
    }
    gone(cluster, &found, options.deadline, tell).await
}

fn not_ours(failure: Failure) -> Failure {
    if failure.next.as_deref().is_some_and(|next| next.starts_with("helm")) {
        return failure.next("helm uninstall byrnie -n byrnie-system");
    }
    failure.next("remove it by hand, if it is Byrnie's; then run the same command again")
}

/// The webhooks before the injector; the workloads before what they need, so that none of them makes anew what was
/// deleted; the definitions and the namespace last.
fn order(kind: &str) -> u8 {
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => 0,
        "Deployment" => 1,
        "CustomResourceDefinition" => 3,
        "Namespace" => 4,
        _ => 2,
    }
}

async fn delete(cluster: &Cluster, object: &Manifest, tell: &mut impl FnMut(&str)) -> Result<(), Failure> {
    // In the foreground: a Deployment is gone when its pods are, and they write nothing any more.
    let params = if object.kind() == "Deployment" { DeleteParams::foreground() } else { DeleteParams::background() };
    let call = async {
        match api(cluster, object).delete(object.name(), &params).await {
            Err(error) if crate::cluster::code(&error) == Some(404) => Ok(false),
            other => other.map(|_| true),
        }
    };
    if cluster.call(&format!("delete {object}"), call).await? {
        tell(&format!("{object} deleted"));
    }
    if object.kind() == "Deployment" {
        let what = format!("get {object}");
        let waited = Instant::now() + Duration::from_secs(60);
        while cluster.call(&what, api(cluster, object).get_metadata_opt(object.name())).await?.is_some()
            && Instant::now() < waited
        {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// What the control plane made outside of our namespace: trust bundles, and ingress controllers' certificates.
async fn left_by_the_control_plane(cluster: &Cluster, tell: &mut impl FnMut(&str)) -> Result<(), Failure> {
    // By the name, which is reserved: nobody but the control plane could make one.
    let named = ListParams::default().fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}"));
    let maps: Api<ConfigMap> = Api::all(cluster.client());
    for map in cluster.list("list the trust bundles", &maps, &named).await? {
        let (namespace, name) = (map.namespace().unwrap_or_default(), map.name_any());
        let api: Api<ConfigMap> = Api::namespaced(cluster.client(), &namespace);
        let what = format!("delete ConfigMap {namespace}/{name}");
        cluster.call(&what, missing_is_fine(api.delete(&name, &DeleteParams::background()))).await?;
        tell(&format!("ConfigMap {namespace}/{name} deleted"));
    }
    let ours = ListParams::default().labels(&format!("{MANAGED_BY}={BYRNIE},{INGRESS_LABEL}"));
    let secrets: Api<Secret> = Api::all(cluster.client());
    for secret in cluster.call("list the ingress certificates", secrets.list_metadata(&ours)).await?.items {
        let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
        if namespace != SYSTEM_NAMESPACE {
            let api: Api<Secret> = Api::namespaced(cluster.client(), &namespace);
            let what = format!("delete Secret {namespace}/{name}");
            cluster.call(&what, missing_is_fine(api.delete(&name, &DeleteParams::background()))).await?;
            tell(&format!("Secret {namespace}/{name} deleted"));
        }
    }
    Ok(())
}

async fn missing_is_fine<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<()> {
    match call.await {
        Err(error) if crate::cluster::code(&error) != Some(404) => Err(error),
        _ => Ok(()),
    }
}

async fn gone(
    cluster: &Cluster,
    deleted: &[Manifest],
    deadline: Instant,
    tell: &mut impl FnMut(&str),
) -> Result<(), Failure> {
    tell("waiting for all of it to be gone");
    loop {
        let there = existing(cluster, deleted).await?;
        let left: Vec<String> = deleted
            .iter()
            .zip(&there)
            .filter_map(|(object, found)| found.as_ref().map(|_| object.to_string()))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(Exit::Negative, "not everything is gone yet")
                .expected("nothing of Byrnie")
                .found(left.join(", "))
                .next("kubectl get namespace byrnie-system -o yaml   (its conditions say what is left in it)"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_webhooks_go_first_and_the_namespace_last() {
        let objects = super::super::objects(&Values::default());
        let mut kinds: Vec<&str> = objects.iter().map(Manifest::kind).collect();
        kinds.sort_by_key(|kind| order(kind));
        assert!(kinds.first().unwrap().ends_with("WebhookConfiguration"));
        assert_eq!(kinds.last(), Some(&"Namespace"));
    }

    #[test]
    fn what_would_break_is_named_and_counted() {
        assert_eq!(InUse::default().describe(), None);
        let pods = (0..12).map(|number| format!("shop/web-{number}")).collect();
        let told = InUse { namespaces: vec!["shop".into()], pods }.describe().unwrap();
        assert!(told.starts_with("enrolled: shop\n12 pods run with a proxy: shop/web-0, "), "{told}");
        assert!(told.contains(" and 2 more\n"), "{told}");
    }
}
