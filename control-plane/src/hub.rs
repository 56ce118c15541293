//! Resources and who subscribed to them.
//!
//! Every resource that somebody subscribed to is answered from one [`View`] of the mesh. A new view is published by
//! answering all of them anew; those whose bytes differ get the next version and wake their subscribers, and nobody
//! else. The bytes of a resource are made once and shared by all who get it.

mod session;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use byrnie_proto::mesh::v1::{Resource, resource::Body};
use bytes::Bytes;
use prost::{Message, encoding};

use self::session::Inbox;
pub use self::session::Session;

/// Answers every name; a pure function of what it holds.
pub trait View: Send + Sync + 'static {
    /// Whether the answer depends on who asks.
    fn is_personal(&self, name: &str) -> bool;
    /// The answer for the pod with this UID. An unknown name has an answer, too: [`Body::Error`].
    fn answer(&self, name: &str, viewer: &Arc<str>) -> Body;
}

/// All subscriptions of this control plane.
pub struct Hub {
    state: Mutex<State>,
    sessions: AtomicU64,
}

struct State {
    view: Arc<dyn View>,
    resources: HashMap<Arc<str>, Subscribed>,
    version: u64,
}

struct Subscribed {
    subscribers: HashMap<u64, Arc<Inbox>>,
    /// By viewer for personal answers, else by the empty name.
    answers: HashMap<Arc<str>, Answer>,
}

#[derive(Clone)]
struct Answer {
    /// The encoded resource with version 0, to tell a change by.
    content: Bytes,
    /// One `WatchResponse.resources` field, ready to be put behind others.
    field: Bytes,
}

impl Hub {
    /// A hub without subscribers. Versions begin at the present time in milliseconds, so that they rise across
    /// restarts, too.
    pub fn new(view: Arc<dyn View>, now: SystemTime) -> Arc<Self> {
        let millis = now.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis());
        let version = u64::try_from(millis).unwrap_or(1);
        let state = State { view, resources: HashMap::new(), version };
        Arc::new(Self { state: Mutex::new(state), sessions: AtomicU64::new(0) })
    }

    /// Opens a session for the pod with this UID; it ends when dropped.
    pub fn join(self: &Arc<Self>, viewer: Arc<str>) -> Session {
        let id = self.sessions.fetch_add(1, Ordering::Relaxed);
        Session::new(self.clone(), id, viewer)
    }

    /// Answers all resources from `view`. Takes as long as there are resources: not for a thread that serves others.
    pub fn publish(&self, view: Arc<dyn View>) {
        let mut state = self.lock();
        let State { view: current, resources, version } = &mut *state;
        *current = view;
        for (name, subscribed) in resources.iter_mut() {
            subscribed.refresh(&**current, name, version);
        }
    }

    /// Resources that somebody subscribed to.
    pub fn resources(&self) -> usize {
        self.lock().resources.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside leaves old answers, never half ones.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribe(&self, name: &Arc<str>, inbox: &Arc<Inbox>) {
        let mut state = self.lock();
        let State { view, resources, version } = &mut *state;
        let subscribed = resources
            .entry(name.clone())
            .or_insert_with(|| Subscribed { subscribers: HashMap::new(), answers: HashMap::new() });
        subscribed.subscribers.insert(inbox.id, inbox.clone());
        let key = answer_key(&**view, name, &inbox.viewer);
        subscribed
            .answers
            .entry(key)
            .or_insert_with(|| Answer::of(content(name, view.answer(name, &inbox.viewer)), version));
    }

    fn unsubscribe(&self, name: &str, inbox: &Inbox) {
        let mut state = self.lock();
        let Some(subscribed) = state.resources.get_mut(name) else {
            return;
        };
        subscribed.subscribers.remove(&inbox.id);
        if !subscribed.subscribers.values().any(|other| other.viewer == inbox.viewer) {
            subscribed.answers.remove(&inbox.viewer);
        }
        if subscribed.subscribers.is_empty() {
            state.resources.remove(name);
        }
    }

    /// The current answers to `names`, as far as they are subscribed to.
    fn fetch(&self, names: &[Arc<str>], viewer: &Arc<str>) -> Vec<Bytes> {
        let state = self.lock();
        let shared = shared();
        let answers = names.iter().filter_map(|name| {
            let answers = &state.resources.get(name)?.answers;
            answers.get(viewer).or_else(|| answers.get(&shared))
        });
        answers.map(|answer| answer.field.clone()).collect()
    }
}

impl Subscribed {
    fn refresh(&mut self, view: &dyn View, name: &Arc<str>, version: &mut u64) {
        let personal = view.is_personal(name);
        let shared = shared();
        // A Service may grow beyond the subset's size, or shrink below it.
        self.answers.retain(|key, _| (*key == shared) != personal);
        let mut fresh: HashMap<Arc<str>, bool> = HashMap::new();
        for inbox in self.subscribers.values() {
            let key = if personal { inbox.viewer.clone() } else { shared.clone() };
            let changed = match fresh.get(&key) {
                Some(changed) => *changed,
                None => {
                    let changed = self.answers.get(&key).map(|answer| answer.content.clone());
                    let body = view.answer(name, &inbox.viewer);
                    let content = content(name, body);
                    let changed = changed.is_none_or(|before| before != content);
                    if changed {
                        self.answers.insert(key.clone(), Answer::of(content, version));
                    }
                    fresh.insert(key, changed);
                    changed
                }
            };
            if changed {
                inbox.mark(name);
            }
        }
    }
}

impl Answer {
    /// Protobuf fields may stand in any order: the version goes behind the rest (Protocol Buffers, "Encoding").
    fn of(content: Bytes, version: &mut u64) -> Self {
        *version = version.wrapping_add(1);
        let behind = Resource { version: *version, ..Resource::default() }.encode_to_vec();
        let length = content.len() + behind.len();
        let mut field = Vec::with_capacity(length + 8);
        encoding::encode_key(RESOURCES_TAG, encoding::WireType::LengthDelimited, &mut field);
        encoding::encode_varint(length as u64, &mut field);
        field.extend_from_slice(&content);
        field.extend_from_slice(&behind);
        Self { content, field: field.into() }
    }
}

/// `WatchResponse.resources`.
const RESOURCES_TAG: u32 = 1;

fn content(name: &str, body: Body) -> Bytes {
    Resource { name: name.to_owned(), version: 0, body: Some(body) }.encode_to_vec().into()
}

fn answer_key(view: &dyn View, name: &str, viewer: &Arc<str>) -> Arc<str> {
    if view.is_personal(name) { viewer.clone() } else { shared() }
}

fn shared() -> Arc<str> {
    Arc::from("")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
