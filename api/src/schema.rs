//! The schemas of the custom resources, and the check of a value against them.
//!
//! The API server is given the schema; files are checked against the very same one here, so that an object means the
//! same from either source. Unlike the API server this check refuses fields that the schema does not have. `status` is not
//! looked at: it says what became of the object, a file that was written from the cluster has it too, and a control plane
//! of a later version may have put more into it than this one knows.

use std::sync::OnceLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use serde_json::{Map, Value};

use crate::problem::{NOT_SUPPORTED_YET, describe, quote};
use crate::{AuthorizationPolicy, EgressPolicy, IngressPolicy, Kind, MeshConfig, MtlsPolicy, Problem, not_yet};

/// No reader mends more than these at once, and a hostile file must not cost more.
const MOST_PROBLEMS: usize = 50;

/// The definitions of all custom resources, as the API server takes them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    Kind::ALL.into_iter().map(crd).collect()
}

/// Everything in `object` that the schema of `kind` does not allow.
pub(crate) fn check(kind: Kind, object: &Map<String, Value>) -> Vec<Problem> {
    let mut check = Check { kind, problems: Vec::new() };
    let root = schema(kind);
    for (name, value) in object {
        match (name.as_str(), property(root, name)) {
            ("apiVersion" | "kind" | "metadata" | "status", _) => {}
            (_, Some(schema)) => check.value(name, schema, value),
            (_, None) => check.unknown_field(name, ["apiVersion", "kind", "metadata", "spec"].into_iter()),
        }
    }
    check.required("", root, object);
    check.problems
}

fn crd(kind: Kind) -> CustomResourceDefinition {
    let mut definition = derived(kind);
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        schema.into_iter().for_each(drop_formats);
    }
    definition
}

/// The sizes of Rust's integers are no formats of OpenAPI: kubectl warns of each, and ranges say the same.
fn drop_formats(schema: &mut JSONSchemaProps) {
    schema.format.take_if(|format| format.starts_with("uint"));
    schema.properties.iter_mut().flatten().for_each(|(_, schema)| drop_formats(schema));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        drop_formats(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        drop_formats(values);
    }
}

fn derived(kind: Kind) -> CustomResourceDefinition {
    match kind {
        Kind::MeshConfig => MeshConfig::crd(),
        Kind::MtlsPolicy => MtlsPolicy::crd(),
        Kind::AuthorizationPolicy => AuthorizationPolicy::crd(),
        Kind::IngressPolicy => IngressPolicy::crd(),
        Kind::EgressPolicy => EgressPolicy::crd(),
    }
}

fn schema(kind: Kind) -> &'static Value {
    static SCHEMAS: OnceLock<Vec<(Kind, Value)>> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| Kind::ALL.into_iter().map(|kind| (kind, root_schema(kind))).collect());
    schemas.iter().find(|(of, _)| *of == kind).map_or(&Value::Null, |(_, schema)| schema)
}

fn root_schema(kind: Kind) -> Value {
    let version = crd(kind).spec.versions.into_iter().next();
    let schema = version.and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
    serde_json::to_value(schema).unwrap_or_default()
}

fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get("properties")?.get(name)
}

struct Check {
    kind: Kind,
    problems: Vec<Problem>,
}

impl Check {
    fn note(&mut self, problem: Problem) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// The depth of the recursion is the schema's, not the value's.
    fn value(&mut self, path: &str, schema: &Value, value: &Value) {
        if value.is_null() && schema.get("nullable") == Some(&Value::Bool(true)) {
            return;
        }
        if let Some(Value::Array(choices)) = schema.get("enum") {
            if !choices.contains(value) {
                self.note(Problem::new(path, one_of(choices), describe(value)));
            }
            return;
        }
        match (schema.get("type").and_then(Value::as_str), value) {
            (Some("object"), Value::Object(fields)) => self.object(path, schema, fields),
            (Some("array"), Value::Array(items)) => self.array(path, schema, items),
            (Some("integer"), Value::Number(_)) => self.integer(path, schema, value),
            (Some("string"), Value::String(text)) => self.text(path, schema, text),
            (Some("boolean"), Value::Bool(_)) => {}
            _ => self.note(Problem::new(path, expected(schema), describe(value))),
        }
    }

    fn object(&mut self, path: &str, schema: &Value, fields: &Map<String, Value>) {
        let free = schema.get("additionalProperties").filter(|free| free.is_object());
        for (name, value) in fields {
            if self.problems.len() >= MOST_PROBLEMS {
                return;
            }
            if let Some(schema) = property(schema, name) {
                self.value(&format!("{path}.{name}"), schema, value);
            } else if let Some(schema) = free {
                self.value(&format!("{path}[{}]", name.escape_debug()), schema, value);
            } else {
                let known = schema.get("properties").and_then(Value::as_object);
                let known = known.into_iter().flatten().map(|(name, _)| name.as_str());
                self.unknown_field(&format!("{path}.{name}"), known);
            }
        }
        self.required(path, schema, fields);
    }

    fn array(&mut self, path: &str, schema: &Value, items: &[Value]) {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            let problem = Problem::new(path, "at least one entry", "an empty list");
            self.note(problem.hint("leave an optional field out to match everything"));
        }
        if let Some(most) = schema.get("maxItems").and_then(Value::as_u64)
            && items.len() as u64 > most
        {
            let problem = Problem::new(path, format!("at most {most} entries"), format!("{} entries", items.len()));
            self.note(problem.hint("write several objects"));
            return;
        }
        let Some(schema) = schema.get("items") else {
            return;
        };
        for (index, item) in items.iter().enumerate() {
            self.value(&format!("{path}[{index}]"), schema, item);
        }
    }

    /// Only the length: what the text must look like, the kind's own `validate` says better than a pattern.
    fn text(&mut self, path: &str, schema: &Value, text: &str) {
        let length = text.chars().count() as u64;
        if let Some(most) = schema.get("maxLength").and_then(Value::as_u64)
            && length > most
        {
            self.note(Problem::new(path, format!("at most {most} characters"), format!("{length} characters")));
        }
    }

    fn integer(&mut self, path: &str, schema: &Value, value: &Value) {
        let bound = |name: &str, otherwise| schema.get(name).and_then(Value::as_f64).unwrap_or(otherwise);
        let range = bound("minimum", f64::MIN)..=bound("maximum", f64::MAX);
        let whole = value.as_i64().is_some() || value.as_u64().is_some();
        if !whole || !value.as_f64().is_some_and(|number| range.contains(&number)) {
            self.note(Problem::new(path, expected(schema), describe(value)));
        }
    }

    fn required(&mut self, path: &str, schema: &Value, fields: &Map<String, Value>) {
        let required = schema.get("required").and_then(Value::as_array);
        for name in required.into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                let expected = property(schema, name).map_or_else(|| "a value".to_owned(), expected);
                self.note(Problem::new(path, expected, "nothing"));
            }
        }
    }

    fn unknown_field<'a>(&mut self, path: &str, known: impl Iterator<Item = &'a str>) {
        let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
        let hint = match not_yet::field(self.kind, &without_indices(path)) {
            Some(why) => format!("{NOT_SUPPORTED_YET}: {why}"),
            None => "unknown field".to_owned(),
        };
        let name = path.rsplit_once('.').map_or(path, |(_, name)| name);
        let expected = format!("only {}", known.join(", "));
        self.note(Problem::new(shorten(path), expected, format!("the field {}", quote(name))).hint(hint));
    }
}

fn expected(schema: &Value) -> String {
    if let Some(Value::Array(choices)) = schema.get("enum") {
        return one_of(choices);
    }
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => "fields".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("string") => "text".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("integer") => match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            _ => "a whole number".to_owned(),
        },
        _ => "nothing".to_owned(),
    }
}

fn one_of(choices: &[Value]) -> String {
    let choices: Vec<String> = choices.iter().filter(|choice| !choice.is_null()).map(describe).collect();
    choices.join(" or ")
}

/// `spec.rules[3].to` as `spec.rules[].to`.
fn without_indices(path: &str) -> String {
    let mut generic = String::with_capacity(path.len());
    let mut within = false;
    for c in path.chars() {
        within = (within || c == '[') && c != ']';
        if !within || c == '[' {
            generic.push(c);
        }
    }
    generic
}

fn shorten(path: &str) -> String {
    const MOST: usize = 200;
    let printable = path.chars().take(MOST).flat_map(char::escape_debug);
    printable.collect()
}

#[cfg(test)]
mod tests;
