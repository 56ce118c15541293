//! The trust bundle, as ConfigMap `byrnie-trust-bundle` in every namespace whose pods mount it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use byrnie_api::labels::{BUNDLE_CONFIG_MAP, BUNDLE_KEY, CA_SECRET, SYSTEM_NAMESPACE};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, Preconditions},
};
use serde_json::json;

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
        Self { client, present: BTreeMap::new(), compared: None }
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

impl Writer for Bundles {
    const WHAT: &'static str = "trust bundles";
    const EVERY: Duration = limits::COMPARED;

    async fn pass(&mut self, plane: &Plane) -> Failures {
        let mut failures = Failures::default();
        let bundle = plane.authority.bundle().to_pem();
        let now = plane.clock.boot();
        if self.compared.is_none_or(|compared| now.saturating_sub(compared) >= limits::COMPARED) {
            if let Err(reason) = self.compare(&bundle).await {
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
