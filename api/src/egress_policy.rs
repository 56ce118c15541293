//! `EgressPolicy`: what outside of the cluster may be called.

use std::sync::Arc;

use byrnie_policy::EgressRule;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::authorization_policy::not_empty;
use crate::ingress_policy::optional_ports;
use crate::{Problem, Status, syntax};

/// Which destinations outside of the cluster the workloads of the namespace may call.
#[allow(clippy::duplicated_attributes, reason = "every column has its own type")]
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "byrnie.dev",
    version = "v1alpha1",
    kind = "EgressPolicy",
    plural = "egresspolicies",
    namespaced,
    derive = "PartialEq",
    doc = "Which destinations outside of the cluster the workloads of the namespace may call.",
    status = "Status",
    category = "byrnie",
    shortname = "egpol",
    printcolumn(
        name = "Service Accounts",
        type_ = "string",
        json_path = ".spec.serviceAccounts",
        description = "Who may call; none: all of the namespace."
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
pub struct EgressPolicySpec {
    /// Any of these service accounts of the namespace; left out: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub service_accounts: Option<Vec<String>>,
    /// Any of these destinations.
    #[schemars(length(min = 1, max = 256))]
    pub to: Vec<Destination>,
}

/// Destinations by address and port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Destination {
    /// Any of these networks, in CIDR notation.
    #[schemars(length(min = 1, max = 1024), inner(length(max = 64), regex(pattern = r"^[0-9a-fA-F.:]+/[0-9]{1,3}$")))]
    pub cidrs: Vec<String>,
    /// Any of these ports; left out: every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<u16>>,
}

impl EgressPolicySpec {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<Problem> {
        self.rules("").err().unwrap_or_default()
    }

    /// Whether it is for this service account of its namespace.
    pub fn concerns(&self, service_account: &str) -> bool {
        self.service_accounts.as_ref().is_none_or(|accounts| accounts.iter().any(|one| one == service_account))
    }

    pub(crate) fn rules(&self, object: &str) -> Result<Vec<EgressRule>, Vec<Problem>> {
        let mut problems = Vec::new();
        let accounts = self.service_accounts.as_deref();
        if let Some(accounts) = accounts {
            not_empty("spec.serviceAccounts", accounts, &mut problems);
        }
        for (index, account) in accounts.unwrap_or_default().iter().enumerate() {
            syntax::object_name(&format!("spec.serviceAccounts[{index}]"), account, &mut problems);
        }
        not_empty("spec.to", &self.to, &mut problems);
        let mut rules = Vec::with_capacity(self.to.len());
        for (index, destination) in self.to.iter().enumerate() {
            let path = format!("spec.to[{index}]");
            not_empty(&format!("{path}.cidrs"), &destination.cidrs, &mut problems);
            rules.push(EgressRule {
                name: format!("{object}[{index}]").into(),
                service_accounts: accounts
                    .unwrap_or_default()
                    .iter()
                    .map(|account| Arc::from(account.as_str()))
                    .collect(),
                cidrs: syntax::cidrs(&format!("{path}.cidrs"), &destination.cidrs, &mut problems),
                ports: optional_ports(&format!("{path}.ports"), destination.ports.as_deref(), &mut problems),
            });
        }
        if problems.is_empty() { Ok(rules) } else { Err(problems) }
    }
}
