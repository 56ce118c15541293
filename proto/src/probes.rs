//! The kubelet's probes and `httpGet` hooks of a pod's containers, as the injector hands them to the proxy.
//!
//! The kubelet speaks from outside of the mesh; a port in strict mode refuses it. So the injector points each probe at the
//! proxy (`/probe/<nonce>/<container>/<kind>` on the health port), and the proxy performs the original one: exactly that,
//! and nothing else. They travel as JSON in the environment variable `BYRNIE_PROBES` of the proxy's container.
//!
//! The health port is open to everyone who reaches the pod. The nonce keeps all but the kubelet, which has the pod's spec,
//! from performing a hook.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The environment variable that holds [`Probes`] as JSON.
pub const PROBES: &str = "BYRNIE_PROBES";

/// All probes of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    /// What whoever asks for one must know.
    pub nonce: Nonce,
    /// By `<container>/<kind>`; kinds: `startup`, `readiness`, `liveness`, `post-start`, `pre-stop`.
    pub probes: BTreeMap<String, Probe>,
}

/// 128 bits as 32 hexadecimal digits in lower case. It is in the pod's spec, and nowhere else: no `Debug` shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(String);

impl Nonce {
    /// Of these random bytes.
    pub fn new(random: [u8; 16]) -> Self {
        Self(random.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let good = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(good) {
            Ok(Self(text))
        } else {
            // What was found may be the half of a good one.
            Err("nonce: expected 32 hexadecimal digits in lower case, found others")
        }
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(…)")
    }
}

/// One probe as it was admitted, its port as a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// What to do.
    pub action: ProbeAction,
    /// How long it may take, in seconds; Kubernetes' default is 1.
    pub timeout_seconds: u32,
}

/// What a probe does, at the pod's own address: one that names another host is the kubelet's own to perform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ProbeAction {
    /// `GET`; good: a status from 200 to 399.
    #[serde(rename_all = "camelCase")]
    HttpGet {
        /// Over TLS; the certificate is not verified, as by the kubelet.
        https: bool,
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

/// What the paths of all probes on the health port begin with.
pub const PREFIX: &str = "/probe/";

/// The path on the health port that stands for the probe `<container>/<kind>`.
pub fn path(nonce: &Nonce, name: &str) -> String {
    format!("{PREFIX}{}/{name}", nonce.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_32_digits_and_is_not_shown() {
        let nonce = Nonce::new([0xa0; 16]);
        assert_eq!(Nonce::try_from(nonce.as_str().to_owned()).unwrap(), nonce);
        assert_eq!(format!("{nonce:?}"), "Nonce(…)");
        for bad in ["", "a", &"A".repeat(32), &"/".repeat(32), &"a".repeat(33)] {
            assert!(Nonce::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
