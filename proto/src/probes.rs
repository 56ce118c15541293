//! The kubelet's probes and `httpGet` hooks of a pod's containers, as the injector hands them to the proxy.
//!
//! The kubelet speaks from outside of the mesh; a port in strict mode refuses it. So the injector points each probe at the
//! proxy (`/probe/<container>/<kind>` on the health port), and the proxy performs the original one: exactly that, and
//! nothing else. They travel as JSON in the environment variable `BYRNIE_PROBES` of the proxy's container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The environment variable that holds [`Probes`] as JSON.
pub const PROBES: &str = "BYRNIE_PROBES";

/// All probes of a pod, by `<container>/<kind>`; kinds: `startup`, `readiness`, `liveness`, `post-start`, `pre-stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Probes(pub BTreeMap<String, Probe>);

/// One probe as it was admitted, its port as a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// What to do.
    pub action: ProbeAction,
    /// How long it may take, in seconds; Kubernetes' default is 1.
    pub timeout_seconds: u32,
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ProbeAction {
    /// `GET`; good: a status from 200 to 399.
    #[serde(rename_all = "camelCase")]
    HttpGet {
        /// Over TLS; the certificate is not verified, as by the kubelet.
        https: bool,
        /// `None`: the pod's own address.
        host: Option<String>,
        /// The port.
        port: u16,
        /// Path and query; begins with a slash.
        path: String,
        /// Names and values, in their order.
        headers: Vec<(String, String)>,
    },
    /// Good: the port takes a connection.
    #[serde(rename_all = "camelCase")]
    TcpSocket {
        /// `None`: the pod's own address.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`; good: SERVING.
    #[serde(rename_all = "camelCase")]
    Grpc {
        /// The port.
        port: u16,
        /// The service asked for; may be empty.
        service: String,
    },
}

/// The path on the health port that stands for the probe `<container>/<kind>`.
pub fn path(name: &str) -> String {
    format!("/probe/{name}")
}
