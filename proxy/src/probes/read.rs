//! Reads the probes that the injector put into the environment. It is ours, and written by nobody else; it is read as
//! strictly as anything, because a probe that is not what was admitted restarts healthy pods.

use byrnie_proto::probes::{Probe, ProbeAction, Probes};
use hyper::header::{HeaderName, HeaderValue};

/// A pod of 64 containers with five each.
const MAX_PROBES: usize = 320;

/// Kubernetes' own bound of a name, twice, and a kind.
const MAX_NAME: usize = 160;

const KINDS: [&str; 5] = ["startup", "readiness", "liveness", "post-start", "pre-stop"];

/// The probes in `text`.
///
/// # Errors
/// What is wrong, with its place.
pub(crate) fn read(text: &str) -> Result<Probes, String> {
    let probes: Probes = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if probes.probes.len() > MAX_PROBES {
        return Err(format!("{} probes; at most {MAX_PROBES}", probes.probes.len()));
    }
    for (name, probe) in &probes.probes {
        let known = name
            .split_once('/')
            .is_some_and(|(container, kind)| !container.is_empty() && KINDS.contains(&kind) && name.len() <= MAX_NAME);
        if !known {
            return Err(format!("{name:?}: expected CONTAINER/KIND, with a kind of {}", KINDS.join(", ")));
        }
        check(probe).map_err(|reason| format!("{name}: {reason}"))?;
    }
    Ok(probes)
}

fn check(probe: &Probe) -> Result<(), String> {
    if probe.timeout_seconds == 0 {
        return Err("timeoutSeconds: expected at least 1, found 0".to_owned());
    }
    let port = match &probe.action {
        ProbeAction::HttpGet { port, headers, .. } => {
            for (name, value) in headers {
                // The value may be a secret.
                let named = HeaderName::from_bytes(name.as_bytes()).is_ok();
                if !named || HeaderValue::from_str(value).is_err() {
                    return Err(format!("headers: {name:?} is no header, or its value can't be sent"));
                }
            }
            port
        }
        ProbeAction::TcpSocket { port } | ProbeAction::Grpc { port, .. } => port,
    };
    if *port == 0 { Err("port: expected 1 to 65535, found 0".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use byrnie_proto::probes::Nonce;

    use super::*;

    const NONCE: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn what_the_injector_writes_is_read_back() {
        let probe = |action| Probe { action, timeout_seconds: 1 };
        let http = ProbeAction::HttpGet {
            https: true,
            port: 8443,
            path: "/live".into(),
            headers: vec![("Host".into(), "shop.example".into())],
        };
        let probes = Probes {
            nonce: Nonce::new([7; 16]),
            probes: [
                ("web/liveness".to_owned(), probe(http)),
                ("web/readiness".to_owned(), probe(ProbeAction::TcpSocket { port: 80 })),
                ("db/startup".to_owned(), probe(ProbeAction::Grpc { port: 9, service: String::new() })),
            ]
            .into(),
        };
        assert_eq!(read(&serde_json::to_string(&probes).unwrap()), Ok(probes));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place_and_never_with_a_headers_value() {
        let tcp = |name: &str, port: &str, timeout: u32| {
            format!(
                r#"{{"nonce": "{NONCE}", "probes":
                    {{"{name}": {{"action": {{"tcpSocket": {{"port": {port}}}}}, "timeoutSeconds": {timeout}}}}}}}"#
            )
        };
        assert!(read(&tcp("web/liveness", "80", 1)).is_ok());
        for (text, place) in [
            ("{".to_owned(), "line 1"),
            (tcp("web", "80", 1), "\"web\": expected CONTAINER/KIND"),
            (tcp("web/ready", "80", 1), "web/ready"),
            (tcp("/liveness", "80", 1), "/liveness"),
            (tcp("web/liveness", "0", 1), "web/liveness: port"),
            (tcp("web/liveness", "80", 0), "web/liveness: timeoutSeconds"),
            (tcp("web/liveness", "70000", 1), "70000"),
            (tcp("web/liveness", r#"80, "host": "elsewhere""#, 1), "host"),
            (tcp("web/liveness", "80", 1).replace(NONCE, "0"), "nonce: expected 32 hexadecimal digits"),
            (r#"{"probes": {}}"#.to_owned(), "nonce"),
        ] {
            let reason = read(&text).unwrap_err();
            assert!(reason.contains(place), "{reason}");
        }
        let secret = format!(
            r#"{{"nonce": "{NONCE}", "probes": {{"web/liveness": {{"action": {{"httpGet": {{"https": false, "port": 80,
            "path": "/", "headers": [["Authorization", "secret\nword"]]}}}}, "timeoutSeconds": 1}}}}}}"#
        );
        let reason = read(&secret).unwrap_err();
        assert!(reason.contains("Authorization") && !reason.contains("secret"), "{reason}");
    }
}
