//! `AdmissionReview` of `admission.k8s.io/v1`: what the API server asks, and what it is answered.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use byrnie_api::{Problem, quote};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::limits;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What the API server asks.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Repeated in the answer.
    pub uid: String,
    /// What kind of object it is about.
    pub kind: GroupVersionKind,
    /// Where it is to stand.
    #[serde(default)]
    pub namespace: String,
    /// Its name; empty where the API server makes one.
    #[serde(default)]
    pub name: String,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: String,
    /// The object that is asked for.
    #[serde(default)]
    pub object: Value,
    /// What stands there now, for an update.
    #[serde(default)]
    pub old_object: Value,
}

/// A kind of objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct GroupVersionKind {
    /// Empty for the core kinds.
    pub group: String,
    /// Such as `v1`.
    pub version: String,
    /// Such as `Pod`.
    pub kind: String,
}

impl Request {
    /// Reads the body of a request. Fields that are not known are passed over, as Kubernetes' versioning wants it; those
    /// that are known must be of their form.
    ///
    /// # Errors
    /// One sentence: what was expected, what was found.
    pub fn read(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Review {
            api_version: String,
            kind: String,
            request: Option<Request>,
        }
        let review: Review =
            serde_json::from_slice(body).map_err(|error| format!("expected an {KIND} as JSON, found: {error}"))?;
        if review.api_version != API_VERSION || review.kind != KIND {
            let found = format!("{} {}", quote(&review.api_version), quote(&review.kind));
            return Err(format!("expected `{API_VERSION}` `{KIND}`, found {found}"));
        }
        let request = review.request.ok_or("expected an AdmissionReview with a request, found none")?;
        const LONGEST_UID: usize = 128;
        if request.uid.is_empty() || request.uid.len() > LONGEST_UID {
            return Err(format!("request.uid: expected 1 to {LONGEST_UID} bytes, found {}", request.uid.len()));
        }
        Ok(request)
    }

    /// `Kind namespace/name`; a name that the API server has yet to make is its beginning and a star.
    pub fn object_name(&self) -> String {
        let metadata = |field: &str| self.object.get("metadata").and_then(|metadata| metadata.get(field)?.as_str());
        let name = match (self.name.as_str(), metadata("name"), metadata("generateName")) {
            ("", None | Some(""), Some(start)) => format!("{start}*"),
            ("", Some(name), _) => name.to_owned(),
            ("", None, None) => "(without a name)".to_owned(),
            (name, ..) => name.to_owned(),
        };
        let kind = &self.kind.kind;
        let whole = if self.namespace.is_empty() {
            format!("{kind} {name}")
        } else {
            format!("{kind} {}/{name}", self.namespace)
        };
        whole.chars().take(400).filter(|c| !c.is_control()).collect()
    }
}

/// What the API server is answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl Response {
    /// The object may come in as it is.
    pub fn allow(request: &Request) -> Self {
        Self { uid: request.uid.clone(), allowed: true, ..Self::default() }
    }

    /// It may not; `message` is what its author reads.
    pub fn deny(request: &Request, message: &str) -> Self {
        let status = json!({"code": 403, "reason": "Forbidden", "message": message});
        Self { uid: request.uid.clone(), status: Some(status), ..Self::default() }
    }

    /// It may not now; the API server's clients try again.
    pub fn not_now(request: &Request, message: &str) -> Self {
        let status = json!({"code": 503, "reason": "ServiceUnavailable", "message": message});
        Self { uid: request.uid.clone(), status: Some(status), ..Self::default() }
    }

    /// It may come in changed from `sent` to `wanted`.
    pub fn change(request: &Request, sent: &Value, wanted: &Value) -> Self {
        let patch = json_patch::diff(sent, wanted);
        if patch.is_empty() {
            return Self::allow(request);
        }
        let text = serde_json::to_vec(&patch).unwrap_or_default();
        Self { patch_type: Some("JSONPatch"), patch: Some(BASE64_STANDARD.encode(text)), ..Self::allow(request) }
    }

    /// The same with what `kubectl` shows as warnings.
    #[must_use]
    pub fn warn(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        let shortened = warnings.into_iter().map(|text| text.chars().take(limits::WARNING_CHARACTERS).collect());
        self.warnings.extend(shortened.take(limits::WARNINGS));
        self
    }

    /// Whether the object may come in.
    pub const fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// The whole answer.
    pub fn review(self) -> Value {
        json!({"apiVersion": API_VERSION, "kind": KIND, "response": self})
    }
}

/// Problems as the author of an object reads them: one in a line.
pub(crate) fn in_words(object: &str, problems: &[Problem]) -> String {
    let shown = problems.iter().take(limits::PROBLEMS).map(|problem| format!("\n  {problem}"));
    let lines: String = shown.collect();
    format!("byrnie: {object} is refused:{lines}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn body(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut review = json!({
            "apiVersion": API_VERSION, "kind": KIND,
            "request": {"uid": "1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "namespace": "shop",
                "object": {"metadata": {"generateName": "web-"}}, "somethingNew": 1},
        });
        change(&mut review);
        serde_json::to_vec(&review).unwrap()
    }

    #[test]
    fn a_review_of_version_1_is_read() {
        let request = Request::read(&body(|_| {})).unwrap();
        assert_eq!(request.object_name(), "Pod shop/web-*");
    }

    #[test]
    fn what_is_not_a_review_is_refused_in_a_sentence() {
        for (bad, word) in [
            (b"".to_vec(), "as JSON"),
            (b"[1]".to_vec(), "as JSON"),
            (body(|review| review["apiVersion"] = json!("admission.k8s.io/v1beta1")), "v1beta1"),
            (body(|review| review["kind"] = json!("Pod")), "`Pod`"),
            (body(|review| review["request"] = Value::Null), "with a request"),
            (body(|review| review["request"]["uid"] = json!("")), "request.uid"),
            (body(|review| review["request"]["uid"] = json!("x".repeat(200))), "request.uid"),
            (body(|review| review["request"]["operation"] = json!(1)), "as JSON"),
        ] {
            let error = Request::read(&bad).unwrap_err();
            assert!(error.contains(word) && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn an_answer_repeats_the_uid_and_bounds_its_warnings() {
        let request = Request::read(&body(|_| {})).unwrap();
        let answer = Response::allow(&request).warn(vec!["x".repeat(10_000); 100]).review();
        assert_eq!(answer["response"]["uid"], "1");
        assert_eq!(answer["response"]["warnings"].as_array().unwrap().len(), limits::WARNINGS);
        assert!(answer["response"]["warnings"][0].as_str().unwrap().len() <= limits::WARNING_CHARACTERS);
        assert_eq!(answer["response"]["patch"], Value::Null);
    }
}
