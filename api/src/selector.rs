//! Which workloads of its namespace an object means.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Problem, syntax};

/// Selects workloads of the object's own namespace by the labels of their pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that the pod must have, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether a pod with these labels is selected. An empty selector selects every pod.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether it selects every pod.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty()
    }

    /// A label that no pod can have would make an object that looks as if it did something.
    pub(crate) fn check(&self, problems: &mut Vec<Problem>) {
        for (key, value) in &self.match_labels {
            let path = format!("spec.selector.matchLabels[{}]", key.escape_debug());
            if syntax::label_key(&path, key, problems) {
                syntax::label_value(&path, value, problems);
            }
        }
    }
}
