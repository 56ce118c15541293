//! `MtlsPolicy`: where plaintext is permitted.

use byrnie_policy::{MtlsRule, MtlsScope, MtlsTerms};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{MeshSettings, Problem, Selector, Status, syntax};

/// Whether a port takes plaintext besides mutual TLS.
///
/// It holds for a namespace, for the workloads that `selector` selects, or for one `port`; a port goes before a
/// workload, and a workload before the namespace. Of two of equal rank the stricter holds. Where there is none: Strict.
#[allow(clippy::duplicated_attributes, reason = "every column has its own type")]
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "byrnie.dev",
    version = "v1alpha1",
    kind = "MtlsPolicy",
    plural = "mtlspolicies",
    namespaced,
    derive = "PartialEq",
    doc = "Whether a namespace, a workload or a port takes plaintext besides mutual TLS.",
    status = "Status",
    category = "byrnie",
    shortname = "mtls",
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "What the port takes."
    ),
    printcolumn(
        name = "Port",
        type_ = "string",
        json_path = ".spec.port",
        description = "The one port that it is for."
    ),
    printcolumn(
        name = "Until",
        type_ = "string",
        json_path = ".spec.until",
        description = "When a Permissive becomes Strict."
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status",
        description = "Whether the mesh does what the object says."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = kube::core::Rule::new("!has(self.spec.until) || self.spec.mode == 'Permissive'")
        .message("nothing may stand here beside `mode: Strict`: only Permissive can end, and Strict is what it becomes")
        .field_path(".spec.until")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MtlsPolicySpec {
    /// Which workloads of the namespace; left out: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Which port of the pods; left out: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What holds there.
    pub mode: MtlsMode,
    /// When a Permissive becomes Strict by itself (RFC 3339); left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub until: Option<String>,
}

/// What a port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Mutual TLS only.
    Strict,
    /// Plaintext besides.
    Permissive,
}

impl MtlsPolicySpec {
    /// Everything that is wrong with it, whatever the mesh says.
    pub fn validate(&self) -> Vec<Problem> {
        self.rule("").err().unwrap_or_default()
    }

    /// What of it the mesh does not permit.
    pub fn against(&self, mesh: &MeshSettings) -> Vec<Problem> {
        if self.mode == MtlsMode::Permissive && mesh.mtls_floor == MtlsMode::Strict {
            let hint = "MeshConfig's spec.mtls.floor is `Strict`, and no namespace may go under it";
            vec![Problem::new("spec.mode", "`Strict`", "`Permissive`").hint(hint)]
        } else {
            Vec::new()
        }
    }

    pub(crate) fn rule(&self, name: &str) -> Result<MtlsRule, Vec<Problem>> {
        let mut problems = Vec::new();
        if let Some(selector) = &self.selector {
            selector.check(&mut problems);
        }
        let scope = match (self.port, &self.selector) {
            (Some(number), _) => syntax::port("spec.port", number, &mut problems).map(MtlsScope::Port),
            (None, Some(selector)) if !selector.is_empty() => Some(MtlsScope::Workload),
            (None, _) => Some(MtlsScope::Namespace),
        };
        let until = self.until.as_deref().map(|text| syntax::timestamp("spec.until", text, &mut problems));
        let terms = match (self.mode, until) {
            (MtlsMode::Permissive, until) => MtlsTerms::Permissive { until: until.flatten() },
            (MtlsMode::Strict, None) => MtlsTerms::Strict,
            (MtlsMode::Strict, Some(_)) => {
                let problem = Problem::new("spec.until", "nothing beside `mode: Strict`", "a time");
                problems.push(problem.hint("only `Permissive` can end; Strict is what it becomes"));
                MtlsTerms::Strict
            }
        };
        match scope {
            Some(scope) if problems.is_empty() => Ok(MtlsRule { name: name.into(), scope, terms }),
            _ => Err(problems),
        }
    }
}
