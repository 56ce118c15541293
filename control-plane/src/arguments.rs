//! The command line of `byrnie-control-plane`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use byrnie_identity::Clock;
use clap::{Parser, ValueEnum};

use crate::run::{Options, SourceKind};

/// Issues identities to the proxies of a mesh, and tells them where to connect and what is allowed.
///
/// The mesh is described by a Kubernetes cluster, or by a directory of YAML files: Namespaces, Pods, Services, ServiceAccounts and
/// EndpointSlices as Kubernetes writes them, and the kinds of byrnie.dev (MeshConfig, MtlsPolicy,
/// AuthorizationPolicy, IngressPolicy, EgressPolicy). Changes are taken up as they are written; a file with a mistake
/// keeps its last good content, and `byrnie check` shows the mistake.
#[derive(Debug, Parser)]
#[command(name = "byrnie-control-plane", version, after_long_help = EXAMPLES)]
pub struct Arguments {
    /// Directory of YAML and JSON files that describe the mesh, read recursively; or the word `kubernetes`: the cluster
    /// that this process runs in, or that KUBECONFIG names (a directory of that name is ./kubernetes).
    #[arg(long, value_name = "DIR|kubernetes", env = "BYRNIE_SOURCE")]
    source: PathBuf,

    /// Directory of this control plane's own: its CA, its journal, and `bundle.pem`, which is for the proxies'
    /// --trust-bundle. Made (0700) where it is missing. Keep it, and keep it secret: who reads it can issue identities.
    /// In Kubernetes the root is in Secret byrnie-system/byrnie-ca, and this directory (below an emptyDir) may be lost.
    #[arg(long, value_name = "DIR", env = "BYRNIE_STATE")]
    state: PathBuf,

    /// Address where proxies connect, such as 0.0.0.0:15128 or [::]:15128; may be given several times.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15128")]
    listen: Vec<SocketAddr>,

    /// Unix socket where the `byrnie` command connects; only root and this process's user may.
    /// [default: control.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Loopback address that answers what the socket answers, for the `byrnie` command by way of the API server's
    /// port-forward.
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<SocketAddr>,

    /// Address that answers /healthz/live and /healthz/ready, such as 0.0.0.0:15121.
    #[arg(long, value_name = "IP:PORT")]
    health_listen: Option<SocketAddr>,

    /// Life of certificates in place of MeshConfig's svidTtl, such as 90s, 30m or 24h. Less than 1h is for
    /// demonstrations and tests: proxies renew at half of it, and an outage as long as the other half cuts them off.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    svid_ttl: Option<Duration>,

    /// What to log: a level, or levels by module, such as `info,byrnie_control_plane=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "BYRNIE_LOG")]
    pub log: String,

    /// How to log, on standard error.
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Arguments {
    /// What they mean.
    pub fn options(&self) -> Options {
        Options {
            source: if self.source.as_os_str() == KUBERNETES {
                SourceKind::Kubernetes
            } else {
                SourceKind::Directory(self.source.clone())
            },
            state: self.state.clone(),
            listen: self.listen.clone(),
            socket: self.socket.clone(),
            admin_listen: self.admin_listen,
            health_listen: self.health_listen,
            svid_ttl: self.svid_ttl,
            clock: Clock::system(),
        }
    }
}

/// The value of --source that is no directory.
const KUBERNETES: &str = "kubernetes";

const EXAMPLES: &str = "\
Examples:
  byrnie-control-plane --source mesh/ --state /var/lib/byrnie
  byrnie-control-plane --source mesh/ --state ./state --listen 10.0.0.1:15128 --listen '[fd00::1]:15128'
  byrnie-control-plane --source kubernetes --state /var/lib/byrnie/state --health-listen 0.0.0.0:15121

Outside of Kubernetes a proxy then needs the trust bundle (STATE/bundle.pem) and a join token for its pod:
  byrnie --socket STATE/control.sock token create --namespace shop --service-account web --pod web-0

Exit codes: 0 ended by SIGTERM or SIGINT, 1 could not start or go on (the reasons are on standard error), 2 usage.";

fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a time from 1s to 7d, such as 90s, 30m, 24h or 7d, found {text:?}");
    let unit = text.chars().next_back().ok_or_else(expected)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(expected()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(expected)?;
    let duration = number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(expected)?;
    let week = Duration::from_secs(7 * 24 * 3600);
    if (Duration::from_secs(1)..=week).contains(&duration) { Ok(duration) } else { Err(expected()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_help_teaches() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        for word in ["--source", "--state", "--listen", "--socket", "bundle.pem", "token create", "Exit codes"] {
            assert!(help.contains(word), "{word}");
        }
    }

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("7d").unwrap(), Duration::from_secs(604_800));
        for wrong in ["", "0s", "8d", "10", "h", "-1s", "99999999999999999999s", "1µ"] {
            assert!(duration(wrong).unwrap_err().contains("expected"), "{wrong}");
        }
    }

    #[test]
    fn one_word_is_the_cluster_and_everything_else_a_directory() {
        let source = |text: &str| Arguments::try_parse_from(["x", "--source", text, "--state", "b"]).unwrap().options();
        assert_eq!(source("kubernetes").source, SourceKind::Kubernetes);
        assert_eq!(source("./kubernetes").source, SourceKind::Directory("./kubernetes".into()));
    }

    #[test]
    fn several_addresses_of_both_families_may_be_given() {
        let arguments = ["x", "--source", "a", "--state", "b", "--listen", "127.0.0.1:1", "--listen", "[::1]:2"];
        let options = Arguments::try_parse_from(arguments).unwrap().options();
        assert_eq!(options.listen, ["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    }
}
