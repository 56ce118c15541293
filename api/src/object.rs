//! One object of any of our kinds, from the value that a file or the API server holds.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::problem::{describe, quote};
use crate::{
    AuthorizationPolicy, EgressPolicy, IngressPolicy, MESH_CONFIG_NAME, MeshConfig, MeshSettings, MtlsPolicy,
    NOT_SUPPORTED_YET, ParseError, Problem, Selector, not_yet, schema, syntax,
};

/// The API group of the custom resources.
pub const GROUP: &str = "byrnie.dev";

/// Their version.
pub const VERSION: &str = "v1alpha1";

/// Whether an object with this `apiVersion` is one that [`parse`] is for, well formed or not.
pub fn is_ours(api_version: &str) -> bool {
    api_version.split('/').next() == Some(GROUP)
}

/// The kinds of the group `byrnie.dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// What holds for the whole mesh.
    MeshConfig,
    /// Where plaintext is permitted.
    MtlsPolicy,
    /// Who of the mesh may call.
    AuthorizationPolicy,
    /// Who outside of the mesh may call.
    IngressPolicy,
    /// What outside of the cluster may be called.
    EgressPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::MeshConfig, Self::MtlsPolicy, Self::AuthorizationPolicy, Self::IngressPolicy, Self::EgressPolicy];

    /// The name in `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MeshConfig => "MeshConfig",
            Self::MtlsPolicy => "MtlsPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::IngressPolicy => "IngressPolicy",
            Self::EgressPolicy => "EgressPolicy",
        }
    }

    /// Whether its objects live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::MeshConfig)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let hint = if not_yet::KINDS.contains(&text) { NOT_SUPPORTED_YET } else { "unknown kind" };
            let known = Self::ALL.map(|kind| format!("`{kind}`")).join(" or ");
            Problem::new("kind", known, quote(text)).hint(hint)
        })
    }
}

/// An object of the mesh's configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// What holds for the whole mesh.
    MeshConfig(MeshConfig),
    /// Where plaintext is permitted.
    MtlsPolicy(MtlsPolicy),
    /// Who of the mesh may call.
    AuthorizationPolicy(AuthorizationPolicy),
    /// Who outside of the mesh may call.
    IngressPolicy(IngressPolicy),
    /// What outside of the cluster may be called.
    EgressPolicy(EgressPolicy),
    /// In the place of a policy that was refused.
    Refused(RefusedPolicy),
}

/// What is known of a policy that was refused: [`crate::compile`] closes what it may have been there to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPolicy {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it selects; `None`, also where its selector can't be read: every workload of the namespace.
    pub selector: Option<Selector>,
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::MeshConfig(_) => Kind::MeshConfig,
            Self::MtlsPolicy(_) => Kind::MtlsPolicy,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::IngressPolicy(_) => Kind::IngressPolicy,
            Self::EgressPolicy(_) => Kind::EgressPolicy,
            Self::Refused(refused) => refused.kind,
        }
    }

    /// Its namespace; `None` for what is not in one.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Refused(refused) => Some(&refused.namespace),
            _ => self.metadata().and_then(|metadata| metadata.namespace.as_deref()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Refused(refused) => &refused.name,
            _ => self.metadata().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default(),
        }
    }

    /// Everything that is wrong with it by itself; empty for what [`parse`] gave.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = match self {
            Self::MeshConfig(object) => object.spec.validate(),
            Self::MtlsPolicy(object) => object.spec.validate(),
            Self::AuthorizationPolicy(object) => object.spec.validate(),
            Self::IngressPolicy(object) => object.spec.validate(),
            Self::EgressPolicy(object) => object.spec.validate(),
            Self::Refused(_) => Vec::new(),
        };
        if let Some(metadata) = self.metadata() {
            check_metadata(self.kind(), metadata, &mut problems);
        }
        problems
    }

    /// What of it the mesh's settings do not permit. Such an object does nothing, and its status says so.
    pub fn against(&self, mesh: &MeshSettings) -> Vec<Problem> {
        match self {
            Self::MtlsPolicy(object) => object.spec.against(mesh),
            _ => Vec::new(),
        }
    }

    const fn metadata(&self) -> Option<&ObjectMeta> {
        match self {
            Self::MeshConfig(object) => Some(&object.metadata),
            Self::MtlsPolicy(object) => Some(&object.metadata),
            Self::AuthorizationPolicy(object) => Some(&object.metadata),
            Self::IngressPolicy(object) => Some(&object.metadata),
            Self::EgressPolicy(object) => Some(&object.metadata),
            Self::Refused(_) => None,
        }
    }
}

/// `Kind namespace/name`, or `Kind name`.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind(), self.name()),
            None => write!(f, "{} {}", self.kind(), self.name()),
        }
    }
}

/// Takes an object of the group `byrnie.dev`.
///
/// # Errors
/// Everything in it that is unknown, not supported yet, malformed or missing. An object is taken whole or not at all.
pub fn parse(value: Value) -> Result<Object, ParseError> {
    let Value::Object(fields) = value else {
        let problem = Problem::new("object", "fields", describe(&value));
        return Err(ParseError { object: "an object".to_owned(), problems: vec![problem], stand_in: None });
    };
    let mut problems = Vec::new();
    check_api_version(fields.get("apiVersion"), &mut problems);
    let kind = match text(&fields, "kind").map(Kind::from_str) {
        Some(Ok(kind)) => Some(kind),
        Some(Err(problem)) => {
            problems.push(problem);
            None
        }
        None => {
            let found = fields.get("kind").unwrap_or(&Value::Null);
            problems.push(Problem::new("kind", "the name of a kind", describe(found)));
            None
        }
    };
    let parsed = match kind {
        Some(kind) if problems.is_empty() => typed(kind, &fields),
        _ => Err(problems),
    };
    parsed.map_err(|problems| refusal(kind, &fields, problems))
}

fn check_api_version(found: Option<&Value>, problems: &mut Vec<Problem>) {
    let found = found.unwrap_or(&Value::Null);
    if found.as_str() != Some(&format!("{GROUP}/{VERSION}")) {
        problems.push(Problem::new("apiVersion", format!("`{GROUP}/{VERSION}`"), describe(found)));
    }
}

fn typed(kind: Kind, fields: &Map<String, Value>) -> Result<Object, Vec<Problem>> {
    let mut problems = Vec::new();
    let metadata = fields.get("metadata").cloned().unwrap_or_default();
    match serde_json::from_value::<ObjectMeta>(metadata) {
        Ok(metadata) => check_metadata(kind, &metadata, &mut problems),
        Err(error) => problems.push(Problem::new("metadata", "the metadata of an object", error.to_string())),
    }
    problems.extend(schema::check(kind, fields));
    if !problems.is_empty() {
        return Err(problems);
    }
    let object = match kind {
        Kind::MeshConfig => read(fields).map(Object::MeshConfig),
        Kind::MtlsPolicy => read(fields).map(Object::MtlsPolicy),
        Kind::AuthorizationPolicy => read(fields).map(Object::AuthorizationPolicy),
        Kind::IngressPolicy => read(fields).map(Object::IngressPolicy),
        Kind::EgressPolicy => read(fields).map(Object::EgressPolicy),
    }?;
    let problems = object.validate();
    if problems.is_empty() { Ok(object) } else { Err(problems) }
}

fn read<T: DeserializeOwned>(fields: &Map<String, Value>) -> Result<T, Vec<Problem>> {
    let mut fields = fields.clone();
    // See `schema`: nothing in it is ours to understand, and a status that changes must not look like another object.
    fields.remove("status");
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| vec![Problem::new("object", "what its schema says", error.to_string())])
}

fn check_metadata(kind: Kind, metadata: &ObjectMeta, problems: &mut Vec<Problem>) {
    match (kind, metadata.name.as_deref()) {
        (Kind::MeshConfig, Some(MESH_CONFIG_NAME)) => {}
        (Kind::MeshConfig, name) => {
            let found = name.map_or_else(|| "nothing".to_owned(), quote);
            let problem = Problem::new("metadata.name", format!("`{MESH_CONFIG_NAME}`"), found);
            problems.push(problem.hint("a mesh has one MeshConfig"));
        }
        (_, Some(name)) => {
            syntax::object_name("metadata.name", name, problems);
        }
        (_, None) => problems.push(Problem::new("metadata.name", "the object's name", "nothing")),
    }
    match (kind.is_namespaced(), metadata.namespace.as_deref()) {
        (true, Some(namespace)) => {
            syntax::namespace("metadata.namespace", namespace, problems);
        }
        (true, None) => problems.push(Problem::new("metadata.namespace", "the object's namespace", "nothing")),
        (false, Some(namespace)) => {
            problems.push(Problem::new("metadata.namespace", "nothing: the object is the cluster's", quote(namespace)));
        }
        (false, None) => {}
    }
}

fn refusal(kind: Option<Kind>, fields: &Map<String, Value>, problems: Vec<Problem>) -> ParseError {
    let metadata = fields.get("metadata").and_then(Value::as_object);
    let part = |name: &str| metadata.and_then(|metadata| text(metadata, name));
    let place = [part("namespace"), part("name")].into_iter().flatten().map(|text| quote(text).replace('`', ""));
    let place = place.collect::<Vec<_>>().join("/");
    let kind_name = text(fields, "kind").map_or_else(|| "object".to_owned(), |text| quote(text).replace('`', ""));
    let object = if place.is_empty() { format!("{kind_name} without a name") } else { format!("{kind_name} {place}") };
    let stand_in = kind.zip(part("namespace")).and_then(|(kind, namespace)| {
        let name = part("name").unwrap_or_default();
        stand_in(kind, namespace, name, fields.get("spec").and_then(Value::as_object))
    });
    ParseError { object, problems, stand_in: stand_in.map(Box::new) }
}

fn stand_in(kind: Kind, namespace: &str, name: &str, spec: Option<&Map<String, Value>>) -> Option<Object> {
    let closes = match kind {
        Kind::MtlsPolicy => true,
        // What is in audit decides nothing, understood or not.
        Kind::AuthorizationPolicy => spec.and_then(|spec| text(spec, "enforcement")) != Some("audit"),
        Kind::MeshConfig | Kind::IngressPolicy | Kind::EgressPolicy => false,
    };
    let labels = spec.and_then(|spec| spec.get("selector")).and_then(only_match_labels);
    closes.then(|| {
        Object::Refused(RefusedPolicy {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            selector: labels.map(|match_labels| Selector { match_labels }),
        })
    })
}

fn only_match_labels(selector: &Value) -> Option<BTreeMap<String, String>> {
    let selector: Selector = serde_json::from_value(selector.clone()).ok()?;
    let mut problems = Vec::new();
    selector.check(&mut problems);
    problems.is_empty().then_some(selector.match_labels)
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str)
}

#[cfg(test)]
mod tests;
