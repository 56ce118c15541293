//! `/validate`: objects of byrnie.dev whose mistakes a schema can't see, and namespaces that may not be enrolled.

use byrnie_api::{
    Action, GROUP, Kind, MESH_CONFIG_NAME, MeshConfigSpec, MeshSettings, Object, Problem, labels, parse, quote,
};
use serde_json::Value;
use tracing::info;

use crate::mesh::Mesh;
use crate::review::{Request, Response, in_words};

pub(crate) fn validate(request: &Request, mesh: &Mesh) -> Response {
    let is_mesh_config = request.kind.group == GROUP && request.kind.kind == Kind::MeshConfig.as_str();
    match request.operation.as_str() {
        "CREATE" | "UPDATE" => {}
        "DELETE" if is_mesh_config => return deletion(request, mesh),
        _ => return Response::allow(request),
    }
    let answer = match (request.kind.group.as_str(), request.kind.kind.as_str()) {
        (GROUP, _) => policy(request, mesh),
        ("", "Namespace") => namespace(request),
        (group, kind) => {
            let found = quote(&format!("{group} {kind}"));
            let message = format!(
                "byrnie: this webhook expects the kinds of {GROUP} and Namespaces, found {found}; restore the rules of \
                 the ValidatingWebhookConfiguration byrnie-injector (`byrnie install` does)"
            );
            Response::deny(request, &message)
        }
    };
    if !answer.is_allowed() {
        info!(object = %request.object_name(), "refused");
    }
    answer
}

fn policy(request: &Request, mesh: &Mesh) -> Response {
    let object = match parse(without_status(request.object.clone())) {
        Ok(object) => object,
        Err(error) => return Response::deny(request, &in_words(&error.object, &error.problems)),
    };
    if let Object::MeshConfig(config) = &object {
        return mesh_config(request, &config.spec, mesh);
    }
    match mesh.mesh_settings() {
        Ok(settings) => {
            let problems = object.against(&settings);
            if problems.is_empty() {
                Response::allow(request)
            } else {
                Response::deny(request, &in_words(&object.to_string(), &problems))
            }
        }
        Err(reason) => Response::not_now(request, &format!("byrnie: {object} is not admitted yet: {reason}")),
    }
}

/// The trust domain stands in every identity that was issued: with another one the control plane would go on as before,
/// and proxies made from then on would expect what nobody has.
fn mesh_config(request: &Request, spec: &MeshConfigSpec, mesh: &Mesh) -> Response {
    // What mends a broken MeshConfig must not wait for it to be good.
    let (Ok(wanted), Ok(now)) = (spec.settings(), mesh.mesh_settings()) else {
        return Response::allow(request);
    };
    if wanted.trust_domain == now.trust_domain {
        // Whether the Nodes name them, only the control plane knows.
        let opens = spec.egress.as_ref().and_then(|egress| egress.default) == Some(Action::Allow);
        let unstated = opens && wanted.pod_cidrs.is_empty();
        return Response::allow(request).warn(unstated.then(|| EGRESS_UNSTATED.to_owned()));
    }
    let found = match &spec.trust_domain {
        Some(named) => quote(named),
        None => format!("none, which is `{}`", wanted.trust_domain),
    };
    let problem = Problem::new("spec.trustDomain", quote(now.trust_domain.as_str()), found).hint(
        "every identity of the mesh has it; for another one: `byrnie uninstall`, and `byrnie install --trust-domain`",
    );
    Response::deny(request, &in_words(&format!("MeshConfig {MESH_CONFIG_NAME}"), &[problem]))
}

/// Without it the defaults hold, and some of what it says must not fall back to them unseen.
fn deletion(request: &Request, mesh: &Mesh) -> Response {
    let Ok(now) = mesh.mesh_settings() else {
        return Response::allow(request);
    };
    let mut problems = Vec::new();
    let hint = "without it the defaults hold: edit it instead";
    if now.trust_domain != MeshSettings::default().trust_domain {
        let found = quote(now.trust_domain.as_str());
        problems.push(Problem::new("spec.trustDomain", "the default, which a deletion brings back", found).hint(hint));
    }
    if !now.adopted_meshes.is_empty() {
        let expected = "none: the namespaces of these meshes would be out of the mesh, and their pods without a proxy";
        let found = quote(&now.adopted_meshes.join(", "));
        problems.push(Problem::new("spec.adoptedMeshes", expected, found).hint(hint));
    }
    if request.name != MESH_CONFIG_NAME || problems.is_empty() {
        return Response::allow(request);
    }
    Response::deny(request, &in_words(&format!("MeshConfig {MESH_CONFIG_NAME}"), &problems))
}

/// The control plane's part of an object; nobody else's to judge.
pub(crate) fn without_status(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
}

fn namespace(request: &Request) -> Response {
    let name = request.object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or(&request.name);
    if !labels::NEVER_ENROLLED.contains(&name) {
        return Response::allow(request);
    }
    let enrols = |object: &Value| label(object, labels::MESH).is_some_and(|value| value == labels::MESH_ENABLED);
    if !enrols(&request.object) {
        return Response::allow(request);
    }
    let path = format!("metadata.labels[{}]", labels::MESH);
    let problem = Problem::new(path, "no such label here", quote(labels::MESH_ENABLED))
        .hint("what this namespace runs must come up before any proxy can; it is never in the mesh");
    // Somebody has written it before the webhook was there. It does nothing, and other changes must stay possible.
    if enrols(&request.old_object) {
        return Response::allow(request).warn([format!("byrnie: Namespace {name}: {problem}")]);
    }
    Response::deny(request, &in_words(&format!("Namespace {name}"), &[problem]))
}

fn label<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(name)?.as_str()
}

const EGRESS_UNSTATED: &str = "byrnie: spec.egress.default `Allow` without spec.networks.podCIDRs is in force only while \
    every pod's address is in a Node's podCIDRs; the object's condition Accepted says whether";
