//! Everything that happens before anything is served.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use byrnie_api::MeshSettings;
use byrnie_identity::{
    SvidVerifier, TrustBundles,
    authority::{CertificateAuthority, IssueLimits},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use super::{ControlPlane, Options, SourceKind, StartProblems};
use crate::{
    certificates::{Own, ingress},
    health::Health,
    hub::Hub,
    journal::Journal,
    kubernetes::{self, Cluster, Reviewer, patiently},
    model::{self, MeshView, Model},
    plane::{Allowances, Plane},
    proxies::Proxies,
    publish, server,
    source::{DirectorySource, KubernetesSource, NotListed, Objects, Source},
    state::{StateDir, write_atomically},
};

impl ControlPlane {
    /// Takes the state directory, reads the source, and listens; nothing is answered before [`ControlPlane::run`], but
    /// whether the process lives. In Kubernetes it waits for the API server.
    ///
    /// # Errors
    /// [`StartProblems`]: all of them at once.
    pub async fn start(options: Options) -> Result<Self, StartProblems> {
        let mut problems = Vec::new();
        let doors = Doors::open(&options, &mut problems);
        let (source, cluster) = match &options.source {
            SourceKind::Directory(path) => {
                let source = keep(DirectorySource::open(path), &mut problems);
                (source.map(|source| Arc::new(source) as Arc<dyn Source>), None)
            }
            // Who can't listen is told so before anybody is waited for.
            SourceKind::Kubernetes if !problems.is_empty() => (None, None),
            SourceKind::Kubernetes => match keep(open_cluster().await, &mut problems) {
                Some((source, cluster)) => (Some(source), Some(cluster)),
                None => (None, None),
            },
        };
        let objects = source.as_ref().map(|source| source.objects().borrow().clone());
        let settings = objects.as_ref().and_then(|objects| keep(read_settings(objects), &mut problems));
        let authority = match (&doors.state, &settings) {
            (Some(state), Some(settings)) => {
                keep(open_authority(state, settings, &options, cluster.as_ref()).await, &mut problems)
            }
            _ => None,
        };
        let Doors { health, listeners, state, control, admin, journal } = doors;
        let (
            (Some(source), Some(objects), Some(settings)),
            (Some(health), Some(state), Some(control), Some(journal)),
            Some(authority),
        ) = ((source, objects, settings), (health, state, control, journal), authority)
        else {
            return Err(StartProblems(problems));
        };
        if !problems.is_empty() {
            return Err(StartProblems(problems));
        }
        let plane = assemble(&options, &objects, settings, journal, authority, cluster.as_ref());
        let failed = |reason: String| StartProblems(vec![reason]);
        let bundle = state.join("bundle.pem");
        write_atomically(&bundle, plane.authority.bundle().to_pem().as_bytes(), 0o644)
            .map_err(|error| failed(format!("{}: {error}", bundle.display())))?;
        let own = Own::issue(&plane)
            .await
            .map_err(|error| failed(format!("the control plane's own certificate: {error}")))?;
        if cluster.is_none() {
            for failure in ingress::refresh(&plane, &state.join("ingress")).await {
                tracing::error!(reason = failure, "an ingress certificate can't be written");
            }
        }
        let socket = options.socket_path();
        Ok(Self { plane, source, own, listeners, control, admin, health, cluster, socket, state })
    }
}

/// What needs nobody else.
struct Doors {
    health: Option<Health>,
    listeners: Vec<TcpListener>,
    state: Option<StateDir>,
    control: Option<UnixListener>,
    admin: Option<TcpListener>,
    journal: Option<Journal>,
}

impl Doors {
    fn open(options: &Options, problems: &mut Vec<String>) -> Self {
        let health = keep(Health::start(options.health_listen), problems);
        let listeners =
            options.listen.iter().filter_map(|address| keep(server::bind(*address, "--listen"), problems)).collect();
        let admin = options.admin_listen.and_then(|address| keep(server::bind_loopback(address), problems));
        let state = keep(StateDir::open(&options.state), problems);
        let control = state.as_ref().and_then(|_| keep(server::bind_socket(&options.socket_path()), problems));
        let journal = state
            .as_ref()
            .and_then(|state| keep(Journal::open(&state.join("journal.redb"), options.clock.clone()), problems));
        Self { health, listeners, state, control, admin, journal }
    }
}

impl Options {
    fn socket_path(&self) -> std::path::PathBuf {
        self.socket.clone().unwrap_or_else(|| self.state.join("control.sock"))
    }
}

fn keep<T, E: fmt::Display>(result: Result<T, E>, problems: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| problems.push(error.to_string())).ok()
}

/// The API server as the source; returns when everything is listed once.
async fn open_cluster() -> Result<(Arc<dyn Source>, Cluster), String> {
    let cluster = kubernetes::connect().await?;
    let open = || KubernetesSource::open(cluster.client.clone());
    let source = patiently("the cluster can't be listed", |_: &NotListed| true, open).await;
    let source = source.map_err(|error| error.to_string())?;
    Ok((Arc::new(source), cluster))
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
    model::settings(objects, None).map_err(|(stored, message)| match stored {
        Some(stored) => format!("source: {}:{}: MeshConfig default: {message}", stored.file, stored.line),
        None => format!("source: {message}"),
    })
}

async fn open_authority(
    state: &StateDir,
    settings: &MeshSettings,
    options: &Options,
    cluster: Option<&Cluster>,
) -> Result<CertificateAuthority, String> {
    let limits = match options.svid_ttl {
        Some(ttl) if ttl < IssueLimits::default().shortest => IssueLimits::allow_shorter(ttl),
        _ => IssueLimits::default(),
    };
    let (directory, trust_domain, clock) = (state.join("ca"), &settings.trust_domain, &options.clock);
    let Some(cluster) = cluster else {
        return CertificateAuthority::open_or_create_with(&directory, trust_domain.clone(), clock, limits)
            .map_err(|error| error.to_string());
    };
    let attempt = || kubernetes::authority(&cluster.client, &directory, trust_domain, clock, limits);
    patiently("the root of the mesh can't be had", kubernetes::CaError::may_pass, attempt)
        .await
        .map_err(|error| error.to_string())
}

fn assemble(
    options: &Options,
    objects: &Objects,
    settings: MeshSettings,
    journal: Journal,
    authority: CertificateAuthority,
    cluster: Option<&Cluster>,
) -> Arc<Plane> {
    let mut bundles = TrustBundles::default();
    bundles.insert(authority.bundle());
    let settings = Arc::new(settings);
    let nothing = Model::build(&Objects::default(), &settings);
    let model = Arc::new(Model::build(objects, &settings));
    publish::tell(&nothing, &model);
    if model.networks.pods.is_empty() {
        tracing::warn!(
            "MeshConfig names no spec.networks, and no Node its podCIDRs: addresses that are no pod's and no Service's count \
             as outside of the cluster"
        );
    }
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
        reviewer: cluster.map(|cluster| Reviewer::new(cluster.client.clone(), clock.clone())),
        published: watch::Sender::new(view.meshed.clone()),
        ttl: options.svid_ttl,
        ending: watch::Sender::new(false),
        clock,
    })
}
