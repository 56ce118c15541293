//! What is written once for the whole mesh, and what every replica writes of its own.

use std::{future::Future, sync::Arc};

use tokio::{sync::watch, task::JoinSet};

use super::{
    bundles::Bundles,
    client::Cluster,
    conditions::Conditions,
    ingress::IngressSecrets,
    lease::{Term, stand},
    notices::{self, Unmeshed},
    webhook::WebhookCertificate,
    writer::keep,
};
use crate::plane::Plane;

/// Writes what is this replica's to write, until `end`; then gives the Lease back.
pub(crate) async fn write(
    cluster: Cluster,
    plane: Arc<Plane>,
    changed: watch::Receiver<u64>,
    end: impl Future<Output = ()>,
) {
    let begin = |term: Arc<Term>| {
        let mut tasks = JoinSet::new();
        let (client, clock) = (&cluster.client, &plane.clock);
        let with = || (plane.clone(), term.clone(), changed.clone());
        let (shared, held, mesh) = with();
        let (sender, news) = watch::channel(0);
        let bundles = Bundles::new(client.clone());
        tasks.spawn(bundles.lookout().keep(mesh, sender));
        tasks.spawn(keep(bundles, shared, held, news));
        let (shared, held, news) = with();
        tasks.spawn(keep(WebhookCertificate::new(client.clone()), shared, held, news));
        let (shared, held, news) = with();
        tasks.spawn(keep(IngressSecrets::new(client.clone()), shared, held, news));
        let (shared, held, news) = with();
        tasks.spawn(keep(Conditions::new(&cluster, clock.clone()), shared, held, news));
        let (shared, held, news) = with();
        tasks.spawn(keep(Unmeshed::new(&cluster, clock.clone()), shared, held, news));
        tasks
    };
    let mut proxies = JoinSet::new();
    proxies.spawn(notices::tell_of_proxies(cluster.clone(), plane.clone()));
    stand(cluster.clone(), end, begin).await;
}
