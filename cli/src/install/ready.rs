//! Whether an installation is there and works: what `byrnie install` waits for and `byrnie check` looks at.

use byrnie_api::labels::{CONTROL_PLANE, INJECTOR, SYSTEM_NAMESPACE};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use tokio::time::Instant;

use super::apply::PAUSE;
use crate::cluster::{Cluster, pods};
use crate::failure::{Exit, Failure};

/// Waits until everything is ready; `tell` hears what it waits for, whenever that changes.
///
/// # Errors
/// It is not ready at `deadline`: with what is missing, and why.
pub async fn wait(cluster: &Cluster, deadline: Instant, tell: &mut impl FnMut(&str)) -> Result<(), Failure> {
    let mut told = String::new();
    loop {
        let missing = match missing(cluster).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            // The API server may restart under us; what lasts is told at the deadline.
            Err(failure) if failure.exit == Exit::Unreachable => failure.to_string(),
            Err(failure) => return Err(failure),
        };
        let first = missing.lines().next().unwrap_or_default();
        if first != told {
            first.clone_into(&mut told);
            tell(&format!("waiting: {first}"));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(Exit::Negative, "Byrnie is installed, and is not ready yet")
                .expected("both Deployments available, and the webhooks in service")
                .found(missing)
                .next("byrnie check   (the same command again goes on where this one stopped)"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The first thing that is missing, and why, as far as it can be told.
async fn missing(cluster: &Cluster) -> Result<Option<String>, Failure> {
    if let Some(missing) = definitions(cluster).await? {
        return Ok(Some(missing));
    }
    if let Some(missing) = deployment(cluster, CONTROL_PLANE).await? {
        return Ok(Some(missing));
    }
    if let Some(missing) = certificates(cluster).await? {
        return Ok(Some(missing));
    }
    deployment(cluster, INJECTOR).await
}

/// What is missing of the definitions of our kinds.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn definitions(cluster: &Cluster) -> Result<Option<String>, Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client());
    for wanted in byrnie_api::crds() {
        let name = wanted.name_any();
        let found = cluster.call("get our CustomResourceDefinitions", api.get_opt(&name)).await?;
        let Some(found) = found else {
            return Ok(Some(format!("CustomResourceDefinition {name} is missing")));
        };
        let conditions = found.status.into_iter().flat_map(|status| status.conditions.unwrap_or_default());
        if !conditions.into_iter().any(|each| each.type_ == "Established" && each.status == "True") {
            return Ok(Some(format!("CustomResourceDefinition {name} is not established yet")));
        }
    }
    Ok(None)
}

/// What is missing of one of the two Deployments: in the first line what, in the others why.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn deployment(cluster: &Cluster, name: &str) -> Result<Option<String>, Failure> {
    let api: Api<Deployment> = Api::namespaced(cluster.client(), SYSTEM_NAMESPACE);
    let Some(found) = cluster.call(&format!("get Deployment {name}"), api.get_opt(name)).await? else {
        return Ok(Some(format!("Deployment {SYSTEM_NAMESPACE}/{name} is missing")));
    };
    let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    if wanted == 0 {
        return Ok(Some(format!("Deployment {SYSTEM_NAMESPACE}/{name} is scaled to 0 pods")));
    }
    let status = found.status.clone().unwrap_or_default();
    let observed = status.observed_generation >= found.metadata.generation;
    let (updated, available) = (status.updated_replicas.unwrap_or(0), status.available_replicas.unwrap_or(0));
    if observed && updated >= wanted && available >= wanted && status.replicas.unwrap_or(0) == updated {
        return Ok(None);
    }
    let mut text =
        format!("Deployment {SYSTEM_NAMESPACE}/{name}: {available} of {wanted} pods available, {updated} up to date");
    let conditions = status.conditions.into_iter().flatten();
    let failed = conditions.filter(|each| each.type_ == "ReplicaFailure" && each.status == "True");
    for reason in failed.filter_map(|each| each.message) {
        text.push('\n');
        text.push_str(&crate::cluster::printable(&reason));
    }
    let component = name.strip_prefix("byrnie-").unwrap_or(name);
    let selector = format!("app.kubernetes.io/name=byrnie,app.kubernetes.io/component={component}");
    let api: Api<Pod> = Api::namespaced(cluster.client(), SYSTEM_NAMESPACE);
    let pods = cluster.list("list our pods", &api, &ListParams::default().labels(&selector)).await?;
    for pod in pods.iter().filter(|pod| !pods::is_ready(pod)) {
        text.push('\n');
        text.push_str(&pods::describe(pod));
    }
    Ok(Some(text))
}

/// What is missing of the webhooks: the configurations, and the certificates by which the API server knows the injector.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn certificates(cluster: &Cluster) -> Result<Option<String>, Failure> {
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.client());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client());
    let mutating = cluster.call("get the webhooks", mutating.get_opt(INJECTOR)).await?;
    let validating = cluster.call("get the webhooks", validating.get_opt(INJECTOR)).await?;
    let mutating = mutating.map(|found| found.webhooks.unwrap_or_default());
    let validating = validating.map(|found| found.webhooks.unwrap_or_default());
    let mutating = mutating.map(|all| all.into_iter().map(|each| (each.name, each.client_config)).collect::<Vec<_>>());
    let validating = validating.map(|all| all.into_iter().map(|each| (each.name, each.client_config)).collect());
    for (kind, found) in [("MutatingWebhookConfiguration", mutating), ("ValidatingWebhookConfiguration", validating)] {
        let Some(webhooks) = found else {
            return Ok(Some(format!("{kind} {INJECTOR} is missing")));
        };
        let empty =
            webhooks.iter().find(|(_, client)| client.ca_bundle.as_ref().is_none_or(|bytes| bytes.0.is_empty()));
        if let Some((name, _)) = empty {
            return Ok(Some(format!(
                "{kind} {INJECTOR}: webhook {} has no caBundle yet; the control plane's leader writes it",
                crate::cluster::printable(name)
            )));
        }
    }
    Ok(None)
}
