//! The API server as the source.
//!
//! One watch per kind keeps `store` level with the cluster; `strip` decides what of an object is kept at all, `follow`
//! what becomes of a watch that fails. Objects are handed over only when every kind has been listed in full: a mesh without
//! its AuthorizationPolicies would be an open one. Later nothing that is known is given up because the API server can't
//! be reached.

mod follow;
mod store;
mod strip;

use std::{sync::Arc, time::Duration};

use byrnie_api::{AuthorizationPolicy, EgressPolicy, IngressPolicy, Kind, MeshConfig, MtlsPolicy};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject},
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use self::{
    follow::{Resource, follow},
    store::Store,
};
use super::{Objects, Source};
use crate::limits;

/// Follows a cluster with tasks of its own, until it is dropped.
pub struct KubernetesSource {
    client: Client,
    objects: watch::Receiver<Arc<Objects>>,
    /// Aborted with it.
    _tasks: JoinSet<()>,
}

/// Why a cluster can't be a source.
#[derive(Debug, thiserror::Error)]
#[error(
    "source kubernetes: nothing came for {} s, and these are not listed yet: {}; check that the API server can be reached and that \
     the ServiceAccount {}/{} has the role of the same name (`byrnie install` makes it)",
    limits::FIRST_LISTING.as_secs(), .missing.join("; "), byrnie_api::labels::SYSTEM_NAMESPACE, byrnie_api::labels::CONTROL_PLANE
)]
pub struct NotListed {
    /// What could not be listed, and why.
    pub missing: Vec<String>,
}

impl KubernetesSource {
    /// Watches everything that the model is made of, and returns when all of it has been listed once.
    ///
    /// A CustomResourceDefinition that is not installed can have no objects; it is a problem in [`Objects`], and asked
    /// for again.
    ///
    /// # Errors
    /// [`NotListed`]: something is missing, and nothing has come for [`limits::FIRST_LISTING`].
    pub async fn open(client: Client) -> Result<Self, NotListed> {
        let store = Arc::new(Store::new());
        let mut tasks = JoinSet::new();
        watch_all(&client, &store, &mut tasks);
        first_listing(&store).await?;
        let changes = store.changes();
        let (sender, objects) = watch::channel(Arc::new(store.objects()));
        tasks.spawn(publish(store, changes, sender));
        Ok(Self { client, objects, _tasks: tasks })
    }

    /// What talks to the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Source for KubernetesSource {
    fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.clone()
    }
}

/// A client for a long life: a connection that died unnoticed fails, and does not hang.
///
/// # Errors
/// What the configuration names can't be used: a certificate, a proxy.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(limits::API_SERVER_CONNECT);
    config.read_timeout = Some(limits::API_SERVER_SILENCE);
    config.write_timeout = Some(limits::API_SERVER_SILENCE);
    Client::try_from(config)
}

fn watch_all(client: &Client, store: &Arc<Store>, tasks: &mut JoinSet<()>) {
    let core = |name: &str, selector| Resource::core(store, name, selector);
    let all = client.clone();
    tasks.spawn(follow(Api::<Namespace>::all(all.clone()), core("namespaces", None), strip::namespace));
    tasks.spawn(follow(Api::<Pod>::all(all.clone()), core("pods", None), strip::pod));
    tasks.spawn(follow(Api::<Service>::all(all.clone()), core("services", None), strip::service));
    tasks.spawn(follow(Api::<Node>::all(all.clone()), core("nodes", None), strip::node));
    let service_cidrs = Resource::recent(store, "servicecidrs.networking.k8s.io");
    tasks.spawn(follow(Api::<ServiceCIDR>::all(all.clone()), service_cidrs, strip::service_cidr));
    let slices = core("endpointslices.discovery.k8s.io", Some(NOT_OF_SELECTORS));
    tasks.spawn(follow(Api::<EndpointSlice>::all(all.clone()), slices, strip::endpoint_slice));
    for kind in Kind::ALL {
        let definition = definition(kind);
        let resource = Resource::custom(store, &format!("{}.{}", definition.plural, definition.group));
        let api = Api::<DynamicObject>::all_with(all.clone(), &definition);
        tasks.spawn(follow(api, resource, move |object| strip::ours(kind, object)));
    }
}

/// What the API server calls a kind of ours.
pub(crate) fn definition(kind: Kind) -> ApiResource {
    match kind {
        Kind::MeshConfig => ApiResource::erase::<MeshConfig>(&()),
        Kind::MtlsPolicy => ApiResource::erase::<MtlsPolicy>(&()),
        Kind::AuthorizationPolicy => ApiResource::erase::<AuthorizationPolicy>(&()),
        Kind::IngressPolicy => ApiResource::erase::<IngressPolicy>(&()),
        Kind::EgressPolicy => ApiResource::erase::<EgressPolicy>(&()),
    }
}

async fn first_listing(store: &Store) -> Result<(), NotListed> {
    let mut changes = store.changes();
    let (mut received, mut since, mut told) = (0, Instant::now(), Instant::now());
    loop {
        let progress = store.progress();
        if progress.missing.is_empty() {
            return Ok(());
        }
        if progress.received != received {
            (received, since) = (progress.received, Instant::now());
        }
        if since.elapsed() >= limits::FIRST_LISTING {
            return Err(NotListed { missing: progress.missing });
        }
        if told.elapsed() >= limits::LISTING_TOLD {
            told = Instant::now();
            let missing = progress.missing.join("; ");
            tracing::info!(received, missing, "the cluster is not listed in full yet");
        }
        // Only says when to look again.
        let _ = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await;
    }
}

/// Hands over what is known after every change, many that come together as one.
async fn publish(store: Arc<Store>, mut changes: watch::Receiver<u64>, sender: watch::Sender<Arc<Objects>>) {
    while changes.changed().await.is_ok() {
        tokio::time::sleep(limits::WATCH_COALESCE).await;
        changes.mark_unchanged();
        sender.send_replace(Arc::new(store.objects()));
    }
}

/// Slices that Kubernetes derives from a selector say what pods and Services say, too: they are half of all writes in a
/// cluster, and not asked for. Those of other makers, and hand-written ones, are.
const NOT_OF_SELECTORS: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";

const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
