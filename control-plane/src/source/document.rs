//! From the text of a file to objects, with the line of every mistake.

use std::sync::Arc;

use byrnie_api::{Kind, RefusedPolicy};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Object, ObjectKey, Problem, Stored};

/// Mistakes told of one file; a file of another kind altogether has thousands.
const PROBLEMS_PER_FILE: usize = 32;
/// The namespace of objects that name none, as with kubectl.
const DEFAULT_NAMESPACE: &str = "default";

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<(ObjectKey, Stored)>,
    /// Documents that are no objects: the file is damaged, or half written.
    pub(super) broken: Vec<Problem>,
    /// Objects that are refused although the file itself is sound.
    pub(super) unsupported: Vec<Problem>,
    /// What is known of policies that were refused: what they may have forbidden is forbidden where no earlier
    /// version of them is held.
    pub(super) stand_ins: Vec<(ObjectKey, Stored)>,
}

/// Reads every document of a YAML or JSON text.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for document in documents(text) {
        if parsed.broken.len() >= PROBLEMS_PER_FILE {
            break;
        }
        let store = |object| Stored { object: Arc::new(object), file: file.clone(), line: document.line };
        match read(&document) {
            Ok((key, object)) => parsed.objects.push((key, store(object))),
            Err(refused) => {
                if let Some(stand_in) = refused.stand_in {
                    parsed.stand_ins.push((key_of(&stand_in), store(Object::Mesh(stand_in))));
                }
                let problem = Problem {
                    file: file.clone(),
                    line: refused.line,
                    object: refused.object,
                    message: refused.message,
                };
                let problems = if refused.unsupported { &mut parsed.unsupported } else { &mut parsed.broken };
                problems.push(problem);
            }
        }
    }
    parsed
}

/// The text between two document markers.
struct Document<'a> {
    text: &'a str,
    /// From 1.
    line: u64,
}

struct Refused {
    line: u64,
    object: Option<ObjectKey>,
    message: String,
    unsupported: bool,
    stand_in: Option<Box<byrnie_api::Object>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: HeadMetadata,
}

#[derive(Deserialize, Default)]
struct HeadMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

/// A `---` at the start of a line is a document marker wherever it stands (YAML 1.2, 9.1.2).
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let (mut offset, mut line) = (0, 1);
    for content in text.split_inclusive('\n') {
        let marker = content
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            documents.push(Document { text: text.get(start..offset).unwrap_or_default(), line: start_line });
            (start, start_line) = (offset, line);
        }
        offset += content.len();
        line += 1;
    }
    documents.push(Document { text: text.get(start..).unwrap_or_default(), line: start_line });
    documents.retain(|document| !document.is_blank());
    documents
}

impl Document<'_> {
    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line.starts_with('#') || line == "..."
        })
    }

    /// Parses; on a mistake once more behind as many empty lines as stand before the document in its file, so that
    /// the parser's own message names the right line.
    fn parse<T: DeserializeOwned>(&self, object: Option<&ObjectKey>) -> Result<T, Refused> {
        let first = match serde_saphyr::from_str::<T>(self.text) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let padding = usize::try_from(self.line.saturating_sub(1)).unwrap_or(0);
        let padded = format!("{}{}", "\n".repeat(padding), self.text);
        let error = serde_saphyr::from_str::<T>(&padded).err().unwrap_or(first);
        Err(self.refused(&error, object))
    }

    fn refused(&self, error: &serde_saphyr::Error, object: Option<&ObjectKey>) -> Refused {
        let line = error.location().map_or(self.line, |location| location.line());
        let message = error.without_snippet().to_string().replace('\n', " ");
        let guess = self.guess();
        let stand_in = guess.as_ref().and_then(stand_in).map(Box::new);
        Refused { line, object: object.cloned().or(guess), message, unsupported: false, stand_in }
    }

    /// Text that is no YAML may still show what it was to be, in block style, in flow style or as JSON.
    fn guess(&self) -> Option<ObjectKey> {
        let at_start = self.text.lines().find_map(|line| line.strip_prefix("kind:").and_then(scalar));
        let kind = at_start.or_else(|| field(self.text, "kind"))?;
        if !kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let cluster = matches!(kind, "Namespace" | "MeshConfig");
        let metadata = after(self.text, "metadata").unwrap_or_default();
        // A policy's rules name namespaces, too.
        let metadata = after(metadata, "spec").and_then(|spec| metadata.strip_suffix(spec)).unwrap_or(metadata);
        let namespace = field(metadata, "namespace").filter(|_| !cluster);
        let namespace = namespace.unwrap_or(if cluster { "" } else { DEFAULT_NAMESPACE });
        let name = field(metadata, "name").unwrap_or_default();
        Some(ObjectKey { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// The value of the first field of this name.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    after(text, name).and_then(scalar)
}

/// What follows the first `name:`, quoted or not.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.match_indices(name).find_map(|(at, _)| {
        let before = text.get(..at)?.chars().next_back();
        let rest = text.get(at + name.len()..)?;
        let rest = rest.strip_prefix(['"', '\'']).unwrap_or(rest).trim_start_matches([' ', '\t']).strip_prefix(':')?;
        let begins = before.is_none_or(|before| before.is_whitespace() || matches!(before, '{' | ',' | '"' | '\''));
        begins.then_some(rest)
    })
}

/// The plain or quoted value at the start of a text; never one of the next line.
fn scalar(text: &str) -> Option<&str> {
    let text = text.trim_start_matches([' ', '\t', '"', '\'']);
    let end = text.find(|c: char| c.is_whitespace() || matches!(c, ',' | '}' | '"' | '\'' | '#')).unwrap_or(text.len());
    text.get(..end.min(LONGEST_GUESS)).filter(|value| !value.is_empty())
}

/// No kind, namespace or name is longer.
const LONGEST_GUESS: usize = 253;

fn stand_in(guess: &ObjectKey) -> Option<byrnie_api::Object> {
    let kind = guess.kind.parse().ok().filter(|kind| matches!(kind, Kind::MtlsPolicy | Kind::AuthorizationPolicy))?;
    let (namespace, name) = (guess.namespace.clone(), guess.name.clone());
    Some(byrnie_api::Object::Refused(RefusedPolicy { kind, namespace, name, selector: None }))
}

fn read(document: &Document<'_>) -> Result<(ObjectKey, Object), Refused> {
    let head: Head = document.parse(None)?;
    let refused = |object: Option<ObjectKey>, message: String, unsupported: bool| Refused {
        line: document.line,
        object,
        message,
        unsupported,
        stand_in: None,
    };
    if byrnie_api::is_ours(&head.api_version) {
        return read_ours(document, &head);
    }
    let Some((api_version, scope)) = known(&head.kind) else {
        let key = key(&head, Scope::Namespace);
        let message =
            format!("kind {} of {}: not supported yet; nothing of it is in force", head.kind, head.api_version);
        return Err(refused(Some(key), message, true));
    };
    let key = key(&head, scope);
    if head.api_version != api_version {
        let message = format!("apiVersion {}: not supported yet; expected {api_version}", head.api_version);
        return Err(refused(Some(key), message, true));
    }
    if head.metadata.name.is_empty() {
        return Err(refused(None, format!("metadata.name: expected the name of the {}, found none", head.kind), false));
    }
    let object = read_core(document, &key)?;
    Ok((key, object))
}

fn read_core(document: &Document<'_>, key: &ObjectKey) -> Result<Object, Refused> {
    let place = Some(key);
    Ok(match key.kind.as_str() {
        "Namespace" => Object::Namespace(document.parse(place)?),
        "Pod" => Object::Pod(document.parse(place)?),
        "Service" => Object::Service(document.parse(place)?),
        "ServiceAccount" => Object::ServiceAccount(document.parse(place)?),
        _ => Object::EndpointSlice(document.parse(place)?),
    })
}

fn read_ours(document: &Document<'_>, head: &Head) -> Result<(ObjectKey, Object), Refused> {
    let mut value: Value = document.parse(None)?;
    let namespaced = head.kind.parse::<Kind>().is_ok_and(Kind::is_namespaced);
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        && namespaced
    {
        metadata.entry("namespace").or_insert_with(|| DEFAULT_NAMESPACE.into());
    }
    match byrnie_api::parse(value) {
        Ok(object) => Ok((key_of(&object), Object::Mesh(Box::new(object)))),
        Err(error) => {
            let scope = if namespaced { Scope::Namespace } else { Scope::Cluster };
            let words: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
            Err(Refused {
                line: document.line,
                object: Some(key(head, scope)),
                message: words.join("; "),
                unsupported: error.problems.iter().all(byrnie_api::Problem::is_not_supported_yet),
                stand_in: error.stand_in().cloned().map(Box::new),
            })
        }
    }
}

pub(super) fn key_of(object: &byrnie_api::Object) -> ObjectKey {
    ObjectKey {
        kind: object.kind().to_string(),
        namespace: object.namespace().unwrap_or_default().to_owned(),
        name: object.name().to_owned(),
    }
}

#[derive(Clone, Copy)]
enum Scope {
    Cluster,
    Namespace,
}

fn known(kind: &str) -> Option<(&'static str, Scope)> {
    Some(match kind {
        "Namespace" => ("v1", Scope::Cluster),
        "Pod" | "Service" | "ServiceAccount" => ("v1", Scope::Namespace),
        "EndpointSlice" => ("discovery.k8s.io/v1", Scope::Namespace),
        _ => return None,
    })
}

fn key(head: &Head, scope: Scope) -> ObjectKey {
    let namespace = match (scope, head.metadata.namespace.as_str()) {
        (Scope::Cluster, _) => "",
        (Scope::Namespace, "") => DEFAULT_NAMESPACE,
        (Scope::Namespace, namespace) => namespace,
    };
    ObjectKey { kind: head.kind.clone(), namespace: namespace.to_owned(), name: head.metadata.name.clone() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Parsed {
        parse(&Arc::from("a.yaml"), text)
    }

    #[test]
    fn several_documents_are_read_with_the_lines_at_which_they_begin() {
        let text = "# demo\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n# nothing\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80, targetPort: http}]}\n";
        let parsed = parsed(text);
        assert!(parsed.broken.is_empty(), "{:?}", parsed.broken);
        let places: Vec<_> = parsed.objects.iter().map(|(key, stored)| (key.to_string(), stored.line)).collect();
        assert_eq!(places, [("Namespace shop".to_owned(), 2), ("Service shop/web".to_owned(), 8)]);
    }

    #[test]
    fn json_is_read_like_yaml() {
        let parsed =
            parsed("{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Namespace\", \"metadata\": {\"name\": \"shop\"}}");
        assert!(parsed.broken.is_empty(), "{:?}", parsed.broken);
        assert_eq!(parsed.objects[0].0.to_string(), "Namespace shop");
    }

    #[test]
    fn a_mistake_is_told_with_its_line_in_the_file_and_its_object() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: eighty\n";
        let parsed = parsed(text);
        let problem = &parsed.broken[0];
        assert_eq!(problem.line, 11, "{problem}");
        assert_eq!(problem.object.as_ref().unwrap().to_string(), "Service default/web");
        assert_eq!(parsed.objects.len(), 1);
    }

    #[test]
    fn text_that_is_no_yaml_is_told_with_its_line() {
        let parsed = parsed("apiVersion: v1\nkind: [\n");
        assert_eq!(parsed.broken.len(), 1);
        assert!(parsed.broken[0].line >= 2, "{}", parsed.broken[0]);
    }

    #[test]
    fn a_policy_that_nobody_can_read_is_stood_in_for() {
        let parsed = parsed(
            "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: guard\n  namespace: shop # ours\nspec: [\n---\napiVersion: byrnie.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {name: m, namespace: shop}\nspec: {mode: Sometimes}\n",
        );
        assert_eq!(parsed.broken.len(), 2);
        let names: Vec<_> = parsed.stand_ins.iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(names, ["AuthorizationPolicy shop/guard", "MtlsPolicy shop/m"]);
    }

    #[test]
    fn whatever_its_style_an_unreadable_policy_is_stood_in_for_in_its_own_namespace() {
        for text in [
            "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n    name: guard\n    namespace: shop\nspec: [",
            "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: guard, namespace: shop}\nspec: [",
            "{\"apiVersion\": \"byrnie.dev/v1alpha1\", \"kind\": \"AuthorizationPolicy\", \"metadata\": {\"namespace\": \"shop\", \"name\": \"guard\"}, \"spec\": {",
            "kind: \"AuthorizationPolicy\"\nmetadata:\n  labels: {x-namespace: other}\n  name: guard\n  namespace: 'shop'\nspec:\n  rules:\n  - from: [{namespace: other}\n",
            "spec: {rules: [{from: [{namespace: other}\nkind: AuthorizationPolicy\nmetadata:\n  name: guard\n  namespace: shop\n",
        ] {
            let names: Vec<_> = parsed(text).stand_ins.iter().map(|(key, _)| key.to_string()).collect();
            assert_eq!(names, ["AuthorizationPolicy shop/guard"], "{text}");
        }
    }

    #[test]
    fn a_text_that_grows_without_bound_or_nests_without_end_is_refused_alone() {
        let mut bomb =
            "apiVersion: byrnie.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {name: m, namespace: shop}\na0: &a0 [x]\n"
                .to_owned();
        for level in 1..40 {
            let above = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![above; 9].join(","));
        }
        let deep = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {}", "[".repeat(100_000));
        for text in [bomb, deep] {
            let found = parsed(&format!("{text}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n"));
            assert_eq!((found.broken.len(), found.objects.len()), (1, 1));
        }
    }

    #[test]
    fn unknown_kinds_and_versions_are_refused_as_not_supported_yet() {
        let parsed = parsed(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\napiVersion: v2\nkind: Pod\nmetadata: {name: web}\n",
        );
        assert!(parsed.broken.is_empty() && parsed.objects.is_empty());
        assert_eq!(parsed.unsupported.len(), 2);
        assert!(parsed.unsupported.iter().all(|problem| problem.message.contains("not supported yet")));
    }

    #[test]
    fn a_marker_inside_a_word_begins_no_document() {
        assert_eq!(documents("a: 1\n----\nb: ---\n---\nc: 1\n").len(), 2);
    }
}
