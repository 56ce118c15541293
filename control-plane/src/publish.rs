//! From a change of the source, or of what was issued, to the proxies.

use std::{collections::HashSet, sync::Arc};

use byrnie_proto::mesh::v1::ObjectStatus;
use tokio::sync::watch;

use crate::{
    journal::Absent,
    limits,
    model::Model,
    plane::Plane,
    source::{Objects, Source},
};

/// Follows the source and the journal for as long as the control plane runs; `published` rises after each time.
pub(crate) async fn run(plane: Arc<Plane>, source: Arc<dyn Source>, published: watch::Sender<u64>) {
    let mut objects = source.objects();
    let mut meshed = plane.journal.meshed_changed();
    let mut pruned = plane.clock.monotonic();
    let mut followed = true;
    loop {
        let mut rebuild = tokio::select! {
            changed = objects.changed(), if followed => {
                followed = changed.is_ok();
                if !followed {
                    tracing::error!("the source is no longer followed: restart the control plane to take up its changes");
                }
                followed
            }
            _ = meshed.changed() => false,
            () = tokio::time::sleep(limits::EXPIRY_CHECK) => false,
        };
        tokio::time::sleep(limits::PUBLISH_COALESCE).await;
        rebuild |= objects.has_changed().unwrap_or(false);
        meshed.mark_unchanged();
        let objects = rebuild.then(|| objects.borrow_and_update().clone());
        let publisher = plane.clone();
        let done = tokio::task::spawn_blocking(move || publish(&publisher, objects.as_deref())).await;
        if let Err(error) = done {
            tracing::error!(%error, "a change could not be published");
        }
        published.send_modify(|count| *count = count.wrapping_add(1));
        if plane.clock.monotonic().saturating_sub(pruned) >= limits::JOURNAL_PRUNE {
            pruned = plane.clock.monotonic();
            prune(&plane).await;
        }
    }
}

/// Answers all subscriptions anew; builds the model before, where the source has changed.
fn publish(plane: &Plane, objects: Option<&Objects>) {
    if let Some(objects) = objects {
        let before = plane.model.load_full();
        let model = Model::build(objects, &before.settings);
        tell(&before, &model);
        plane.model.store(Arc::new(model));
    }
    let view = plane.view();
    let meshed = view.meshed.clone();
    plane.hub.publish(Arc::new(view));
    plane.published.send_replace(meshed);
}

/// Objects that were taken before and are refused now, and the other way round. What can't be read at all was told
/// by the source.
pub(crate) fn tell(before: &Model, now: &Model) {
    let key = |status: &'_ ObjectStatus| (status.object.clone(), status.accepted, status.message.clone());
    let told: HashSet<_> = before.statuses.iter().map(key).collect();
    for status in now.statuses.iter().filter(|status| !told.contains(&key(status))) {
        let (object, file, reason) = (&status.object, &status.file, &status.message);
        if !status.accepted {
            tracing::warn!(object, file, reason, "object refused");
        } else if !reason.is_empty() {
            tracing::info!(object, file, reason, "object taken with a note");
        }
    }
}

async fn prune(plane: &Plane) {
    let model = plane.model.load_full();
    let absent = if plane.reviewer.is_some() { Absent::Forget } else { Absent::Remember };
    if let Err(error) = plane.journal.prune(|uid| model.pod_by_uid(uid).is_some(), absent).await {
        tracing::error!(%error, "the journal can't be pruned");
    }
    if let Err(error) = plane.authority.maintain() {
        tracing::error!(%error, "the issuing intermediate can't be replaced");
    }
    plane.proxies.retain(|uid| model.pod_by_uid(uid).is_some());
    plane.allowances.retain(|uid| model.pod_by_uid(uid).is_some());
}
