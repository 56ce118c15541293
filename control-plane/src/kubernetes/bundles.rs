//! The trust bundle, as ConfigMap `byrnie-trust-bundle` in every namespace whose pods mount it.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use byrnie_api::labels::{BUNDLE_CONFIG_MAP, BUNDLE_KEY, CA_SECRET, SYSTEM_NAMESPACE};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, Preconditions},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use serde_json::json;
use tokio::sync::watch;

use super::{
    apply, ca,
    client::{ApiError, call},
    is_managed, managed,
    writer::{Failures, Writer},
};
use crate::{limits, model::Model, plane::Plane};

/// Writes the ConfigMaps, and removes those that nobody mounts any more.
pub(super) struct Bundles {
    client: Client,
    /// By namespace, as far as they are known to be there; compared from time to time with what is.
    present: BTreeMap<String, Present>,
    compared: Option<Duration>,
    touched: Arc<AtomicBool>,
}

/// Says when somebody has touched one of the ConfigMaps: they come back at once, and not at the next comparison.
pub(super) struct Lookout {
    client: Client,
    touched: Arc<AtomicBool>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Present {
    /// It says what it should.
    good: bool,
    /// We have made it: only such ones are removed.
    ours: bool,
    uid: Option<String>,
    version: Option<String>,
}

impl Bundles {
    pub(super) fn new(client: Client) -> Self {
        Self { client, present: BTreeMap::new(), compared: None, touched: Arc::default() }
    }

    /// What looks out for it; somebody has to run [`Lookout::keep`].
    pub(super) fn lookout(&self) -> Lookout {
        Lookout { client: self.client.clone(), touched: self.touched.clone() }
    }

    /// Reads all of them, and whether the root that they are to say is still the mesh's.
    async fn compare(&mut self, bundle: &str) -> Result<(), String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let mut secret = call(secrets.get(CA_SECRET)).await.map_err(|error| format!("the root: {error}"))?;
        let stored = secret.data.as_ref().and_then(|data| data.get(ca::CERTIFICATE)).map(|bytes| bytes.0.clone());
        ca::wipe(&mut secret);
        if stored.as_deref().map(<[u8]>::trim_ascii) != Some(bundle.as_bytes().trim_ascii()) {
            return Err(format!(
                "expected the root that this replica issues under in Secret {SYSTEM_NAMESPACE}/{CA_SECRET}, found \
                 another; restore that Secret, or restart all replicas of the control plane to take the new one \
                 (every workload then needs a new identity)"
            ));
        }
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let mut page =
            ListParams::default().fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}")).limit(limits::LIST_PAGE);
        let mut present = BTreeMap::new();
        loop {
            let list = call(maps.list(&page)).await.map_err(|error| error.to_string())?;
            for map in list.items {
                if let Some(namespace) = map.namespace() {
                    present.insert(namespace, Present::read(&map, bundle));
                }
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        self.present = present;
        Ok(())
    }

    async fn write(&self, namespace: &str, bundle: &str) -> Result<Present, ApiError> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": BUNDLE_CONFIG_MAP, "namespace": namespace, "labels": managed()},
            "data": {BUNDLE_KEY: bundle},
        });
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let written = call(maps.patch(BUNDLE_CONFIG_MAP, &apply(), &Patch::Apply(&map))).await?;
        tracing::info!(namespace, "trust bundle written");
        Ok(Present::read(&written, bundle))
    }

    async fn remove(&self, namespace: &str, present: &Present) -> Result<(), ApiError> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let unchanged = Preconditions { uid: present.uid.clone(), resource_version: present.version.clone() };
        match call(maps.delete(BUNDLE_CONFIG_MAP, &DeleteParams::default().preconditions(unchanged))).await {
            Ok(_) => {
                tracing::info!(namespace, "trust bundle removed: nobody of the namespace is in the mesh any more");
                Ok(())
            }
            Err(error) if error.code() == Some(404) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Lookout {
    /// Follows the ConfigMaps, for ever, and the mesh besides: `news` rises with both.
    pub(super) async fn keep(self, mut mesh: watch::Receiver<u64>, news: watch::Sender<u64>) {
        let maps: Api<PartialObjectMeta<ConfigMap>> = Api::all(self.client);
        let only_ours = watcher::Config::default()
            .fields(&format!("metadata.name={BUNDLE_CONFIG_MAP}"))
            .timeout(limits::WATCH_SECONDS)
            .page_size(limits::LIST_PAGE);
        let mut events = pin!(watcher(maps, only_ours).backoff(DefaultBackoff::default()));
        loop {
            tokio::select! {
                changed = mesh.changed() => if changed.is_err() { return },
                event = events.next() => match event {
                    // What is there at the beginning was compared by then.
                    Some(Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone)) => {
                        self.touched.store(true, Ordering::Relaxed);
                    }
                    Some(Ok(Event::Init | Event::InitApply(_))) => continue,
                    // They are compared from time to time anyway.
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the trust bundles are not watched");
                        continue;
                    }
                    None => return,
                },
            }
            news.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

impl Writer for Bundles {
    const WHAT: &'static str = "trust bundles";
    const EVERY: Duration = limits::COMPARED;

    async fn pass(&mut self, plane: &Plane) -> Failures {
        let mut failures = Failures::default();
        let bundle = plane.authority.bundle().to_pem();
        let now = plane.clock.boot();
        let touched = self.touched.swap(false, Ordering::Relaxed);
        if touched || self.compared.is_none_or(|compared| now.saturating_sub(compared) >= limits::COMPARED) {
            if let Err(reason) = self.compare(&bundle).await {
                self.compared = None;
                failures.add(format!("ConfigMaps {BUNDLE_CONFIG_MAP}"), reason);
                return failures;
            }
            self.compared = Some(now);
        }
        let wanted = wanted(&plane.model.load());
        for namespace in &wanted {
            if self.present.get(namespace).is_some_and(|present| present.good) {
                continue;
            }
            let object = format!("ConfigMap {namespace}/{BUNDLE_CONFIG_MAP}");
            match self.write(namespace, &bundle).await {
                Ok(present) => drop(self.present.insert(namespace.clone(), present)),
                // Its other objects go, too, and it is no longer shown soon.
                Err(error) if error.is_of_ending_namespace() => {}
                Err(error) => failures.add(object, error),
            }
        }
        let unwanted = self.present.iter().filter(|(namespace, present)| present.ours && !wanted.contains(*namespace));
        let unwanted: Vec<_> = unwanted.map(|(namespace, present)| (namespace.clone(), present.clone())).collect();
        for (namespace, present) in unwanted {
            let removed = self.remove(&namespace, &present).await;
            let conflict = removed.as_ref().is_err_and(|error| error.code() == Some(409));
            if failures.keep(format!("ConfigMap {namespace}/{BUNDLE_CONFIG_MAP}"), removed).is_some() {
                self.present.remove(&namespace);
            } else if conflict {
                // It changed meanwhile: read before the next try.
                self.compared = None;
            }
        }
        failures
    }
}

impl Present {
    fn read(map: &ConfigMap, bundle: &str) -> Self {
        let text = map.data.as_ref().and_then(|data| data.get(BUNDLE_KEY));
        let ours = is_managed(&map.metadata);
        Self {
            good: ours && text.is_some_and(|text| text == bundle),
            ours,
            uid: map.uid(),
            version: map.resource_version(),
        }
    }
}

/// Enrolled namespaces, and those where pods with proxies still run.
fn wanted(model: &Model) -> BTreeSet<String> {
    let with_proxies = model.pods().filter(|pod| pod.injected && !pod.finished).map(|pod| pod.namespace.to_string());
    model.enrolled.iter().cloned().chain(with_proxies).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::Mutex;

    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde_json::Value;

    use super::{
        super::testing::{Answer, Asked, fake, plane},
        *,
    };

    fn namespace(name: &str, enrolled: bool) -> Value {
        let labels = if enrolled { json!({"byrnie.dev/mesh": "enabled"}) } else { json!({}) };
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    }

    fn map(namespace: &str, text: &str, managed: bool) -> Value {
        let labels = if managed { json!({"app.kubernetes.io/managed-by": "byrnie"}) } else { json!({}) };
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"bundle.pem": text},
            "metadata": {"name": BUNDLE_CONFIG_MAP, "namespace": namespace, "uid": "u", "resourceVersion": "5", "labels": labels}})
    }

    /// An API server with the root of `plane` and these ConfigMaps; `refuse` says for which paths it says no.
    fn server(plane: &Plane, maps: Vec<Value>, refuse: &'static str) -> (Bundles, Arc<Mutex<Vec<Asked>>>) {
        let root = BASE64_STANDARD.encode(plane.authority.bundle().to_pem());
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": CA_SECRET}, "data": {"root.crt": root}});
        let (client, seen) = fake(move |asked| match asked.method.as_str() {
            "GET" if asked.path.ends_with("/secrets/byrnie-ca") => Answer::json(200, &secret),
            "GET" => Answer::list("ConfigMapList", &maps),
            _ if !refuse.is_empty() && asked.path.contains(refuse) => Answer::status(403, "Forbidden"),
            "DELETE" => Answer::json(200, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
            _ => Answer::json(200, &asked.json()),
        });
        (Bundles::new(client), seen)
    }

    fn writes(seen: &Arc<Mutex<Vec<Asked>>>) -> Vec<String> {
        let seen = seen.lock().unwrap();
        let writes = seen.iter().filter(|asked| asked.method != "GET");
        writes.map(|asked| format!("{} {}", asked.method, asked.path.split('/').nth(4).unwrap())).collect()
    }

    #[tokio::test]
    async fn every_enrolled_namespace_has_the_bundle_and_one_that_has_left_the_mesh_loses_it() {
        let home = tempfile::tempdir().unwrap();
        let plane = plane(home.path(), &[namespace("shop", true), namespace("bank", true), namespace("left", false)]);
        let bundle = plane.authority.bundle().to_pem();
        let maps = vec![map("bank", &bundle, true), map("left", &bundle, true), map("theirs", "x", false)];
        let (mut bundles, seen) = server(&plane, maps, "");
        assert!(bundles.pass(&plane).await.is_empty());
        assert_eq!(writes(&seen), ["PATCH shop", "DELETE left"]);
        let delete = seen.lock().unwrap().last().unwrap().json();
        assert_eq!(delete["preconditions"], json!({"uid": "u", "resourceVersion": "5"}));
        // Nothing is written that is there.
        assert!(bundles.pass(&plane).await.is_empty());
        assert_eq!(writes(&seen).len(), 2);
    }

    #[tokio::test]
    async fn one_namespace_that_takes_no_bundle_does_not_keep_others_from_theirs() {
        let home = tempfile::tempdir().unwrap();
        let plane = plane(home.path(), &[namespace("closed", true), namespace("shop", true)]);
        let (mut bundles, seen) = server(&plane, vec![map("shop", "forged", true)], "/closed/");
        let failures = bundles.pass(&plane).await;
        let told = failures.all();
        assert!(told.len() == 1 && told[0].starts_with("ConfigMap closed/byrnie-trust-bundle: "), "{told:?}");
        assert_eq!(writes(&seen), ["PATCH closed", "PATCH shop"]);
    }

    #[tokio::test]
    async fn nothing_is_written_while_the_secret_holds_another_root() {
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (plane(home.path(), &[namespace("shop", true)]), plane(other.path(), &[]));
        let (mut bundles, seen) = server(&theirs, Vec::new(), "");
        let failures = bundles.pass(&ours).await;
        assert!(failures.all()[0].contains("byrnie-system/byrnie-ca"), "{failures:?}");
        assert!(writes(&seen).is_empty());
    }
}
