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
    each(events, mesh, "MeshConfigs", |event| match event {
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
    each(events, mesh, "Namespaces", |event| match event {
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
    mesh: &Mesh,
    what: &str,
    mut take: impl FnMut(Event<K>),
) {
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => take(event),
            Err(error) => {
                let hint = if is_unknown_resource(&error) {
                    "; the custom resources of byrnie.dev are not installed (`byrnie install`)"
                } else {
                    ""
                };
                warn!(%error, "{what} can't be watched; what was seen last holds{hint}");
                mesh.note_trouble(format!("{what} can't be watched: {error}{hint}"));
            }
        }
    }
}

fn is_unknown_resource(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == 404
}
