//! `AuthorizationPolicy`: who of the mesh may call.

use std::sync::Arc;

use byrnie_identity::TrustDomain;
use byrnie_policy::{AuthorizationRule, Enforcement as PolicyEnforcement, PeerMatch, Ports};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{MeshSettings, Problem, Selector, Status, syntax};

/// Who of the mesh may, or may not, call the workloads that it selects.
///
/// Deny beats allow. One enforced Allow makes the workloads that it selects default deny, on every port.
#[allow(clippy::duplicated_attributes, reason = "every column has its own type")]
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "byrnie.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    namespaced,
    derive = "PartialEq",
    doc = "Who of the mesh may, or may not, call the workloads that it selects.",
    status = "Status",
    category = "byrnie",
    shortname = "authz",
    printcolumn(
        name = "Action",
        type_ = "string",
        json_path = ".spec.action",
        description = "Whether what matches is let in or refused."
    ),
    printcolumn(
        name = "Enforcement",
        type_ = "string",
        json_path = ".spec.enforcement",
        description = "Whether it decides, or only reports."
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status",
        description = "Whether the mesh does what the object says."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Which workloads of the namespace; left out: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Whether what matches is let in or refused.
    pub action: Action,
    /// Whether it decides (`enforce`, the default) or only reports what it would decide (`audit`).
    #[serde(default)]
    pub enforcement: Enforcement,
    /// What matches: any of these. Left out: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub rules: Option<Vec<Rule>>,
}

/// Whether something is let in or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Let in.
    Allow,
    /// Refused.
    Deny,
}

/// Whether a policy decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// It does.
    #[default]
    Enforce,
    /// It only reports what it would decide.
    Audit,
}

/// Matches a caller that `from` names at a port that `to` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Any of these callers. Left out: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub from: Option<Vec<Source>>,
    /// Any of these. Left out: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub to: Option<Vec<Operation>>,
}

/// A caller, by its identity; every field that is set must match, and one must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.namespace) || has(self.serviceAccount) || has(self.spiffeId) || has(self.trustDomain)",
    "message": "expected at least one of namespace, serviceAccount, spiffeId, trustDomain; leave `from` out to match every caller",
}]))]
pub struct Source {
    /// The caller's namespace. In an Allow without `trustDomain`: of this mesh's own trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// The caller's service account. Without `namespace`: of the policy's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: Option<String>,
    /// The caller's SPIFFE ID, exact, or a prefix that ends in `/*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^spiffe://"))]
    pub spiffe_id: Option<String>,
    /// The caller's trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub trust_domain: Option<String>,
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    /// Any of these ports of the pod (not of its Service).
    #[schemars(length(min = 1), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
}

/// Where a policy stands: what its names mean hangs on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// `AuthorizationPolicy shop/orders`.
    pub(crate) object: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) trust_domain: &'a TrustDomain,
}

impl AuthorizationPolicySpec {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<Problem> {
        let mesh = MeshSettings::default();
        let place = Place { object: "", namespace: "default", trust_domain: &mesh.trust_domain };
        self.policy_rules(place).err().unwrap_or_default()
    }

    pub(crate) fn policy_rules(&self, place: Place<'_>) -> Result<Vec<AuthorizationRule>, Vec<Problem>> {
        let mut problems = Vec::new();
        if let Some(selector) = &self.selector {
            selector.check(&mut problems);
        }
        let rule = |name: Arc<str>, from, ports| AuthorizationRule {
            name,
            action: self.action.into(),
            enforcement: self.enforcement.into(),
            from,
            ports,
        };
        let Some(rules) = &self.rules else {
            let everything = rule(place.object.into(), Vec::new(), Ports::ANY);
            return if problems.is_empty() { Ok(vec![everything]) } else { Err(problems) };
        };
        not_empty("spec.rules", rules, &mut problems);
        let mut compiled = Vec::with_capacity(rules.len());
        for (index, written) in rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            let from = self.sources(&path, written, place, &mut problems);
            let ports = written.ports(&path, &mut problems);
            compiled.push(rule(format!("{}[{index}]", place.object).into(), from, ports));
        }
        if problems.is_empty() { Ok(compiled) } else { Err(problems) }
    }

    fn sources(&self, path: &str, rule: &Rule, place: Place<'_>, problems: &mut Vec<Problem>) -> Vec<PeerMatch> {
        let Some(from) = &rule.from else {
            return Vec::new();
        };
        let path = format!("{path}.from");
        not_empty(&path, from, problems);
        let numbered = from.iter().enumerate();
        numbered.map(|(index, source)| self.source(&format!("{path}[{index}]"), source, place, problems)).collect()
    }

    fn source(&self, path: &str, source: &Source, place: Place<'_>, problems: &mut Vec<Problem>) -> PeerMatch {
        if *source == Source::default() {
            let expected = "at least one of `namespace`, `serviceAccount`, `spiffeId`, `trustDomain`";
            problems.push(Problem::new(path, expected, "nothing").hint("leave `from` out to match every caller"));
        }
        let field = |name: &str| format!("{path}.{name}");
        if let Some(text) = &source.namespace {
            syntax::namespace(&field("namespace"), text, problems);
        }
        if let Some(text) = &source.service_account {
            syntax::object_name(&field("serviceAccount"), text, problems);
        }
        let named = source.spiffe_id.as_deref();
        let spiffe_id = named.and_then(|text| syntax::spiffe_id_pattern(&field("spiffeId"), text, problems));
        let named = source.trust_domain.as_deref();
        let trust_domain = named.and_then(|text| syntax::trust_domain(&field("trustDomain"), text, problems));
        let own_namespace = source.service_account.as_ref().map(|_| place.namespace);
        let namespace: Option<Arc<str>> = source.namespace.as_deref().or(own_namespace).map(Arc::from);
        // A namespace is a name within one mesh: the `shop` of a federated one is somebody else's. An Allow must not
        // take that in; a Deny may.
        let own_domain = (self.action == Action::Allow && namespace.is_some()).then(|| place.trust_domain.clone());
        PeerMatch {
            namespace,
            service_account: source.service_account.as_deref().map(Arc::from),
            spiffe_id,
            trust_domain: trust_domain.or(own_domain),
        }
    }
}

impl Rule {
    fn ports(&self, path: &str, problems: &mut Vec<Problem>) -> Ports {
        let Some(to) = &self.to else {
            return Ports::ANY;
        };
        let path = format!("{path}.to");
        not_empty(&path, to, problems);
        let mut all = Vec::new();
        for (index, operation) in to.iter().enumerate() {
            let path = format!("{path}[{index}].ports");
            not_empty(&path, &operation.ports, problems);
            all.extend_from_slice(syntax::ports(&path, &operation.ports, problems).named());
        }
        all.into_iter().collect()
    }
}

/// An empty list reads as "nothing" to one and as "everything" to another: so it is refused.
pub(crate) fn not_empty<T>(path: &str, list: &[T], problems: &mut Vec<Problem>) {
    if list.is_empty() {
        let hint = "leave an optional field out to match everything";
        problems.push(Problem::new(path, "at least one entry", "an empty list").hint(hint));
    }
}

impl From<Action> for byrnie_policy::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
        }
    }
}

impl From<Action> for byrnie_policy::DefaultAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
        }
    }
}

impl From<Enforcement> for PolicyEnforcement {
    fn from(enforcement: Enforcement) -> Self {
        match enforcement {
            Enforcement::Enforce => Self::Enforce,
            Enforcement::Audit => Self::Audit,
        }
    }
}
