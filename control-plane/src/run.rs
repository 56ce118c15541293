//! Starts the parts of a control plane, and ends them.

use std::{fmt, future::Future, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use byrnie_api::MeshSettings;
use byrnie_identity::{
    Clock, SvidVerifier, TrustBundles,
    authority::{CertificateAuthority, IssueLimits},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use crate::{
    certificates::{Own, ingress},
    hub::Hub,
    journal::Journal,
    limits,
    model::{self, MeshView, Model},
    plane::{Allowances, Plane},
    proxies::Proxies,
    publish, server,
    source::{DirectorySource, Objects, Source},
    state::{StateDir, write_atomically},
};

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of YAML files.
    pub source: PathBuf,
    /// Where the CA and the journal are.
    pub state: PathBuf,
    /// Where proxies connect; port 0: any.
    pub listen: Vec<SocketAddr>,
    /// Where the command line connects; `None`: `control.sock` in the state directory.
    pub socket: Option<PathBuf>,
    /// How long certificates live, in place of MeshConfig's `svidTtl`; may be shorter than an hour.
    pub svid_ttl: Option<Duration>,
    /// What time it is.
    pub clock: Clock,
}

/// A control plane that is ready to serve.
pub struct ControlPlane {
    plane: Arc<Plane>,
    source: Arc<dyn Source>,
    own: Own,
    listeners: Vec<TcpListener>,
    control: UnixListener,
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
    /// Takes the state directory, reads the source, and listens; nothing is answered before [`ControlPlane::run`].
    ///
    /// # Errors
    /// [`StartProblems`]: all of them at once.
    pub async fn start(options: Options) -> Result<Self, StartProblems> {
        let mut problems = Vec::new();
        let source = keep(DirectorySource::open(&options.source), &mut problems);
        let objects = source.as_ref().map(|source| source.objects().borrow().clone());
        let settings = objects.as_ref().and_then(|objects| keep(read_settings(objects), &mut problems));
        let listeners: Vec<Option<TcpListener>> =
            options.listen.iter().map(|address| keep(server::bind(*address), &mut problems)).collect();
        let state = keep(StateDir::open(&options.state), &mut problems);
        let socket = options.socket.clone().unwrap_or_else(|| options.state.join("control.sock"));
        let control = state.as_ref().and_then(|_| keep(server::bind_socket(&socket), &mut problems));
        let journal = state
            .as_ref()
            .and_then(|state| keep(Journal::open(&state.join("journal.redb"), options.clock.clone()), &mut problems));
        let authority = match (&state, &settings) {
            (Some(state), Some(settings)) => keep(open_authority(state, settings, &options), &mut problems),
            _ => None,
        };
        let (Some(source), Some(objects), Some(settings), Some(state), Some(control), Some(journal), Some(authority)) =
            (source, objects, settings, state, control, journal, authority)
        else {
            return Err(StartProblems(problems));
        };
        if !problems.is_empty() {
            return Err(StartProblems(problems));
        }
        let plane = assemble(&options, &objects, settings, journal, authority);
        let failed = |reason: String| StartProblems(vec![reason]);
        let bundle = state.join("bundle.pem");
        write_atomically(&bundle, plane.authority.bundle().to_pem().as_bytes(), 0o644)
            .map_err(|error| failed(format!("{}: {error}", bundle.display())))?;
        let own = Own::issue(&plane)
            .await
            .map_err(|error| failed(format!("the control plane's own certificate: {error}")))?;
        for failure in ingress::refresh(&plane, &state.join("ingress")).await {
            tracing::error!(reason = failure, "an ingress certificate can't be written");
        }
        let listeners = listeners.into_iter().flatten().collect();
        Ok(Self { plane, source: Arc::new(source), own, listeners, control, socket, state })
    }

    /// Where proxies connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `end`. Open streams are told, and have [`limits::SHUTDOWN`] to close.
    ///
    /// # Errors
    /// [`RunError`]: it can't go on.
    pub async fn run(self, end: impl Future<Output = ()>) -> Result<(), RunError> {
        let addresses: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let Self { plane, source, own, listeners, control, socket, state } = self;
        let (trust_domain, listen) = (plane.authority.trust_domain().to_string(), addresses.join(", "));
        tracing::info!(trust_domain, listen, socket = %socket.display(), state = %state.path().display(), "control plane ready");
        let (published, changed) = watch::channel(0);
        let config = own.config();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(publish::run(plane.clone(), source, published));
        tasks.spawn(own.keep(plane.clone()));
        tasks.spawn(ingress::keep(plane.clone(), state.join("ingress"), changed));
        let mut servers = tokio::task::JoinSet::new();
        servers.spawn(server::serve_proxies(plane.clone(), listeners, config));
        servers.spawn(server::serve_administration(plane.clone(), control));
        let result = tokio::select! {
            () = end => Ok(()),
            ended = servers.join_next() => Err(RunError::Server(format!("{ended:?}"))),
        };
        tracing::info!("control plane ends");
        plane.ending.send_replace(true);
        let closed = async { while servers.join_next().await.is_some() {} };
        if tokio::time::timeout(limits::SHUTDOWN, closed).await.is_err() {
            tracing::info!("connections that were still open are closed");
        }
        tasks.shutdown().await;
        servers.shutdown().await;
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

fn keep<T, E: fmt::Display>(result: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

fn read_settings(objects: &Objects) -> Result<MeshSettings, String> {
    // A MeshConfig that is refused at the start leaves open which trust domain to serve.
    if let Some(problem) = objects.problems.iter().find(|problem| problem.is_about("MeshConfig")) {
        return Err(format!("source: {problem}"));
    }
    let named = objects.items.keys().any(|key| key.kind == "MeshConfig");
    // It may be in there, and stricter than the defaults.
    if let Some(problem) = objects.problems.iter().find(|problem| problem.object.is_none() && !named) {
        return Err(format!(
            "source: {problem}; there is no MeshConfig besides, and it may be in there: mend the file, take it out of the \
             source, or write a MeshConfig"
        ));
    }
    let settings = model::settings(objects, None).map_err(|(stored, message)| match stored {
        Some(stored) => format!("source: {}:{}: MeshConfig default: {message}", stored.file, stored.line),
        None => format!("source: {message}"),
    })?;
    if settings.pod_cidrs.is_empty() {
        tracing::warn!(
            "MeshConfig names no spec.networks: addresses that are no pod's and no Service's count as outside of the cluster"
        );
    }
    Ok(settings)
}

fn open_authority(
    state: &StateDir,
    settings: &MeshSettings,
    options: &Options,
) -> Result<CertificateAuthority, String> {
    let limits = match options.svid_ttl {
        Some(ttl) if ttl < IssueLimits::default().shortest => IssueLimits::allow_shorter(ttl),
        _ => IssueLimits::default(),
    };
    CertificateAuthority::open_or_create_with(&state.join("ca"), settings.trust_domain.clone(), &options.clock, limits)
        .map_err(|error| error.to_string())
}

fn assemble(
    options: &Options,
    objects: &Objects,
    settings: MeshSettings,
    journal: Journal,
    authority: CertificateAuthority,
) -> Arc<Plane> {
    let mut bundles = TrustBundles::default();
    bundles.insert(authority.bundle());
    let settings = Arc::new(settings);
    let nothing = Model::build(&Objects::default(), &settings);
    let model = Arc::new(Model::build(objects, &settings));
    publish::tell(&nothing, &model);
    let clock = options.clock.clone();
    let view = MeshView {
        model: model.clone(),
        meshed: Arc::new(journal.meshed_pods()),
        bundle: authority.bundle(),
        now: clock.wall(),
    };
    Arc::new(Plane {
        verifier: SvidVerifier::new(bundles.shared(), clock.clone()),
        authority,
        journal,
        model: ArcSwap::new(model),
        hub: Hub::new(Arc::new(view.clone()), clock.wall()),
        proxies: Arc::new(Proxies::default()),
        allowances: Allowances::new(clock.clone()),
        published: watch::Sender::new(view.meshed.clone()),
        ttl: options.svid_ttl,
        ending: watch::Sender::new(false),
        clock,
    })
}
