//! Reads one option after the other and collects what is wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use byrnie_identity::TrustDomain;
use byrnie_proto::probes::Probes;
use byrnie_redirect::{CaptureConfig, Exempt};

use super::{AccessLog, ConfigError, CredentialFile, HostPort, Listen, every_address};

/// Collects mistakes; a value that stands in for a wrong one never leaves this module.
#[derive(Default)]
pub(super) struct Check(pub(super) Vec<ConfigError>);

impl Check {
    fn wrong(&mut self, option: &'static str, expected: impl Into<String>, found: impl Into<String>) {
        self.0.push(ConfigError { option, expected: expected.into(), found: found.into() });
    }

    pub(super) fn required(&mut self, option: &'static str, path: Option<PathBuf>, expected: &str) -> PathBuf {
        match path {
            Some(path) if !path.as_os_str().is_empty() => return path,
            Some(_) => self.wrong(option, expected, "an empty text"),
            None => self.wrong(option, expected, "nothing"),
        }
        PathBuf::new()
    }

    pub(super) fn control_plane(&mut self, text: Option<String>) -> HostPort {
        let expected = "HOST:PORT of the control plane, such as 10.0.0.2:15128 (IPv6 in brackets)";
        let found = match text.as_deref().map(HostPort::from_str) {
            Some(Ok(address)) => return address,
            Some(Err(())) => quoted(text.as_deref().unwrap_or_default()),
            None => "nothing".to_owned(),
        };
        self.wrong("--control-plane", expected, found);
        HostPort { host: String::new(), port: 0 }
    }

    pub(super) fn trust_domain(&mut self, text: &str) -> TrustDomain {
        let problem = match TrustDomain::from_str(text) {
            Ok(domain) => return domain,
            Err(problem) => problem,
        };
        self.wrong("--trust-domain", "a trust domain such as cluster.local", format!("{} ({problem})", quoted(text)));
        #[allow(clippy::expect_used)]
        TrustDomain::from_str("cluster.local").expect("the default trust domain is one")
    }

    pub(super) fn trust_bundle(&mut self, path: Option<PathBuf>) -> PathBuf {
        let expected = "a PEM file with the mesh's roots (`byrnie identity bundle > FILE`)";
        let path = self.required("--trust-bundle", path, expected);
        if !path.as_os_str().is_empty()
            && let Err(error) = std::fs::File::open(&path)
        {
            self.wrong("--trust-bundle", expected, format!("{}: {error}", path.display()));
        }
        path
    }

    pub(super) fn credential(&mut self, file: &CredentialFile, state: &Path) {
        let has_svid = crate::certificates::has_state(state);
        let expected = "a readable file with a join token (`byrnie token create`)";
        match file {
            // The token is good for one key: once that has its SVID nobody needs the token, and it may be gone.
            _ if has_svid => {}
            // Kubernetes may be about to write it: every attempt says what is wrong with it.
            CredentialFile::ServiceAccountToken(_) => {}
            CredentialFile::None => {
                let found = format!("nothing, and no certificate in the state directory {}", state.display());
                self.wrong("--join-token-file", expected, found);
            }
            CredentialFile::JoinToken(path) => {
                if let Err(error) = std::fs::File::open(path) {
                    self.wrong("--join-token-file", expected, format!("{}: {error}", path.display()));
                }
            }
        }
    }

    pub(super) fn exempt(&mut self, text: &str) -> Exempt {
        match text.parse::<Exempt>() {
            Ok(exempt) => {
                if let Err(invalid) = CaptureConfig::new(exempt).validate() {
                    for problem in invalid.problems {
                        self.wrong("--exempt", problem.expected, quoted(&problem.found));
                    }
                }
                exempt
            }
            Err(_) => {
                self.wrong("--exempt", "`uid`, `uid:NUMBER`, `mark` or `mark:NUMBER`", quoted(text));
                Exempt::Uid(byrnie_redirect::PROXY_UID)
            }
        }
    }

    pub(super) fn workers(&mut self, text: &str) -> NonZeroUsize {
        match text.parse::<NonZeroUsize>() {
            Ok(workers) if workers.get() <= MAX_WORKERS => workers,
            _ => {
                self.wrong("--workers", format!("1 to {MAX_WORKERS}"), quoted(text));
                NonZeroUsize::MIN
            }
        }
    }

    pub(super) fn socket(&mut self, path: PathBuf) -> PathBuf {
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let expected = format!("a path of at most {MAX_SOCKET_PATH} bytes, which is all that the kernel takes");
            self.wrong("--admin-socket", expected, path.display().to_string());
        }
        path
    }

    pub(super) fn admin(&mut self, text: &str) -> SocketAddr {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() && address.port() != 0 => address,
            _ => {
                self.wrong("--admin-listen", "a loopback address and a port, such as 127.0.0.1:15000", quoted(text));
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 15000)
            }
        }
    }

    pub(super) fn port(&mut self, option: &'static str, text: &str) -> u16 {
        match text.parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => {
                self.wrong(option, "1 to 65535", quoted(text));
                0
            }
        }
    }

    pub(super) fn listen(&mut self, option: &'static str, text: &str) -> Vec<SocketAddr> {
        if let Ok(port) = text.parse::<u16>()
            && port != 0
        {
            return every_address(port).to_vec();
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => vec![address],
            _ => {
                self.wrong(option, "a port, or ADDRESS:PORT", quoted(text));
                Vec::new()
            }
        }
    }

    pub(super) fn distinct_ports(&mut self, listen: &Listen) {
        let mut seen: Vec<(&'static str, u16)> = Vec::new();
        let first = |addresses: &[SocketAddr]| addresses.first().map_or(0, SocketAddr::port);
        for (option, port) in [
            ("--admin-listen", listen.admin.port()),
            ("--outbound-port", listen.outbound_port),
            ("--inbound-port", listen.inbound_port),
            ("--metrics-listen", first(&listen.metrics)),
            ("--health-listen", first(&listen.health)),
        ] {
            match seen.iter().find(|(_, other)| *other == port && port != 0) {
                Some((other, _)) => self.wrong(option, format!("a port other than that of {other}"), port.to_string()),
                None => seen.push((option, port)),
            }
        }
    }

    pub(super) fn log_level(&mut self, text: String) -> String {
        if let Err(problem) = crate::telemetry::logging::parse(&text) {
            let found = format!("{} ({problem})", quoted(&text));
            self.wrong("--log-level", "error, warn, info, debug, trace, or a filter such as byrnie_proxy=debug", found);
        }
        text
    }

    pub(super) fn truth(&mut self, option: &'static str, text: &str) -> bool {
        match text {
            "true" => true,
            "false" => false,
            _ => {
                self.wrong(option, "true or false", quoted(text));
                true
            }
        }
    }

    pub(super) fn probes(&mut self, text: Option<&str>) -> Option<Probes> {
        match crate::probes::read(text?) {
            Ok(probes) => Some(probes),
            Err(problem) => {
                let option = byrnie_proto::probes::PROBES;
                self.wrong(option, "the probes as the injector writes them", problem);
                None
            }
        }
    }

    pub(super) fn time(&mut self, option: &'static str, text: &str) -> Duration {
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let parsed = units.iter().find_map(|(unit, milliseconds)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(*milliseconds).map(Duration::from_millis)
        });
        match parsed {
            Some(time) if time <= MAX_DRAIN => time,
            _ => {
                self.wrong(option, "a time of at most 24h, such as 500ms, 30s or 5m", quoted(text));
                Duration::ZERO
            }
        }
    }
}

pub(super) fn access_log(text: &str) -> AccessLog {
    match text {
        "off" => AccessLog::Off,
        "-" => AccessLog::StandardOutput,
        path => AccessLog::File(path.into()),
    }
}

pub(super) fn credential(join_token: Option<PathBuf>, service_account_token: Option<PathBuf>) -> CredentialFile {
    match (join_token, service_account_token) {
        // clap refuses both at once.
        (_, Some(path)) => CredentialFile::ServiceAccountToken(path),
        (Some(path), None) => CredentialFile::JoinToken(path),
        (None, None) => CredentialFile::None,
    }
}

/// The directory for what is secret: `state`, or a part of it where `state` belongs to somebody else, and so can't be
/// closed to others. An emptyDir of Kubernetes is root's and open to all; only the proxy's container mounts it.
pub(super) fn own_directory(state: PathBuf) -> PathBuf {
    let own = nix::unistd::geteuid().as_raw();
    match std::fs::metadata(&state) {
        Ok(metadata) if metadata.is_dir() && metadata.uid() != own => state.join("proxy"),
        _ => state,
    }
}

fn quoted(text: &str) -> String {
    if text.is_empty() { "an empty text".to_owned() } else { format!("`{}`", text.escape_debug()) }
}

/// More threads than any machine that runs pods has cores.
const MAX_WORKERS: usize = 256;

/// `sun_path` has 108 bytes with the closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Longer than any orchestrator waits.
const MAX_DRAIN: Duration = Duration::from_secs(24 * 3600);
