//! The control plane's process, and the questions that the command line would ask it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use byrnie_identity::{TrustBundle, TrustDomain};
use byrnie_netlab::{Host, Privileges, Process, RunAs};
use byrnie_proto::mesh::v1::administration_client::AdministrationClient;
use byrnie_proto::mesh::v1::{
    CreateTokenRequest, CreateTokenResponse, ObserveRequest, ObserveResponse, RevokeTokenRequest,
};
use hyper_util::rt::TokioIo;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::binaries::binary;
use crate::logs::Log;
use crate::proxy::give_to;
use crate::{DEADLINE, eventually, namespace_of, within};

/// UID of the control plane, where there is more than one.
const UID: u32 = 2000;

/// Where it listens for proxies.
pub(crate) const PORT: u16 = 15128;

/// How the control plane is started.
#[derive(Debug, Clone, Default)]
pub struct ControlPlaneOptions {
    /// Life of the SVIDs, below what a user may configure.
    pub svid_ttl: Option<Duration>,
    /// Size of the disk that its state is on, where it has one of its own.
    pub state_bytes: Option<u64>,
    /// More arguments.
    pub extra: Vec<String>,
}

/// A control plane.
#[derive(Debug)]
pub struct ControlPlane {
    host: Host,
    directory: PathBuf,
    source: PathBuf,
    options: ControlPlaneOptions,
    log: Log,
    process: Mutex<Option<Process>>,
}

impl ControlPlane {
    pub(crate) fn new(
        host: Host,
        directory: PathBuf,
        source: PathBuf,
        privileges: Privileges,
        options: ControlPlaneOptions,
    ) -> Self {
        std::fs::create_dir_all(directory.join("state")).expect("a directory for the control plane");
        if let Some(bytes) = options.state_bytes {
            let size = format!("size={bytes}");
            let state = directory.join("state");
            mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).expect("a small disk");
        }
        give_to(&directory, privileges, UID);
        give_to(&directory.join("state"), privileges, UID);
        let log = Log::at(directory.join("control-plane.log"));
        Self { host, directory, source, options, log, process: Mutex::default() }
    }

    /// Starts the process; [`ControlPlane::answers`] waits for it.
    pub fn start(&self) {
        let address = self.host.ipv4().expect("the node's address");
        let mut command = self
            .host
            .command(binary("byrnie-control-plane"))
            .user(RunAs::Application { uid: UID })
            .arg("--source")
            .arg(&self.source)
            .arg("--state")
            .arg(self.state())
            .args(["--listen", &format!("{address}:{PORT}")])
            .arg("--socket")
            .arg(self.socket())
            .args(["--log", &crate::logs::filter("info,byrnie_control_plane=debug")]);
        if let Some(ttl) = self.options.svid_ttl {
            command = command.args(["--svid-ttl", &format!("{}s", ttl.as_secs())]);
        }
        let command =
            command.args(&self.options.extra).stdout(Stdio::from(self.log.open())).stderr(Stdio::from(self.log.open()));
        *self.lock() = Some(command.spawn().expect("the control plane starts"));
    }

    /// Waits until it answers.
    pub async fn answers(&self) {
        eventually("the control plane answers", DEADLINE / 5, async || {
            assert!(self.is_running(), "the control plane has ended:\n{}", self.log.text());
            self.try_observe().await.ok().map(|_| ())
        })
        .await;
    }

    /// Kills it (`kill -9`).
    pub fn kill(&self) {
        if let Some(mut process) = self.lock().take() {
            process.kill();
        }
    }

    /// Asks it to end, and waits.
    pub async fn stop(&self) -> i32 {
        if let Some(process) = self.lock().as_ref() {
            process.signal(Signal::SIGTERM).expect("a running control plane");
        }
        let ended = async {
            loop {
                {
                    let mut process = self.lock();
                    let Some(running) = process.as_mut() else { return 0 };
                    if running.try_wait().expect("the state of a child").is_some() {
                        let code = running.wait().expect("an exit code");
                        *process = None;
                        return code;
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("the control plane's end", DEADLINE / 5, ended).await
    }

    /// Its log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where it answers the command line.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Where proxies find it.
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.host.ipv4().expect("the node's address"))
    }

    /// What it says of the mesh.
    pub async fn observe(&self) -> ObserveResponse {
        self.try_observe().await.unwrap_or_else(|status| panic!("Observe: {status}"))
    }

    async fn try_observe(&self) -> Result<ObserveResponse, tonic::Status> {
        Ok(self.client().await?.observe(ObserveRequest {}).await?.into_inner())
    }

    /// A join token for a pod, as soon as the control plane knows the pod.
    pub async fn token(&self, place: &str, service_account: &str) -> String {
        let what = format!("a join token for {place}");
        eventually(&what, DEADLINE / 5, async || self.try_token(place, service_account, 0).await.ok()).await.token
    }

    /// A join token with a life of one's own; 0: the default.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn try_token(
        &self,
        place: &str,
        service_account: &str,
        ttl_seconds: u32,
    ) -> Result<CreateTokenResponse, tonic::Status> {
        let (namespace, pod) = namespace_of(place);
        let (namespace, pod, service_account) = (namespace.to_owned(), pod.to_owned(), service_account.to_owned());
        let request = CreateTokenRequest { namespace, service_account, pod, ttl_seconds };
        Ok(self.client().await?.create_token(request).await?.into_inner())
    }

    /// Makes a join token worthless.
    pub async fn revoke_token(&self, id: &str) {
        let mut client = self.client().await.expect("the control plane's socket");
        client.revoke_token(RevokeTokenRequest { id: id.to_owned() }).await.expect("a revoked token");
    }

    /// The roots of the mesh.
    pub async fn bundle(&self) -> TrustBundle {
        let observed = self.observe().await;
        let bundle = observed.bundles.first().expect("a trust bundle").clone();
        let domain: TrustDomain = bundle.trust_domain.parse().expect("a trust domain");
        let roots = bundle.roots.into_iter().map(Into::into).collect();
        TrustBundle::new(domain, bundle.revision, roots).expect("a trust bundle")
    }

    fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    async fn client(&self) -> Result<AdministrationClient<Channel>, tonic::Status> {
        let path = self.socket();
        connect(&path)
            .await
            .map(AdministrationClient::new)
            .map_err(|error| tonic::Status::unavailable(error.to_string()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if self.options.state_bytes.is_some() {
            let _ = umount2(&self.state(), MntFlags::MNT_DETACH);
        }
    }
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    // tonic wants an address; the connector never looks at it.
    let endpoint = Endpoint::from_static("http://control-plane.invalid").timeout(Duration::from_secs(5));
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}
