//! `/mutate`: a pod that is made gets its proxy, or the reason why not.

use byrnie_api::quote;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use tracing::{info, warn};

use crate::inject::{NamespaceFacts, Outcome, PassedBy, Settings, graft, inject};
use crate::mesh::Mesh;
use crate::nonce;
use crate::review::{Request, Response, in_words};

/// Decides on a pod. Nothing else is done, so a dry run is a run.
pub(crate) async fn mutate(request: &Request, mesh: &Mesh) -> Response {
    let object = request.object_name();
    if let Err(found) = is_pod_creation(request) {
        let message = format!(
            "byrnie: {object}: this webhook expects the CREATE of a v1 Pod, found {found}; restore the rules of the \
             MutatingWebhookConfiguration byrnie-injector (`byrnie install` does)"
        );
        return Response::deny(request, &message);
    }
    let pod = match Pod::deserialize(&request.object) {
        Ok(pod) => pod,
        Err(error) => {
            return Response::deny(request, &format!("byrnie: {object}: expected a Pod, found: {error}"));
        }
    };
    let settings = match mesh.settings() {
        Ok(settings) => settings,
        Err(reason) => return Response::not_now(request, &format!("byrnie: {object} is not admitted yet: {reason}")),
    };
    let decided = decide(&pod, &request.namespace, &settings, mesh).await;
    match decided {
        Err(Undecided(reason)) => {
            warn!(pod = %object, %reason, "not decided");
            Response::not_now(request, &format!("byrnie: {object} is not admitted yet: {reason}"))
        }
        Ok(Err(problems)) => {
            info!(pod = %object, problems = problems.len(), "refused");
            Response::deny(request, &in_words(&object, &problems))
        }
        Ok(Ok(Outcome::PassedBy(reason))) => {
            info!(pod = %object, %reason, "passed by");
            let warning = format!("byrnie: {object} stays outside of the mesh: {reason}");
            Response::allow(request).warn(reason.is_worth_a_warning().then_some(warning))
        }
        Ok(Ok(Outcome::Injected { pod, warnings })) => {
            info!(pod = %object, "injected");
            let wanted = graft(&request.object, &pod);
            Response::change(request, &request.object, &wanted).warn(warnings)
        }
    }
}

struct Undecided(String);

type Decision = Result<Outcome, Vec<byrnie_api::Problem>>;

/// What is held of a namespace may be older than the label for which the API server has asked. So a pod stays without a
/// proxy for its namespace's sake only after the API server itself was asked.
async fn decide(pod: &Pod, namespace: &str, settings: &Settings, mesh: &Mesh) -> Result<Decision, Undecided> {
    let nonce = nonce::new().map_err(|reason| Undecided(reason.to_owned()))?;
    if let Some(facts) = mesh.namespace(namespace) {
        let decision = inject(pod, &facts, settings, nonce.clone());
        if !matches!(decision, Ok(Outcome::PassedBy(PassedBy::NotEnrolled | PassedBy::OptedOut(_)))) {
            return Ok(decision);
        }
    }
    let facts: NamespaceFacts = mesh.ask_namespace(namespace).await.map_err(Undecided)?;
    Ok(inject(pod, &facts, settings, nonce))
}

fn is_pod_creation(request: &Request) -> Result<(), String> {
    let kind = &request.kind;
    let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
    if is_pod && request.operation == "CREATE" {
        return Ok(());
    }
    Err(format!(
        "{} of {} {}",
        quote(&request.operation),
        quote(&format!("{}/{}", kind.group, kind.version)),
        quote(&kind.kind)
    ))
}
