//! What the injector knows of the mesh: the `MeshConfig`, and the namespaces with their labels and annotations.
//!
//! Both are watched. Until each was seen once, nothing is admitted; afterwards what was seen last holds, also while the
//! API server is away and while the `MeshConfig` has a mistake.

mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use byrnie_api::{MESH_CONFIG_NAME, MeshSettings, Object, labels, parse};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use serde_json::Value;
use tracing::{info, warn};

use crate::inject::{NamespaceFacts, ProxyImage, Settings};
use crate::limits;
use crate::validate::without_status;

/// What is known of the mesh.
pub struct Mesh {
    image: ProxyImage,
    client: Option<Client>,
    config: ArcSwap<Config>,
    namespaces: ArcSwapOption<Namespaces>,
}

type Namespaces = BTreeMap<String, Arc<NamespaceFacts>>;

#[derive(Clone)]
enum Config {
    /// And why.
    NotSeen(String),
    /// Never a good one, and what is wrong.
    Malformed(String),
    Good(Arc<Good>),
}

struct Good {
    mesh: MeshSettings,
    settings: Settings,
}

impl Mesh {
    /// Knows nothing yet. `client` is asked about namespaces; without one, what is not held is not known.
    pub fn new(image: ProxyImage, client: Option<Client>) -> Self {
        let reason = "the API server was not asked for it yet".to_owned();
        Self {
            image,
            client,
            config: ArcSwap::from_pointee(Config::NotSeen(reason)),
            namespaces: ArcSwapOption::empty(),
        }
    }

    /// Follows the API server, until dropped.
    pub async fn follow(self: Arc<Self>, client: Client) {
        tokio::join!(watch::mesh_config(&self, client.clone()), watch::namespaces(&self, client));
    }

    /// How to inject.
    ///
    /// # Errors
    /// One sentence: why it is not known, and what to do.
    pub fn settings(&self) -> Result<Settings, String> {
        self.good().map(|good| good.settings.clone())
    }

    /// What the mesh says.
    ///
    /// # Errors
    /// As [`Self::settings`].
    pub fn mesh_settings(&self) -> Result<MeshSettings, String> {
        self.good().map(|good| good.mesh.clone())
    }

    fn good(&self) -> Result<Arc<Good>, String> {
        match &**self.config.load() {
            Config::Good(good) => Ok(Arc::clone(good)),
            Config::NotSeen(reason) => Err(format!(
                "the injector has not seen the MeshConfig yet: {reason}; try again in some seconds, then look at \
                 `kubectl -n {} logs deploy/{}`",
                labels::SYSTEM_NAMESPACE,
                labels::INJECTOR
            )),
            Config::Malformed(reason) => {
                Err(format!("{reason}; mend it (`kubectl edit meshconfig {MESH_CONFIG_NAME}`)"))
            }
        }
    }

    /// What is held of a namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<NamespaceFacts>> {
        self.namespaces.load().as_ref()?.get(name).cloned()
    }

    /// What the API server says of a namespace now.
    ///
    /// # Errors
    /// One sentence: why it could not be asked.
    pub async fn ask_namespace(&self, name: &str) -> Result<NamespaceFacts, String> {
        let Some(client) = &self.client else {
            let held = self.namespace(name).ok_or_else(|| format!("the namespace {name} is not known"))?;
            return Ok((*held).clone());
        };
        let api: Api<Namespace> = Api::all(client.clone());
        let asked = tokio::time::timeout(limits::NAMESPACE_QUESTION, api.get_metadata(name)).await;
        match asked {
            Ok(Ok(found)) => Ok(facts(found)),
            Ok(Err(error)) => {
                Err(format!("the API server does not tell about the namespace {name}: {error}; try again"))
            }
            Err(_) => Err(format!("the API server did not tell about the namespace {name} in time; try again")),
        }
    }

    /// Why nothing can be admitted yet; empty when all is there.
    pub fn missing(&self) -> Vec<String> {
        let config = self.good().err();
        let namespaces = self.namespaces.load().is_none();
        config
            .into_iter()
            .chain(namespaces.then(|| "the injector has not seen the namespaces yet".to_owned()))
            .collect()
    }

    /// Takes the `MeshConfig` as the API server has it; `None`: there is none, and the defaults hold.
    pub fn set_mesh_config(&self, object: Option<Value>) {
        let settings = match object.map(|object| parse(without_status(object))) {
            None => Ok(MeshSettings::default()),
            Some(Ok(Object::MeshConfig(config))) => config.spec.settings().map_err(|problems| {
                let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
                format!("MeshConfig {MESH_CONFIG_NAME} is refused: {}", words.join("; "))
            }),
            Some(Ok(other)) => Err(format!("expected a MeshConfig, found {other}")),
            Some(Err(error)) => Err(error.to_string()),
        };
        match settings {
            // Only one that was deleted, or never passed the webhook, can say another.
            Ok(mesh) if self.good().is_ok_and(|held| held.mesh.trust_domain != mesh.trust_domain) => {
                warn!(found = %mesh.trust_domain, "another trust domain: what held before stays in force");
            }
            Ok(mesh) => {
                let settings = Settings::new(&mesh, &self.image);
                info!(trust_domain = %mesh.trust_domain, "MeshConfig taken up");
                self.config.store(Arc::new(Config::Good(Arc::new(Good { mesh, settings }))));
            }
            Err(reason) if matches!(**self.config.load(), Config::Good(_)) => {
                warn!(%reason, "what held before stays in force");
            }
            Err(reason) => {
                warn!(%reason, "nothing is admitted until it is mended");
                self.config.store(Arc::new(Config::Malformed(reason)));
            }
        }
    }

    /// Takes all namespaces that there are.
    pub fn set_namespaces(&self, all: impl IntoIterator<Item = NamespaceFacts>) {
        let all = all.into_iter().map(|facts| (facts.name.clone(), Arc::new(facts))).collect();
        self.namespaces.store(Some(Arc::new(all)));
    }

    fn change_namespaces(&self, change: impl Fn(&mut Namespaces)) {
        self.namespaces.rcu(|held| {
            held.as_ref().map(|held| {
                let mut held = Namespaces::clone(held);
                change(&mut held);
                Arc::new(held)
            })
        });
    }

    fn note_trouble(&self, reason: String) {
        if matches!(**self.config.load(), Config::NotSeen(_)) {
            self.config.store(Arc::new(Config::NotSeen(reason)));
        }
    }
}

/// Of a namespace only what is decided by is kept: an annotation of a namespace can be of 256 KiB.
fn facts(found: PartialObjectMeta<Namespace>) -> NamespaceFacts {
    let keep = |all: Option<BTreeMap<String, String>>| {
        let mut all = all.unwrap_or_default();
        all.retain(|key, _| [labels::MESH, labels::OSM_MONITORED_BY, labels::OSM_INJECTION].contains(&key.as_str()));
        all
    };
    NamespaceFacts {
        name: found.metadata.name.unwrap_or_default(),
        labels: keep(found.metadata.labels),
        annotations: keep(found.metadata.annotations),
    }
}
