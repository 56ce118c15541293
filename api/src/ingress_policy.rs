//! `IngressPolicy`: who outside of the mesh may call.

use byrnie_policy::{IngressRule, Ports};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::authorization_policy::not_empty;
use crate::{Problem, Selector, Status, syntax};

/// Which TLS clients outside of the mesh, by the identity that the mesh issued to them, may call which ports.
///
/// It lets in nobody else: not the mesh's members, whom AuthorizationPolicy is for, and no plaintext.
#[allow(clippy::duplicated_attributes, reason = "every column has its own type")]
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "byrnie.dev",
    version = "v1alpha1",
    kind = "IngressPolicy",
    plural = "ingresspolicies",
    namespaced,
    derive = "PartialEq",
    doc = "Which TLS clients outside of the mesh may call which ports.",
    status = "Status",
    category = "byrnie",
    shortname = "ingpol",
    printcolumn(name = "Ports", type_ = "string", json_path = ".spec.ports", description = "The ports that it opens."),
    printcolumn(
        name = "Principals",
        type_ = "string",
        json_path = ".spec.principals",
        description = "Who may call.",
        priority = 1
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
pub struct IngressPolicySpec {
    /// Which workloads of the namespace; left out: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Any of these ports of the pod; left out: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<u16>>,
    /// The SPIFFE IDs, exact, that the client's certificate must prove: any of these.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 2048), regex(pattern = r"^spiffe://")))]
    pub principals: Vec<String>,
}

impl IngressPolicySpec {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<Problem> {
        self.rule("").err().unwrap_or_default()
    }

    pub(crate) fn rule(&self, name: &str) -> Result<IngressRule, Vec<Problem>> {
        let mut problems = Vec::new();
        if let Some(selector) = &self.selector {
            selector.check(&mut problems);
        }
        let ports = optional_ports("spec.ports", self.ports.as_deref(), &mut problems);
        not_empty("spec.principals", &self.principals, &mut problems);
        let numbered = self.principals.iter().enumerate();
        let principals = numbered
            .filter_map(|(index, text)| syntax::spiffe_id(&format!("spec.principals[{index}]"), text, &mut problems))
            .collect();
        if problems.is_empty() { Ok(IngressRule { name: name.into(), principals, ports }) } else { Err(problems) }
    }
}

pub(crate) fn optional_ports(path: &str, numbers: Option<&[u16]>, problems: &mut Vec<Problem>) -> Ports {
    let Some(numbers) = numbers else {
        return Ports::ANY;
    };
    not_empty(path, numbers, problems);
    syntax::ports(path, numbers, problems)
}
