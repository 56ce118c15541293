//! Starts the parts of a control plane, and ends them.

mod start;

use std::{fmt, future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use byrnie_identity::Clock;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use crate::{
    certificates::{Own, ingress},
    health::Health,
    kubernetes::{self, Cluster},
    limits,
    plane::Plane,
    publish, server,
    source::Source,
    state::StateDir,
};

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the objects come from.
    pub source: SourceKind,
    /// Where the CA and the journal are.
    pub state: PathBuf,
    /// Where proxies connect; port 0: any.
    pub listen: Vec<SocketAddr>,
    /// Where the command line connects; `None`: `control.sock` in the state directory.
    pub socket: Option<PathBuf>,
    /// Where the command line connects through the API server's port-forward: a loopback address.
    pub admin_listen: Option<SocketAddr>,
    /// Where kubelet asks whether we live and are ready.
    pub health_listen: Option<SocketAddr>,
    /// How long certificates live, in place of MeshConfig's `svidTtl`; may be shorter than an hour.
    pub svid_ttl: Option<Duration>,
    /// What time it is.
    pub clock: Clock,
}

/// Where the objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory of YAML files.
    Directory(PathBuf),
    /// The API server of the cluster that this process is in, or that `KUBECONFIG` names. The root is then in a Secret,
    /// and any number of replicas may run.
    Kubernetes,
}

/// A control plane that is ready to serve.
pub struct ControlPlane {
    plane: Arc<Plane>,
    source: Arc<dyn Source>,
    own: Own,
    listeners: Vec<TcpListener>,
    control: UnixListener,
    admin: Option<TcpListener>,
    health: Health,
    cluster: Option<Cluster>,
    socket: PathBuf,
    state: StateDir,
}

/// Everything that keeps a control plane from starting, found in one go.
#[derive(Debug)]
pub struct StartProblems(pub Vec<String>);

/// Why a running control plane ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A server.
    #[error("a server ended: {0}")]
    Server(String),
}

impl ControlPlane {
    /// Where proxies connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Where kubelet asks.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.address()
    }

    /// Where the command line connects by TCP.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `end`. Open streams are told, and have [`limits::SHUTDOWN`] to close.
    ///
    /// # Errors
    /// [`RunError`]: it can't go on.
    pub async fn run(self, end: impl Future<Output = ()>) -> Result<(), RunError> {
        let addresses: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let Self { plane, source, own, listeners, control, admin, health, cluster, socket, state } = self;
        let (trust_domain, listen) = (plane.authority.trust_domain().to_string(), addresses.join(", "));
        tracing::info!(trust_domain, listen, socket = %socket.display(), state = %state.path().display(), "control plane ready");
        let (published, changed) = watch::channel(0);
        let config = own.config();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(publish::run(plane.clone(), source, published));
        tasks.spawn(own.keep(plane.clone()));
        if let (Some(cluster), Some(reviewer)) = (&cluster, &plane.reviewer) {
            tasks.spawn(reviewer.keys().clone().keep(cluster.client.clone()));
        }
        let mut writers = tokio::task::JoinSet::new();
        match &cluster {
            None => drop(tasks.spawn(ingress::keep(plane.clone(), state.join("ingress"), changed))),
            Some(cluster) => {
                let mut ending = plane.ending.subscribe();
                // The sender lives as long as the plane.
                let ended = async move { drop(ending.wait_for(|ending| *ending).await) };
                writers.spawn(kubernetes::write(cluster.clone(), plane.clone(), changed, ended));
            }
        }
        let mut servers = tokio::task::JoinSet::new();
        servers.spawn(server::serve_proxies(plane.clone(), listeners, config));
        servers.spawn(server::serve_administration(plane.clone(), control));
        if let Some(admin) = admin {
            servers.spawn(server::serve_loopback(plane.clone(), admin));
        }
        health.set_ready(true);
        let result = tokio::select! {
            () = end => Ok(()),
            ended = servers.join_next() => Err(RunError::Server(format!("{ended:?}"))),
        };
        tracing::info!("control plane ends");
        health.set_ready(false);
        plane.ending.send_replace(true);
        let closed = async {
            while servers.join_next().await.is_some() {}
            // So that another replica leads at once.
            while writers.join_next().await.is_some() {}
        };
        if tokio::time::timeout(limits::SHUTDOWN, closed).await.is_err() {
            tracing::info!("connections that were still open are closed");
        }
        tasks.shutdown().await;
        servers.shutdown().await;
        writers.shutdown().await;
        let _ = std::fs::remove_file(&socket);
        result
    }
}

impl fmt::Display for StartProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for StartProblems {}
