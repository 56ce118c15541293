//! What is known of the cluster, per watch.
//!
//! A listing, the first or a later one, takes the place of what was there when it is complete. Where the API server can't
//! be reached, what was known stays.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::strip::Kept;
use crate::source::{KUBERNETES, MeshedBy, ObjectKey, Objects, Problem, Stored};

/// Shared by all watches.
pub(super) struct Store {
    state: Mutex<Vec<Held>>,
    changes: watch::Sender<u64>,
    origin: Arc<str>,
}

/// One watch's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// How far the first listing is.
pub(super) struct Progress {
    /// Resources that are not listed in full, with the reason where there is one.
    pub(super) missing: Vec<String>,
    /// Objects received so far.
    pub(super) received: u64,
}

struct Held {
    resource: String,
    known: Known,
    /// A listing under way.
    listing: Option<Known>,
    /// There was a complete one.
    complete: bool,
    received: u64,
    trouble: Option<Trouble>,
}

type Known = BTreeMap<Arc<ObjectKey>, Entry>;

/// Why a watch fails.
pub(super) struct Trouble {
    pub(super) message: String,
    pub(super) about: About,
}

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// This resource.
    Resource,
    /// Its CustomResourceDefinition, which is not installed: there can be no objects of it.
    Definition,
    /// The API server as a whole, and so every resource.
    ApiServer,
}

#[derive(PartialEq)]
struct Entry {
    uid: Option<String>,
    generation: Option<i64>,
    /// The object, its last good version, or what stands in for it.
    stored: Option<Stored>,
    /// It stands in for an object that nobody could read.
    stand_in: bool,
    problem: Option<Problem>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0), origin: Arc::from(KUBERNETES) }
    }

    /// A place for the objects of one resource.
    pub(super) fn enter(&self, resource: &str) -> Slot {
        let mut state = self.lock();
        state.push(Held {
            resource: resource.to_owned(),
            known: Known::new(),
            listing: None,
            complete: false,
            received: 0,
            trouble: None,
        });
        Slot(state.len() - 1)
    }

    /// Rises with every change of what [`Store::objects`] and [`Store::progress`] say.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A listing begins; one that was under way is void.
    pub(super) fn begin(&self, slot: Slot) {
        self.with(slot, |held| {
            held.listing = Some(Known::new());
            false
        });
    }

    /// An object of the listing.
    pub(super) fn listed(&self, slot: Slot, kept: Kept) {
        self.with(slot, |held| {
            held.received += 1;
            let earlier = held.known.get(&kept.key);
            let (key, entry) = Entry::settle(kept, earlier, &self.origin);
            held.listing.get_or_insert_default().insert(key, entry);
            false
        });
    }

    /// The listing is complete: what is not in it is gone.
    pub(super) fn complete(&self, slot: Slot) {
        self.with(slot, |held| {
            let Some(listing) = held.listing.take() else {
                return false;
            };
            let changed = !held.complete || held.known != listing;
            held.complete = true;
            held.known = listing;
            changed
        });
    }

    /// An object is new or has changed.
    pub(super) fn apply(&self, slot: Slot, kept: Kept) {
        self.with(slot, |held| {
            held.received += 1;
            let earlier = held.known.get(&kept.key);
            let (key, entry) = Entry::settle(kept, earlier, &self.origin);
            // Most writes are of what is not kept: heartbeats, annotations of others.
            if earlier == Some(&entry) {
                return false;
            }
            held.known.insert(key, entry);
            true
        });
    }

    /// An object is gone.
    pub(super) fn remove(&self, slot: Slot, key: &ObjectKey) {
        self.with(slot, |held| held.known.remove(key).is_some());
    }

    /// The watch fails. What has no definition has no objects: that is a complete listing, where there was none before.
    pub(super) fn trouble(&self, slot: Slot, trouble: Trouble) {
        let known = self.lock().iter().any(|held| held.has(&trouble.message));
        if !known {
            tracing::warn!(reason = trouble.message, "the API server can't be followed");
        }
        self.with(slot, |held| {
            held.complete |= trouble.about == About::Definition;
            let changed = !held.has(&trouble.message);
            held.trouble = Some(trouble);
            changed
        });
    }

    /// The API server has no such resource: a complete listing of nothing, where there was none before.
    pub(super) fn absent(&self, slot: Slot) {
        self.with(slot, |held| {
            held.listing = None;
            held.trouble = None;
            !std::mem::replace(&mut held.complete, true)
        });
    }

    /// The watch works again.
    pub(super) fn mended(&self, slot: Slot) {
        self.with(slot, |held| {
            let mended = held.trouble.take().is_some();
            if mended {
                tracing::info!(resource = held.resource, "followed again");
            }
            mended
        });
    }

    /// How far the first listing is.
    pub(super) fn progress(&self) -> Progress {
        let state = self.lock();
        let mut missing: Vec<String> = Vec::new();
        for held in state.iter().filter(|held| !held.complete) {
            let words = held.trouble.as_ref().map_or(&held.resource, |trouble| &trouble.message);
            if !missing.contains(words) {
                missing.push(words.clone());
            }
        }
        Progress { missing, received: state.iter().map(|held| held.received).sum() }
    }

    /// Everything that is known.
    pub(super) fn objects(&self) -> Objects {
        let state = self.lock();
        let mut objects = Objects { meshed_by: MeshedBy::Sidecar, ..Objects::default() };
        for held in state.iter() {
            let problem = held.trouble.as_ref().map(|trouble| self.problem(held, trouble));
            objects.problems.extend(problem.filter(|problem| !objects.problems.contains(problem)));
            for (key, entry) in &held.known {
                objects.problems.extend(entry.problem.clone());
                if let Some(stored) = &entry.stored {
                    objects.items.insert(key.clone(), stored.clone());
                }
                if let Some(generation) = entry.generation {
                    objects.generations.insert(key.clone(), generation);
                }
            }
        }
        objects
    }

    fn problem(&self, held: &Held, trouble: &Trouble) -> Problem {
        let (kind, name) = match trouble.about {
            About::Resource => ("APIResource", held.resource.as_str()),
            About::Definition => ("CustomResourceDefinition", held.resource.as_str()),
            About::ApiServer => ("APIServer", KUBERNETES),
        };
        let key = ObjectKey { kind: kind.to_owned(), namespace: String::new(), name: name.to_owned() };
        let rest = if trouble.about == About::Definition { "" } else { "; what was known stays in force" };
        Problem { file: self.origin.clone(), line: 0, object: Some(key), message: format!("{}{rest}", trouble.message) }
    }

    fn with(&self, slot: Slot, change: impl FnOnce(&mut Held) -> bool) {
        let changed = self.lock().get_mut(slot.0).is_some_and(change);
        if changed {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        // Every change is one insertion, removal or exchange: a panic elsewhere can't leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn has(&self, message: &str) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.message == message)
    }
}

impl Entry {
    /// What holds of an object: itself; where it is refused, its last good version; where there is none, what stands in
    /// for it.
    fn settle(kept: Kept, earlier: Option<&Self>, origin: &Arc<str>) -> (Arc<ObjectKey>, Self) {
        let Kept { key, uid, generation, object } = kept;
        let store = |object| Stored { object: Arc::new(object), file: origin.clone(), line: 0 };
        let entry = match object {
            Ok(object) => Self { uid, generation, stored: Some(store(object)), stand_in: false, problem: None },
            Err(refused) => {
                // Of another UID is another object, whatever its name.
                let good = earlier.filter(|earlier| earlier.uid == uid && !earlier.stand_in);
                let good = good.and_then(|earlier| earlier.stored.clone());
                let rest = if good.is_some() { "; its last good version stays in force" } else { "" };
                let problem = Problem {
                    file: origin.clone(),
                    line: 0,
                    object: Some(key.clone()),
                    message: format!("{}{rest}", refused.message),
                };
                let stand_in = good.is_none();
                let stored = good.or_else(|| refused.stand_in.map(store));
                Self { uid, generation, stored, stand_in, problem: Some(problem) }
            }
        };
        entry.tell(&key, earlier);
        (Arc::new(key), entry)
    }

    fn tell(&self, key: &ObjectKey, earlier: Option<&Self>) {
        let before = earlier.and_then(|earlier| earlier.problem.as_ref());
        match &self.problem {
            Some(problem) if before != Some(problem) => {
                tracing::error!(object = %key, reason = problem.message, "source refused");
            }
            None if before.is_some() => tracing::info!(object = %key, "source accepted again"),
            _ => {}
        }
    }
}
