//! One watch: its events into the store, its failures into words, and again after a while.

use std::{error::Error as _, fmt::Debug, pin::pin, sync::Arc};

use futures::StreamExt;
use kube::{
    Api, Error,
    core::Status,
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use super::{
    store::{About, Slot, Store, Trouble},
    strip::Kept,
};
use crate::limits;

/// What is watched.
pub(super) struct Resource {
    store: Arc<Store>,
    slot: Slot,
    name: String,
    selector: Option<&'static str>,
    origin: Origin,
}

/// Who brings a resource, and so what it means that the API server does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Every Kubernetes that we support.
    Kubernetes,
    /// A Kubernetes later than the oldest that we support.
    LaterKubernetes,
    /// Our installation.
    Byrnie,
}

impl Resource {
    /// One that every API server has.
    pub(super) fn core(store: &Arc<Store>, name: &str, selector: Option<&'static str>) -> Self {
        Self {
            store: store.clone(),
            slot: store.enter(name),
            name: name.to_owned(),
            selector,
            origin: Origin::Kubernetes,
        }
    }

    /// One that older API servers do not have: without it there are none of it, and nothing is wrong.
    pub(super) fn recent(store: &Arc<Store>, name: &str) -> Self {
        Self { origin: Origin::LaterKubernetes, ..Self::core(store, name, None) }
    }

    /// One of ours, by the name of its CustomResourceDefinition.
    pub(super) fn custom(store: &Arc<Store>, name: &str) -> Self {
        Self { origin: Origin::Byrnie, ..Self::core(store, name, None) }
    }

    /// The API server is older than it.
    fn is_unknown(&self, error: &watcher::Error) -> bool {
        let not_found = |error: &Error| matches!(error, Error::Api(status) if status.code == 404);
        self.origin == Origin::LaterKubernetes
            && matches!(error, watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) if not_found(error))
    }

    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default().timeout(limits::WATCH_SECONDS).page_size(limits::LIST_PAGE);
        match self.selector {
            Some(selector) => config.labels(selector),
            None => config,
        }
    }
}

/// Keeps the store level with one resource, for ever. `keep` says what is kept of an object.
pub(super) async fn follow<K>(api: Api<K>, resource: Resource, keep: impl Fn(K) -> Kept)
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut backoff = DefaultBackoff::default();
    loop {
        follow_until_lost(&api, &resource, &keep, &mut backoff).await;
    }
}

/// Returns when the watch can't be resumed where it stands: a new one lists everything again.
async fn follow_until_lost<K>(
    api: &Api<K>,
    resource: &Resource,
    keep: &impl Fn(K) -> Kept,
    backoff: &mut DefaultBackoff,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let Resource { store, slot, .. } = resource;
    let mut events = pin!(watcher(api.clone(), resource.config()));
    let mut failures = 0_u32;
    loop {
        // A watch that was resumed says nothing until something changes: that it does not fail is how one knows.
        let event = if failures == 0 {
            events.next().await
        } else {
            match tokio::time::timeout(limits::WATCH_SETTLED, events.next()).await {
                Ok(event) => event,
                Err(_) => {
                    failures = 0;
                    backoff.reset();
                    store.mended(*slot);
                    continue;
                }
            }
        };
        let error = match event {
            None => return,
            Some(Ok(event)) => {
                // Comes before the API server is asked.
                if !matches!(event, Event::Init) {
                    failures = 0;
                    backoff.reset();
                    store.mended(*slot);
                }
                take(store, *slot, event, keep);
                continue;
            }
            Some(Err(error)) => error,
        };
        if resource.is_unknown(&error) {
            tracing::debug!(resource = resource.name, "this API server has no such resource");
            store.absent(*slot);
            tokio::time::sleep(limits::ABSENT_RESOURCE).await;
            return;
        }
        failures += 1;
        let wait = backoff.next().unwrap_or(limits::WATCH_BACKOFF).min(limits::WATCH_BACKOFF);
        let failure = Failure::of(&error, resource);
        // Watches are cut every now and then, and resumed at once.
        if failure.cut && failures == 1 {
            tracing::debug!(resource = resource.name, reason = failure.message, "a watch was cut");
        } else {
            store.trouble(*slot, Trouble { message: failure.message, about: failure.about });
        }
        tokio::time::sleep(wait).await;
        if failure.lost {
            return;
        }
    }
}

fn take<K>(store: &Store, slot: Slot, event: Event<K>, keep: &impl Fn(K) -> Kept) {
    match event {
        Event::Init => store.begin(slot),
        Event::InitApply(object) => store.listed(slot, keep(object)),
        Event::InitDone => store.complete(slot),
        Event::Apply(object) => store.apply(slot, keep(object)),
        Event::Delete(object) => store.remove(slot, &keep(object).key),
    }
}

/// A failed watch, in words.
struct Failure {
    message: String,
    about: About,
    /// Only the connection: the watch goes on where it was.
    cut: bool,
    /// An event was missed, or its place in history is gone.
    lost: bool,
}

impl Failure {
    fn of(error: &watcher::Error, resource: &Resource) -> Self {
        let name = &resource.name;
        let plain = |message: String| Self { message, about: About::Resource, cut: false, lost: false };
        let away = |error: &Error| {
            let message = format!("the API server can't be reached: {}", chain(error));
            Self { about: About::ApiServer, ..plain(message) }
        };
        let (verb, error) = match error {
            watcher::Error::InitialListFailed(error) => ("list", error),
            watcher::Error::WatchStartFailed(error) => ("watch", error),
            watcher::Error::WatchFailed(error) => {
                if matches!(error, Error::SerdeError(_)) {
                    return Self { lost: true, ..plain(format!("watch of {name}: {}", chain(error))) };
                }
                return Self { cut: true, ..away(error) };
            }
            watcher::Error::WatchError(status) => {
                return Self { cut: true, lost: true, ..plain(format!("watch of {name}: {}", cut(&status.message))) };
            }
            watcher::Error::NoResourceVersion => {
                return Self { lost: true, ..plain(format!("{name}: the API server names no resourceVersion")) };
            }
        };
        match error {
            Error::Api(status) => Self {
                about: if resource.origin == Origin::Byrnie && status.code == 404 {
                    About::Definition
                } else {
                    About::Resource
                },
                lost: status.code == 410,
                ..plain(refused(verb, resource, status))
            },
            Error::SerdeError(_) => plain(format!("{verb} of {name}: {}", chain(error))),
            _ => away(error),
        }
    }
}

fn refused(verb: &str, resource: &Resource, status: &Status) -> String {
    let name = &resource.name;
    match status.code {
        401 => format!(
            "{verb} of {name}: the API server does not accept the credentials: {}; in a cluster they are the pod's \
             ServiceAccount token, elsewhere the kubeconfig's",
            cut(&status.message)
        ),
        403 => format!(
            "{verb} of {name} is forbidden: {}; the role needs the verbs list and watch on it; run `byrnie install`",
            cut(&status.message)
        ),
        404 if resource.origin == Origin::Byrnie => {
            format!(
                "{name}: its CustomResourceDefinition is not installed; run `byrnie install`; it is asked for again"
            )
        }
        404 => format!("{verb} of {name}: the API server has no such resource; expected Kubernetes 1.29 or later"),
        code => format!("{verb} of {name}: the API server answered {code}: {}", cut(&status.message)),
    }
}

/// The error and its causes; that of a connection is the last of several.
fn chain(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !words.contains(&next) {
            words = format!("{words}: {next}");
        }
        cause = error.source();
    }
    cut(&words)
}

/// What an API server says is as long as it likes.
fn cut(words: &str) -> String {
    const LONGEST: usize = 512;
    words.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}
