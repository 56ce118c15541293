//! What is compared. Each contestant but `direct` is a pair of proxies, one at each end, to which the same redirect rules
//! bring the application's connections: what is opened to port 15001, what arrives to port 15003.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use byrnie_netlab::{Host, HostCommand, Process};
use clap::ValueEnum;
use nix::unistd::{Gid, Uid, chown};
use serde::Serialize;

use crate::failure::{Failure, Result, doing};
use crate::process::listens;
use crate::rows::Row;

mod byrnie;
mod envoy;
mod haproxy;
mod plain_tls;

pub(crate) use byrnie::{Mesh, capture, requests_followed};
pub(crate) use plain_tls::run as run_plain_tls;

/// Who carries the loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    /// No proxy: what the machine can do.
    Direct,
    /// HAProxy in TCP mode at both ends, in plaintext: what any two user-space proxies cost before TLS.
    Relay,
    /// Envoy at both ends, mTLS, as a TCP proxy, with its access log.
    EnvoyL4,
    /// Envoy at both ends, mTLS, as an HTTP proxy, with its access log.
    EnvoyHttp,
    /// The plainest two proxies with mTLS, and no mesh: only when it is named.
    PlainTls,
    /// Byrnie as it comes: mTLS, policy, metrics, access log.
    Byrnie,
}

impl Contestant {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 6] =
        [Self::Direct, Self::Relay, Self::EnvoyL4, Self::EnvoyHttp, Self::PlainTls, Self::Byrnie];

    /// Its name, as on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::EnvoyL4 => "envoy-l4",
            Self::EnvoyHttp => "envoy-http",
            Self::PlainTls => "plain-tls",
            Self::Byrnie => "byrnie",
        }
    }

    /// Whether it has proxies at all.
    pub(crate) fn has_proxies(self) -> bool {
        self != Self::Direct
    }

    /// Whether it takes part unless others are chosen.
    pub(crate) fn takes_part_unchosen(self) -> bool {
        self != Self::PlainTls
    }

    /// Whether nothing of the application may be readable on the wire.
    pub(crate) fn is_mtls(self) -> bool {
        !matches!(self, Self::Direct | Self::Relay)
    }

    /// Whether it can look into HTTP.
    pub(crate) fn parses(self) -> bool {
        matches!(self, Self::EnvoyHttp | Self::Byrnie)
    }

    /// Why a row is not for it, if it is not.
    pub(crate) fn cannot(self, row: Row) -> Option<&'static str> {
        match (self, row) {
            (Self::EnvoyHttp, Row::Bulk) => Some("iperf3 does not speak HTTP"),
            (Self::Direct, Row::Idle) => Some("there is no proxy"),
            _ => None,
        }
    }
}

/// UID of proxies, by which the redirect rules tell their connections from the application's.
const PROXY_UID: u32 = 1500;

/// Ports to which the rules redirect.
const OUTBOUND: u16 = 15_001;
const INBOUND: u16 = 15_003;

/// Longest that a proxy takes to be ready.
const READY: Duration = Duration::from_secs(20);

/// One end of a contestant: where a proxy is to run.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// The namespace.
    pub(crate) host: Host,
    /// Its name as a workload.
    pub(crate) name: String,
    /// A directory that the proxy may read and write.
    pub(crate) directory: PathBuf,
}

/// Proxies, running and ready: one at each end, and one at every further client.
#[derive(Debug)]
pub(crate) struct Proxies(Vec<Running>);

impl Proxies {
    /// Starts a fresh one at each of `ends`.
    ///
    /// # Errors
    /// When a proxy does not become ready, with the end of its log.
    pub(crate) fn start(contestant: Contestant, mesh: Option<&Mesh>, ends: &[End]) -> Result<Self> {
        let started: Result<_> = match contestant {
            Contestant::Direct => Err(Failure::new("it has no proxies")),
            Contestant::Relay => ends.iter().map(haproxy::start).collect(),
            Contestant::EnvoyL4 | Contestant::EnvoyHttp => {
                let authority = envoy::Authority::new()?;
                ends.iter().map(|end| envoy::start(contestant, &authority, end)).collect()
            }
            Contestant::PlainTls => {
                let authority = plain_tls::Authority::new()?;
                ends.iter().map(|end| plain_tls::start(&authority, end)).collect()
            }
            Contestant::Byrnie => {
                let mesh = mesh.ok_or_else(|| Failure::new("there is no control plane"))?;
                ends.iter().map(|end| mesh.proxy(end)).collect()
            }
        };
        let mut proxies = Self(started?);
        for proxy in &mut proxies.0 {
            proxy.until("listening", |id| listens(id, OUTBOUND) && listens(id, INBOUND))?;
        }
        if contestant == Contestant::Byrnie {
            for (proxy, end) in proxies.0.iter_mut().zip(ends) {
                byrnie::ready(proxy, &end.host)?;
            }
        }
        Ok(proxies)
    }

    /// Their processes, in the order of the ends.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.0.iter().map(Running::id).collect()
    }

    /// That all still run.
    ///
    /// # Errors
    /// With the end of the log of one that does not.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Running::check)
    }
}

/// A program that is to run until it is dropped, and its log.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    log: PathBuf,
    process: Process,
}

impl Running {
    /// Starts it with its output in a file of `directory`.
    pub(crate) fn start(name: &str, command: HostCommand, directory: &Path) -> Result<Self> {
        let log = directory.join("log");
        let failed = || doing(format!("starting {name}"));
        let output = File::options().create(true).append(true).open(&log).map_err(failed())?;
        let errors = output.try_clone().map_err(failed())?;
        let process = command.stdout(output).stderr(errors).spawn().map_err(failed())?;
        Ok(Self { name: name.to_owned(), log, process })
    }

    /// Its process ID.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// That it still runs.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.process.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.quoted(&format!("ended ({status})"))),
            Err(error) => Err(self.quoted(&error.to_string())),
        }
    }

    /// Waits until `condition` holds for its process.
    pub(crate) fn until(&mut self, what: &str, mut condition: impl FnMut(u32) -> bool) -> Result<()> {
        let deadline = Instant::now() + READY;
        while !condition(self.id()) {
            self.check()?;
            if Instant::now() > deadline {
                return Err(self.quoted(&format!("not {what} within {READY:?}")));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn quoted(&self, what: &str) -> Failure {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n");
        Failure::new(format!("{}: {what}; its last lines:\n{last}", self.name))
    }
}

/// Makes a directory that belongs to the proxies' user.
pub(crate) fn proxys_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(doing(path.display()))?;
    give_to_proxy(path)
}

/// Writes a file that only the proxies' user reads.
fn write_for_proxy(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(doing(path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(doing(path.display()))?;
    give_to_proxy(path)
}

fn give_to_proxy(path: &Path) -> Result<()> {
    let (user, group) = (Uid::from_raw(PROXY_UID), Gid::from_raw(PROXY_UID));
    chown(path, Some(user), Some(group)).map_err(doing(format!("giving {} to the proxies", path.display())))
}
