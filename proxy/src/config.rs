//! What the operator asks for on the command line, read and checked before anything starts: every mistake is reported
//! at once, with its place, what was found and what would do.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use byrnie_identity::TrustDomain;
use byrnie_proto::probes::Probes;
use byrnie_redirect::Exempt;
use clap::{Args, Parser, Subcommand};

mod check;

use check::{Check, access_log, credential, own_directory};

/// The command line of `byrnie-proxy`.
#[derive(Debug, Parser)]
#[command(
    name = "byrnie-proxy",
    version,
    about = "The sidecar proxy of the Byrnie service mesh",
    long_about = "The sidecar proxy of the Byrnie service mesh.\n\n\
        Runs beside one application, in the same network namespace. Capture (`byrnie capture apply`, or `byrnie-capture` \
        in a container) brings it every TCP connection that the application opens or receives; between two pods of the \
        mesh it carries them in mutually authenticated TLS. It makes its own private key, which never leaves the \
        machine, and gets its certificate from the control plane.",
    after_long_help = "EXAMPLE\n  \
        A proxy beside an application, outside of Kubernetes. The token comes from `byrnie token create`, the trust \
        bundle from `byrnie identity bundle`:\n\n    \
        byrnie-proxy --control-plane 10.0.0.2:15128 --trust-bundle bundle.pem \\\n      \
        --join-token-file token --state /var/lib/byrnie\n\n  \
        In Kubernetes the injector puts it into the pod, with --service-account-token-file.\n\n\
        SIGNALS\n  \
        SIGTERM or SIGINT: say that no new connection is wanted, end when the open ones have (or after \
        --drain-timeout). A second one: end at once.\n\n\
        EXIT CODES\n  \
        0  ended as asked\n  1  could not run (a port is taken), or the answer is no: capture was not seen to work\n  \
        2  the command line or a file that it names is wrong",
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
pub struct CommandLine {
    /// What to do instead of running the proxy.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to run the proxy.
    #[command(flatten)]
    pub options: Options,
}

/// What the binary can do besides running the proxy.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Dials the address that only capture can answer, as an application would; exit 0: captured, 1: not.
    #[command(hide = true)]
    ProveCapture,
    /// Asks the proxy that runs to drain, and returns when it has begun: it tells its peers, is not ready any more, and
    /// goes on carrying connections until SIGTERM. A proxy that is gone already is no error.
    Drain(DrainArgs),
}

/// `byrnie-proxy drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The proxy's Unix socket.
    #[arg(long, value_name = "PATH")]
    pub admin_socket: PathBuf,
}

/// The options of the proxy as they were typed; [`Config::try_from`] checks them.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Address of the control plane.
    #[arg(long, value_name = "HOST:PORT", env = "BYRNIE_CONTROL_PLANE")]
    pub control_plane: Option<String>,
    /// The mesh's trust domain: the host part of every SPIFFE ID in it.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// PEM file with the roots against which the control plane must prove itself; read anew at every attempt.
    #[arg(long, value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// File with the token that gets the first certificate; good for one key, so it may be gone afterwards.
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// File with the ServiceAccount token that Kubernetes projects into the pod (audience `byrnie.dev/ca`); read anew at
    /// every use, because the kubelet replaces it.
    #[arg(long, value_name = "FILE", conflicts_with = "join_token_file")]
    pub service_account_token_file: Option<PathBuf>,
    /// Directory for the private key and certificate; made with mode 0700, its files with 0600. In one that belongs to
    /// somebody else (an emptyDir of Kubernetes) the proxy makes `proxy` for itself.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// How capture tells the proxy's own connections from the application's: `uid`, `uid:NUMBER`, `mark` or
    /// `mark:NUMBER`; the same as given to `byrnie capture apply`.
    #[arg(long, value_name = "HOW", default_value = "uid")]
    pub exempt: String,
    /// Threads that carry connections.
    #[arg(long, value_name = "N", default_value = "1")]
    pub workers: String,
    /// Unix socket (mode 0600) for what changes the proxy: renew, drain, log level [default: STATE/admin.sock].
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Read-only status; must be a loopback address, because the application shares it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin_listen: String,
    /// Where capture sends what the application opens (on loopback).
    #[arg(long, value_name = "PORT", default_value = "15001")]
    pub outbound_port: String,
    /// Where capture sends what reaches the pod (on every address).
    #[arg(long, value_name = "PORT", default_value = "15003")]
    pub inbound_port: String,
    /// Prometheus metrics; a port alone means every address.
    #[arg(long, value_name = "ADDR|PORT", default_value = "15010")]
    pub metrics_listen: String,
    /// Health: /healthz/ready and /healthz/live, and /probe/NONCE/CONTAINER/KIND; a port alone means every address.
    #[arg(long, value_name = "ADDR|PORT", default_value = "15021")]
    pub health_listen: String,
    /// What is logged to standard error: `error`, `warn`, `info`, `debug`, `trace`, or tracing's filter syntax.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// Where the access log goes, one JSON line per connection: a file, `-` for standard output, or `off`.
    #[arg(long, value_name = "PATH|-|off", default_value = "-")]
    pub access_log: String,
    /// Whether the proxy is ready only once it has seen that capture works.
    #[arg(long, value_name = "BOOL", default_value = "true")]
    pub require_capture_proof: String,
    /// Whether it also waits until an application's connection was seen to be captured. With `--exempt mark` the proxy
    /// sees to it itself; with `--exempt uid` someone else must run `byrnie-proxy prove-capture` in the pod.
    #[arg(long, value_name = "BOOL", default_value = "false")]
    pub require_application_proof: String,
    /// The kubelet's probes that the proxy performs, as the injector writes them; asked for at
    /// /probe/NONCE/CONTAINER/KIND of --health-listen.
    #[arg(long, value_name = "JSON", env = "BYRNIE_PROBES", hide_env_values = true)]
    pub probes: Option<String>,
    /// How long open connections may go on after SIGTERM, such as `30s`, `5m` or `1h`.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub drain_timeout: String,
}

/// What the operator asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The control plane.
    pub control_plane: HostPort,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// PEM file against which the control plane must prove itself the first time.
    pub trust_bundle: PathBuf,
    /// What proves who this proxy is before it holds an SVID.
    pub credential: CredentialFile,
    /// Directory for key and chain, the proxy's own.
    pub state: PathBuf,
    /// How capture tells the proxy's own connections from the application's. Sockets of the proxy that dial get the
    /// mark where it is one.
    pub exempt: Exempt,
    /// Threads that carry connections.
    pub workers: NonZeroUsize,
    /// Unix socket for what changes the proxy.
    pub admin_socket: PathBuf,
    /// Addresses and ports of the listeners.
    pub listen: Listen,
    /// Filter of the log, in tracing's syntax.
    pub log_level: String,
    /// Where the access log goes.
    pub access_log: AccessLog,
    /// Ready only once capture was seen to work.
    pub require_capture_proof: bool,
    /// Ready only once an application's connection was seen to be captured.
    pub require_application_proof: bool,
    /// The kubelet's probes that the proxy performs.
    pub probes: Option<Probes>,
    /// How long open connections may go on after SIGTERM.
    pub drain_timeout: Duration,
}

/// Where the proxy listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Read-only status, on loopback.
    pub admin: SocketAddr,
    /// What the application opens: this port on the loopback addresses of both families.
    pub outbound_port: u16,
    /// What reaches the pod: this port on all addresses of both families.
    pub inbound_port: u16,
    /// Metrics; one address, or every address of both families.
    pub metrics: Vec<SocketAddr>,
    /// Health; as above.
    pub health: Vec<SocketAddr>,
}

impl Listen {
    /// Where the application's own connections arrive.
    pub fn outbound(&self) -> [SocketAddr; 2] {
        let port = self.outbound_port;
        [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)]
    }

    /// Where connections to the pod arrive.
    pub fn inbound(&self) -> [SocketAddr; 2] {
        every_address(self.inbound_port)
    }

    /// Whether `port` is one of the proxy's own. A connection that aims at one is never forwarded.
    pub fn is_own_port(&self, port: u16) -> bool {
        let others = self.metrics.iter().chain(&self.health).chain([&self.admin]);
        port == self.outbound_port || port == self.inbound_port || others.into_iter().any(|other| other.port() == port)
    }
}

/// The credential of a proxy that holds no SVID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialFile {
    /// There is none: only an SVID in the state directory can start this proxy.
    None,
    /// A join token, good for one key.
    JoinToken(PathBuf),
    /// The pod's ServiceAccount token, which Kubernetes replaces while the pod runs.
    ServiceAccountToken(PathBuf),
}

impl CredentialFile {
    /// The file, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::None => None,
            Self::JoinToken(path) | Self::ServiceAccountToken(path) => Some(path),
        }
    }
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    StandardOutput,
    /// Appended to a file.
    File(PathBuf),
}

/// A host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<Ipv6Addr>() {
            Ok(address) => write!(f, "[{address}]:{}", self.port),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for HostPort {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(()) } else { Ok(Self::from(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(())?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(())?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
            return Err(());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

/// Everything that is wrong with the options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the proxy can't start:{}", list(.0))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong with the options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: expected {expected}, found {found}")]
pub struct ConfigError {
    /// The option.
    pub option: &'static str,
    /// What would do.
    pub expected: String,
    /// What was there.
    pub found: String,
}

fn list(errors: &[ConfigError]) -> String {
    errors.iter().map(|error| format!("\n  {error}")).collect()
}

impl TryFrom<Options> for Config {
    type Error = ConfigErrors;

    /// Checks the options and the files that they name.
    ///
    /// # Errors
    /// Every mistake there is.
    fn try_from(options: Options) -> Result<Self, ConfigErrors> {
        let mut check = Check::default();
        let state = check.required("--state", options.state, "a directory for the key and certificate");
        let config = Self {
            control_plane: check.control_plane(options.control_plane),
            trust_domain: check.trust_domain(&options.trust_domain),
            trust_bundle: check.trust_bundle(options.trust_bundle),
            credential: credential(options.join_token_file, options.service_account_token_file),
            exempt: check.exempt(&options.exempt),
            workers: check.workers(&options.workers),
            admin_socket: check.socket(options.admin_socket.unwrap_or_else(|| state.join("admin.sock"))),
            listen: Listen {
                admin: check.admin(&options.admin_listen),
                outbound_port: check.port("--outbound-port", &options.outbound_port),
                inbound_port: check.port("--inbound-port", &options.inbound_port),
                metrics: check.listen("--metrics-listen", &options.metrics_listen),
                health: check.listen("--health-listen", &options.health_listen),
            },
            log_level: check.log_level(options.log_level),
            access_log: access_log(&options.access_log),
            require_capture_proof: check.truth("--require-capture-proof", &options.require_capture_proof),
            require_application_proof: check.truth("--require-application-proof", &options.require_application_proof),
            probes: check.probes(options.probes.as_deref()),
            drain_timeout: check.time("--drain-timeout", &options.drain_timeout),
            state: own_directory(state),
        };
        check.distinct_ports(&config.listen);
        check.credential(&config.credential, &config.state);
        if check.0.is_empty() { Ok(config) } else { Err(ConfigErrors(check.0)) }
    }
}

fn every_address(port: u16) -> [SocketAddr; 2] {
    [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()].map(|address| SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests;
