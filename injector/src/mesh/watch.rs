//! The two watches on the API server. Both begin anew by themselves after an error, with a growing pause.

use byrnie_api::{GROUP, MESH_CONFIG_NAME, VERSION};
use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tracing::warn;

use super::{Mesh, facts};

/// Follows the `MeshConfig`. It is read as it is, and not as our type: a field that is not known must be told by name.
pub(super) async fn mesh_config(mesh: &Mesh, client: Client) {
    let kind = GroupVersionKind::gvk(GROUP, VERSION, "MeshConfig");
    let resource = ApiResource::from_gvk_with_plural(&kind, "meshconfigs");
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let only = watcher::Config::default().fields(&format!("metadata.name={MESH_CONFIG_NAME}"));
    let mut listed = None;
    let events = kube::runtime::watcher(api, only).default_backoff();
    let trouble = |reason| mesh.note_trouble(reason);
    each(events, "MeshConfigs", trouble, |event| match event {
        Event::Init => listed = None,
        Event::InitApply(object) => listed = serde_json::to_value(object).ok(),
        Event::InitDone => mesh.set_mesh_config(listed.take()),
        Event::Apply(object) => mesh.set_mesh_config(serde_json::to_value(object).ok()),
        Event::Delete(_) => mesh.set_mesh_config(None),
    })
    .await;
}

/// Follows the namespaces, their metadata only.
pub(super) async fn namespaces(mesh: &Mesh, client: Client) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let mut listed = Vec::new();
    let events = kube::runtime::watcher(api, watcher::Config::default()).default_backoff();
    // What is missing of them is asked for one by one.
    let trouble = |_| {};
    each(events, "Namespaces", trouble, |event| match event {
        Event::Init => listed.clear(),
        Event::InitApply(found) => listed.push(facts(found)),
        Event::InitDone => mesh.set_namespaces(std::mem::take(&mut listed)),
        Event::Apply(found) => {
            let found = std::sync::Arc::new(facts(found));
            mesh.change_namespaces(|all| {
                all.insert(found.name.clone(), std::sync::Arc::clone(&found));
            });
        }
        Event::Delete(found) => {
            let name = facts(found).name;
            mesh.change_namespaces(|all| {
                all.remove(&name);
            });
        }
    })
    .await;
}

async fn each<K>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    what: &str,
    trouble: impl Fn(String),
    mut take: impl FnMut(Event<K>),
) {
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => take(event),
            Err(error) => {
                let reason = in_words(&error);
                warn!("{what} can't be watched; what was seen last holds: {reason}");
                trouble(format!("{what} can't be watched: {reason}"));
            }
        }
    }
}

/// The API server's own words, where it has said some.
fn in_words(error: &watcher::Error) -> String {
    use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};
    let status = match error {
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => status,
        WatchFailed(kube::Error::Api(status)) | WatchError(status) => status,
        other => return other.to_string(),
    };
    let hint = match status.code {
        404 => "; the custom resources of byrnie.dev are not installed (`byrnie install`)",
        401 | 403 => "; the injector's ServiceAccount may not (`byrnie install` restores its ClusterRole)",
        _ => "",
    };
    format!("{} ({}){hint}", status.message, status.code)
}
