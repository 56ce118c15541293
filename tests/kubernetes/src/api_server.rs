//! etcd and kube-apiserver. etcd has Unix sockets only; the API server one port.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;

use crate::{Api, Child, Programs, kubeconfig};

/// From the start of the process to `/readyz`: 4 s on an idle machine with two cores.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// The administrator's token (group `system:masters`).
const ADMINISTRATOR: &str = "kubelab-administrator";

/// What a test may choose.
#[derive(Debug, Clone)]
pub struct ApiServerOptions {
    /// Where it listens; also where webhooks and its clients are, as seen from it.
    pub address: Ipv4Addr,
    /// More arguments of kube-apiserver.
    pub extra: Vec<String>,
}

impl Default for ApiServerOptions {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, extra: Vec::new() }
    }
}

/// A running API server with an etcd of its own. Everything is gone when this value is: processes, files, ports.
#[derive(Debug)]
pub struct ApiServer {
    // Fields are dropped in this order: the API server before its etcd, the files last.
    server: Mutex<Option<Child>>,
    etcd: Child,
    programs: Programs,
    options: ApiServerOptions,
    port: u16,
    directory: TempDir,
}

impl ApiServer {
    /// Starts both and waits until they are ready.
    ///
    /// # Panics
    /// When they are not in time, with their logs.
    pub async fn start(programs: &Programs, options: ApiServerOptions) -> Self {
        let directory = tempfile::Builder::new().prefix("byrnie-kubelab-").tempdir().expect("a directory");
        write_secrets(directory.path(), options.address);
        let etcd = start_etcd(programs, directory.path());
        let port = free_port(options.address);
        let server = Mutex::default();
        let this = Self { server, etcd, programs: programs.clone(), options, port, directory };
        this.run();
        this.wait_until_ready().await;
        this
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.options.address, self.port)
    }

    /// The directory of its files, which is gone with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// As the administrator.
    pub fn api(&self) -> Api {
        self.api_as(ADMINISTRATOR)
    }

    /// As whom `token` says.
    pub fn api_as(&self, token: &str) -> Api {
        Api::new(&self.url(), &self.authority(), token)
    }

    /// A kubeconfig file for a program that speaks as whom `token` says.
    pub fn kubeconfig(&self, name: &str, token: &str) -> PathBuf {
        kubeconfig::write(self.directory(), name, &self.url(), &self.authority(), token)
    }

    /// The administrator's kubeconfig.
    pub fn administrator(&self) -> PathBuf {
        self.kubeconfig("administrator", ADMINISTRATOR)
    }

    /// kubectl as the administrator; its standard output.
    ///
    /// # Errors
    /// Its standard error.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let output = self.run_kubectl(arguments, input);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// kubectl as the administrator; its standard error, where it prints the API server's warnings.
    pub fn kubectl_with_warnings(&self, arguments: &[&str], input: &str) -> String {
        String::from_utf8_lossy(&self.run_kubectl(arguments, input).stderr).into_owned()
    }

    fn run_kubectl(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(self.programs.path("kubectl"));
        command.arg("--kubeconfig").arg(self.administrator()).args(arguments).env("HOME", self.directory());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl");
        // It may end before it has read everything; then its own words say why.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("kubectl's output")
    }

    /// Kills the API server; etcd keeps its content.
    pub fn kill(&self) {
        *self.server.lock().expect("a lock") = None;
    }

    /// Starts it again after [`ApiServer::kill`] and waits.
    pub async fn start_again(&self) {
        self.run();
        self.wait_until_ready().await;
    }

    /// Stops the process in its tracks, or lets it go on: connections stay open and nothing is answered.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        self.server.lock().expect("a lock").as_ref().expect("a running API server").signal(signal);
    }

    fn authority(&self) -> PathBuf {
        self.directory().join("ca.crt")
    }

    fn run(&self) {
        let file = |name: &str| self.directory().join(name).display().to_string();
        let mut command = Command::new(self.programs.path("kube-apiserver"));
        command.args([
            format!("--etcd-servers=unix://{}", file("etcd.sock")),
            format!("--bind-address={}", self.options.address),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", file("apiserver")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            // Without kube-proxy a ClusterIP leads nowhere: webhooks are called at their endpoints' addresses.
            "--enable-aggregator-routing=true".to_owned(),
            // There is no controller that makes the account `default` in a namespace, and pods are not to wait for it.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]);
        if !self.options.address.is_loopback() {
            command.arg(format!("--advertise-address={}", self.options.address));
        }
        command.args(&self.options.extra);
        *self.server.lock().expect("a lock") = Some(Child::start("kube-apiserver", &mut command, self.directory()));
    }

    async fn wait_until_ready(&self) {
        let (api, deadline) = (self.api(), Instant::now() + READY_WITHIN);
        loop {
            if api.text("/readyz").await.is_ok_and(|text| text == "ok") {
                return;
            }
            for child in [self.server.lock().expect("a lock").as_ref(), Some(&self.etcd)].into_iter().flatten() {
                assert!(child.ended().is_none(), "it ended before it was ready:\n{}", child.log());
            }
            assert!(Instant::now() < deadline, "the API server is not ready after {READY_WITHIN:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn start_etcd(programs: &Programs, directory: &Path) -> Child {
    let socket = |name: &str| format!("unix://{}", directory.join(name).display());
    let (clients, peers) = (socket("etcd.sock"), socket("etcd-peers.sock"));
    let mut command = Command::new(programs.path("etcd"));
    command.arg("--data-dir").arg(directory.join("etcd")).arg("--unsafe-no-fsync");
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("default={peers}"), "--log-level", "error"]);
    Child::start("etcd", &mut command, directory)
}

/// The serving certificate with its authority, the key of the ServiceAccounts' tokens, and the administrator's token.
fn write_secrets(directory: &Path, address: Ipv4Addr) {
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a file");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "kubelab");
    let authority = CertifiedIssuer::self_signed(authority, new_key()).expect("an authority");
    let names = ["localhost", "kubernetes.default.svc", &address.to_string(), "127.0.0.1", "10.96.0.1"];
    let mut serving = CertificateParams::new(names.map(str::to_owned)).expect("names");
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    let key = new_key();
    let serving = serving.signed_by(&key, &authority).expect("a certificate");
    write("ca.crt", &authority.pem());
    write("apiserver.crt", &serving.pem());
    write("apiserver.key", &key.serialize_pem());
    let tokens = new_key();
    write("service-accounts.key", &tokens.serialize_pem());
    write("service-accounts.pub", &tokens.public_key_pem());
    write("tokens.csv", &format!("{ADMINISTRATOR},administrator,1,system:masters\n"));
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

/// Below the ports that the kernel hands out (`ip_local_port_range` begins at 32768), where no connection of another
/// test takes it between this look and the process's start.
pub(crate) fn free_port(address: Ipv4Addr) -> u16 {
    const FROM: u16 = 18_000;
    const COUNT: u16 = 14_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("a small number");
    std::iter::repeat_with(|| FROM + (start + TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .find(|port| TcpListener::bind(SocketAddr::new(IpAddr::V4(address), *port)).is_ok())
        .expect("a free port")
}
