//! Sends the objects to the API server, by server-side apply: what is there already is left as it is, so that an
//! installation that was stopped half-way goes on where it stopped.

use std::time::Duration;

use byrnie_api::is_newer;
use byrnie_api::labels::{CONTROL_PLANE, SYSTEM_NAMESPACE};
use byrnie_identity::TrustDomain;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt};
use tokio::time::Instant;

use super::{BYRNIE, HELM, MANAGED_BY, Manifest, OLDEST_KUBERNETES, PART_OF, VERSION_LABEL, Values, trust_domain};
use crate::cluster::{Cluster, printable};
use crate::failure::{Exit, Failure};

/// Who set a field, in the words of server-side apply.
pub const FIELD_MANAGER: &str = "byrnie";

/// Attempts at one object: an API server that is starting up refuses for a moment.
const ATTEMPTS: u32 = 5;

/// The wait between two attempts, and between two looks.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Created,
    /// It was there, and was changed.
    Changed,
    /// It was there already, as it is to be.
    Unchanged,
}

/// How to apply.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Take over what others own, and install an older version over a newer one.
    pub force: bool,
    /// An installation must be there already.
    pub upgrade: bool,
    /// The trust domain that the mesh is to have, where it was said.
    pub trust_domain: Option<&'a TrustDomain>,
    /// Until when to wait for a namespace that is going away.
    pub deadline: Instant,
}

/// Applies all objects; `tell` hears of each.
///
/// # Errors
/// The API server is too old, an object is somebody else's, a newer version is installed, or the API server refuses.
pub async fn apply(
    cluster: &Cluster,
    values: &Values,
    options: Options<'_>,
    tell: &mut impl FnMut(&str),
) -> Result<(), Failure> {
    let objects = super::objects(values);
    old_enough(cluster).await?;
    let there = existing(cluster, &objects).await?;
    if !options.force {
        for (manifest, found) in objects.iter().zip(&there) {
            found.as_ref().map_or(Ok(()), |found| ours(manifest, found))?;
        }
        no_downgrade(&there, values)?;
    }
    let runs = |manifest: &Manifest| manifest.kind() == "Deployment" && manifest.name() == CONTROL_PLANE;
    let installed = objects.iter().zip(&there).any(|(manifest, found)| runs(manifest) && found.is_some());
    if options.upgrade && !installed {
        return Err(Failure::new(Exit::Negative, "there is nothing to upgrade")
            .expected(format!("Deployment {SYSTEM_NAMESPACE}/{CONTROL_PLANE}"))
            .found("none")
            .next("byrnie install"));
    }
    gone_if_going(cluster, &there, options.deadline, tell).await?;
    let mut trust_domain = options.trust_domain;
    if let Some(wanted) = trust_domain
        && !trust_domain::is_to_be_made(cluster, wanted, installed).await?
    {
        trust_domain = None;
    }
    for (manifest, before) in objects.iter().zip(&there) {
        if manifest.kind() == "Deployment"
            && let Some(wanted) = trust_domain.take()
        {
            trust_domain::make(cluster, wanted, options.deadline).await?;
            tell(&format!("{} created", trust_domain::mesh_config(wanted)));
        }
        let what = match apply_one(cluster, manifest, before.as_ref(), options.force).await? {
            Applied::Created => "created",
            Applied::Changed => "changed",
            Applied::Unchanged => continue,
        };
        tell(&format!("{manifest} {what}"));
    }
    prune(cluster, &objects, tell).await
}

/// The API of an object's kind, where the object lives.
pub(super) fn api(cluster: &Cluster, manifest: &Manifest) -> Api<DynamicObject> {
    match manifest.namespace() {
        Some(namespace) => Api::namespaced_with(cluster.client(), namespace, &manifest.resource),
        None => Api::all_with(cluster.client(), &manifest.resource),
    }
}

async fn old_enough(cluster: &Cluster) -> Result<(), Failure> {
    let (major, minor) = cluster.version().await?;
    if (major, minor) >= OLDEST_KUBERNETES {
        return Ok(());
    }
    Err(too_old(major, minor))
}

/// The failure of a cluster that can't.
pub(super) fn too_old(major: u32, minor: u32) -> Failure {
    let (least_major, least_minor) = OLDEST_KUBERNETES;
    Failure::new(Exit::Negative, "this Kubernetes is too old")
        .expected(format!("{least_major}.{least_minor} or later: native sidecars and ValidatingAdmissionPolicy"))
        .found(format!("{major}.{minor}"))
        .next("upgrade the cluster first")
}

/// What is there of each object, in their order.
pub(super) async fn existing(
    cluster: &Cluster,
    objects: &[Manifest],
) -> Result<Vec<Option<PartialObjectMeta<DynamicObject>>>, Failure> {
    let mut there = Vec::with_capacity(objects.len());
    for manifest in objects {
        let api = api(cluster, manifest);
        there.push(cluster.call(&format!("get {manifest}"), api.get_metadata_opt(manifest.name())).await?);
    }
    Ok(there)
}

/// What is not labelled as ours is not overwritten. A namespace that somebody made beforehand is welcome.
pub(super) fn ours(manifest: &Manifest, found: &PartialObjectMeta<DynamicObject>) -> Result<(), Failure> {
    let manager = found.meta().labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).map(String::as_str);
    let failure = Failure::new(Exit::Refused, format!("{manifest} is somebody else's"))
        .expected(format!("none, or one with the label {MANAGED_BY}={BYRNIE}"));
    match manager {
        Some(BYRNIE) => Ok(()),
        Some(HELM) => {
            Err(failure.found("one that Helm manages").next("helm upgrade byrnie charts/byrnie -n byrnie-system"))
        }
        _ if manifest.kind() == "Namespace" => Ok(()),
        manager => Err(failure
            .found(manager.map_or_else(|| "one without it".to_owned(), |manager| printable(&format!("{manager:?}"))))
            .next("look at it (kubectl get … -o yaml), then remove it, or take it over with --force")),
    }
}

fn no_downgrade(there: &[Option<PartialObjectMeta<DynamicObject>>], values: &Values) -> Result<(), Failure> {
    let versions = there.iter().flatten().filter(|found| found.meta().deletion_timestamp.is_none());
    let versions = versions.filter_map(|found| found.meta().labels.as_ref()?.get(VERSION_LABEL));
    let newer = versions.filter(|version| is_newer(version, &values.version)).max();
    newer.map_or(Ok(()), |newer| {
        Err(Failure::new(Exit::Refused, "a newer version is installed")
            .expected(format!("{} or older", values.version))
            .found(printable(newer))
            .next(format!("use byrnie {}, or go back with --force", printable(newer))))
    })
}

/// A namespace or a definition that is being deleted takes nothing new: an uninstall may still be going on.
async fn gone_if_going(
    cluster: &Cluster,
    there: &[Option<PartialObjectMeta<DynamicObject>>],
    deadline: Instant,
    tell: &mut impl FnMut(&str),
) -> Result<(), Failure> {
    let going = there.iter().flatten().any(|found| found.meta().deletion_timestamp.is_some());
    if !going {
        return Ok(());
    }
    tell("waiting for what is being deleted to be gone");
    let objects = super::objects(&Values::default());
    loop {
        let there = existing(cluster, &objects).await?;
        let left = objects
            .iter()
            .zip(&there)
            .filter(|(_, found)| found.as_ref().is_some_and(|found| found.meta().deletion_timestamp.is_some()));
        let left: Vec<String> = left.map(|(manifest, _)| manifest.to_string()).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(Exit::Negative, "what is being deleted does not go away")
                .expected("an earlier uninstall to end")
                .found(left.join(", "))
                .next("kubectl get namespace byrnie-system -o yaml   (its conditions say what is left in it)"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn apply_one(
    cluster: &Cluster,
    manifest: &Manifest,
    before: Option<&PartialObjectMeta<DynamicObject>>,
    force: bool,
) -> Result<Applied, Failure> {
    let api = api(cluster, manifest);
    let mut params = PatchParams::apply(FIELD_MANAGER);
    params.force = force;
    let what = format!("apply {manifest}");
    let mut attempt = 1;
    let after = loop {
        let patch = Patch::Apply(&manifest.object);
        let applied = cluster.call(&what, api.patch(manifest.name(), &params, &patch)).await;
        match applied {
            Ok(after) => break after,
            Err(failure) if attempt < ATTEMPTS && failure.exit == Exit::Unreachable => {
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            Err(failure) => return Err(failure),
        }
    };
    Ok(match before {
        None => Applied::Created,
        Some(before) if before.uid() != after.uid() => Applied::Created,
        Some(before) if before.resource_version() == after.resource_version() => Applied::Unchanged,
        Some(_) => Applied::Changed,
    })
}

/// Deletes what an earlier version installed and this one has no more. Definitions stay: with one, every object of its
/// kind would go.
async fn prune(cluster: &Cluster, objects: &[Manifest], tell: &mut impl FnMut(&str)) -> Result<(), Failure> {
    for (resource, found) in installed(cluster, objects).await? {
        if resource == "CustomResourceDefinition" || objects.iter().any(|object| same(object, &found)) {
            continue;
        }
        let what = format!("delete {found}");
        cluster.call(&what, api(cluster, &found).delete(found.name(), &DeleteParams::background())).await?;
        tell(&format!("{found} deleted: this version has no such object"));
    }
    Ok(())
}

fn same(one: &Manifest, other: &Manifest) -> bool {
    one.kind() == other.kind() && one.name() == other.name() && one.namespace() == other.namespace()
}

/// Everything in the cluster that is labelled as of an installation, of the kinds that `objects` has, with its kind.
pub(super) async fn installed(cluster: &Cluster, objects: &[Manifest]) -> Result<Vec<(String, Manifest)>, Failure> {
    let params = ListParams::default().labels(&format!("{MANAGED_BY}={BYRNIE},{PART_OF}={BYRNIE}"));
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for manifest in objects {
        let resource = &manifest.resource;
        if !seen.insert((resource.group.clone(), resource.kind.clone())) {
            continue;
        }
        let api: Api<DynamicObject> = Api::all_with(cluster.client(), resource);
        for object in cluster.list(&format!("list {}", resource.plural), &api, &params).await? {
            found.push((resource.kind.clone(), Manifest { resource: resource.clone(), object }));
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn found(labels: serde_json::Value) -> PartialObjectMeta<DynamicObject> {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "x", "labels": labels}})).unwrap()
    }

    #[test]
    fn what_is_somebody_elses_is_refused_and_says_how_to_go_on() {
        let objects = super::super::objects(&Values::default());
        let (namespace, crd) = (&objects[0], &objects[1]);
        assert!(ours(crd, &found(serde_json::json!({MANAGED_BY: "byrnie"}))).is_ok());
        let helm = ours(crd, &found(serde_json::json!({MANAGED_BY: "Helm"}))).unwrap_err();
        assert!(helm.next.unwrap().starts_with("helm upgrade"));
        for labels in [serde_json::json!({}), serde_json::json!({MANAGED_BY: "flux\u{1b}"})] {
            let refused = ours(crd, &found(labels.clone())).unwrap_err();
            assert!(refused.next.unwrap().contains("--force"));
            assert!(!refused.found.unwrap().contains('\u{1b}'));
            assert!(ours(namespace, &found(labels)).is_ok(), "a namespace made beforehand is welcome");
        }
    }

    #[test]
    fn an_older_version_does_not_go_over_a_newer_one() {
        let there = [None, Some(found(serde_json::json!({VERSION_LABEL: "99.0.0"})))];
        let refused = no_downgrade(&there, &Values::default()).unwrap_err();
        assert_eq!(refused.found.as_deref(), Some("99.0.0"));
        assert!(no_downgrade(&[None], &Values::default()).is_ok());
    }
}
