//! `spec.sidecar` of the `MeshConfig`: how the proxies are run.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::quote;
use crate::{
    CaptureExclusions, LogLevel, Problem, Quantity, ResourceSettings, Resources, SidecarSettings, TerminationDelay,
};
use crate::{capture, syntax};

/// How the proxies are run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshSidecar {
    /// The image of the proxy. Default: the one that the injector was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// What the proxies log. Default: `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// What a proxy asks for and may have. Default: requests of `10m` CPU and `32Mi` memory, no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<MeshResources>,
    /// For how many seconds a container without a `preStop` hook goes on after its pod was deleted, so that its callers
    /// have heard of it before it closes its listener. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 60))]
    pub termination_delay_seconds: Option<u8>,
    /// What is not captured in any pod, beside what a pod's annotations say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<SidecarExclusions>,
}

/// What a proxy asks for and may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshResources {
    /// What the node must have free for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<SidecarResources>,
    /// What it may not go above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<SidecarResources>,
}

/// CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarResources {
    /// CPUs, such as `100m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub cpu: Option<String>,
    /// Bytes, such as `64Mi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub memory: Option<String>,
}

/// Traffic of every pod that is not captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SidecarExclusions {
    /// Ports of the pods that stay reachable without the proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(range(min = 1, max = 65535)))]
    pub inbound_ports: Vec<u16>,
    /// Ports of destinations that are dialled without the proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(range(min = 1, max = 65535)))]
    pub outbound_ports: Vec<u16>,
    /// Networks, in CIDR notation, that are dialled without the proxy.
    #[serde(default, rename = "outboundCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 49)))]
    pub outbound_cidrs: Vec<String>,
    /// Users whose connections go out without the proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(range(min = 0, max = 4294967294_u32)))]
    pub uids: Vec<u32>,
    /// Network interfaces on which nothing is captured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 15)))]
    pub interfaces: Vec<String>,
}

impl MeshSidecar {
    /// What it says, with every default in its place; what is wrong is noted, and left out.
    pub(super) fn settings(&self, problems: &mut Vec<Problem>) -> SidecarSettings {
        let image = self.image.as_deref().and_then(|text| {
            let image = text.parse();
            image.map_err(|problem| problems.push(Problem { path: "spec.sidecar.image".to_owned(), ..problem })).ok()
        });
        SidecarSettings {
            image,
            log_level: self.log_level.unwrap_or_default(),
            resources: self.resources(problems),
            termination_delay: self
                .termination_delay_seconds
                .and_then(TerminationDelay::from_seconds)
                .unwrap_or_default(),
            exclusions: self.exclude.as_ref().map(|exclude| exclude.read(problems)).unwrap_or_default(),
        }
    }

    fn resources(&self, problems: &mut Vec<Problem>) -> ResourceSettings {
        let said = self.resources.clone().unwrap_or_default();
        let mut resources = ResourceSettings {
            requests: said.requests.unwrap_or_default().read("requests", problems),
            limits: said.limits.unwrap_or_default().read("limits", problems),
        };
        let path = |name: &str| format!("spec.sidecar.resources.requests.{name}");
        resources.check(path("cpu"), path("memory"), problems);
        // Where only a limit is given, the request stays out: Kubernetes takes the limit for it.
        let Resources { cpu, memory } = &mut resources.requests;
        if cpu.is_none() && resources.limits.cpu.is_none() {
            *cpu = DEFAULT_CPU.parse().ok();
        }
        if memory.is_none() && resources.limits.memory.is_none() {
            *memory = DEFAULT_MEMORY.parse().ok();
        }
        resources
    }
}

/// An idle proxy needs next to none; without any request it would be the first to starve on a full node.
const DEFAULT_CPU: &str = "10m";
/// What an idle proxy holds, and some connections.
const DEFAULT_MEMORY: &str = "32Mi";

impl SidecarResources {
    fn read(&self, group: &str, problems: &mut Vec<Problem>) -> Resources {
        let mut read = |name: &str, text: &Option<String>| {
            let text = text.as_deref()?;
            let quantity = Quantity::from_str(text).ok();
            if quantity.is_none() {
                let path = format!("spec.sidecar.resources.{group}.{name}");
                problems.push(Problem::new(path, Quantity::EXPECTED, quote(text)));
            }
            quantity
        };
        Resources { cpu: read("cpu", &self.cpu), memory: read("memory", &self.memory) }
    }
}

impl SidecarExclusions {
    fn read(&self, problems: &mut Vec<Problem>) -> CaptureExclusions {
        let path = |name: &str, index: usize| format!("spec.sidecar.exclude.{name}[{index}]");
        let mut ports = |name: &str, numbers: &[u16]| {
            let numbered = numbers.iter().enumerate();
            numbered.filter_map(|(index, port)| syntax::port(&path(name, index), *port, problems)).collect()
        };
        for (name, found) in [
            ("inboundPorts", self.inbound_ports.len()),
            ("outboundPorts", self.outbound_ports.len()),
            ("outboundCIDRs", self.outbound_cidrs.len()),
            ("uids", self.uids.len()),
            ("interfaces", self.interfaces.len()),
        ] {
            if found > capture::MOST {
                let expected = format!("at most {} entries", capture::MOST);
                problems.push(Problem::new(format!("spec.sidecar.exclude.{name}"), expected, found.to_string()));
                return CaptureExclusions::default();
            }
        }
        let mut exclusions = CaptureExclusions::default();
        let mut said = CaptureExclusions {
            inbound_ports: ports("inboundPorts", &self.inbound_ports),
            outbound_ports: ports("outboundPorts", &self.outbound_ports),
            uids: self.uids.iter().copied().filter(capture::is_uid).collect(),
            ..CaptureExclusions::default()
        };
        for (index, text) in self.outbound_cidrs.iter().enumerate() {
            match capture::cidr(text) {
                Some(network) => said.outbound_cidrs.push(network),
                None => problems.push(Problem::new(path("outboundCIDRs", index), capture::CIDR, quote(text))),
            }
        }
        for (index, text) in self.interfaces.iter().enumerate() {
            match capture::interface(text) {
                Some(name) => said.interfaces.push(name),
                None => problems.push(Problem::new(path("interfaces", index), capture::INTERFACE, quote(text))),
            }
        }
        exclusions.extend(said);
        exclusions
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::MeshConfigSpec;

    fn settings(sidecar: Value) -> Result<SidecarSettings, Vec<Problem>> {
        let spec: MeshConfigSpec = serde_json::from_value(json!({ "sidecar": sidecar })).unwrap();
        spec.settings().map(|settings| settings.sidecar)
    }

    #[test]
    fn a_mesh_that_says_nothing_asks_for_a_little_and_limits_nothing() {
        let settings = settings(json!({})).unwrap();
        assert_eq!(settings.resources.requests.cpu.unwrap().to_string(), "10m");
        assert_eq!(settings.resources.requests.memory.unwrap().to_string(), "32Mi");
        assert_eq!(settings.resources.limits, Resources::default());
        assert_eq!(settings.log_level, LogLevel::Info);
    }

    #[test]
    fn everything_malformed_is_told_with_its_place() {
        let problems = settings(json!({
            "image": "a b",
            "resources": {"requests": {"cpu": "much"}, "limits": {"memory": "-1"}},
            "exclude": {"inboundPorts": [0], "outboundCIDRs": ["0.0.0.0/0"], "interfaces": ["a b"]},
        }))
        .unwrap_err();
        let places: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
        let expected = [
            "spec.sidecar.image",
            "spec.sidecar.resources.requests.cpu",
            "spec.sidecar.resources.limits.memory",
            "spec.sidecar.exclude.inboundPorts[0]",
            "spec.sidecar.exclude.outboundCIDRs[0]",
            "spec.sidecar.exclude.interfaces[0]",
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn more_exclusions_than_fit_an_argument_are_refused() {
        let problems = settings(json!({"exclude": {"inboundPorts": vec![80; 257]}})).unwrap_err();
        assert_eq!(problems[0].path, "spec.sidecar.exclude.inboundPorts");
    }

    #[test]
    fn a_request_above_its_limit_is_refused() {
        let problems = settings(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})).unwrap_err();
        assert_eq!(problems[0].path, "spec.sidecar.resources.requests.cpu");
    }
}
