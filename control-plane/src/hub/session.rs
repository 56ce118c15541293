//! One subscriber: what it asked for, and what has changed of it since it was last told.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use byrnie_proto::mesh::v1::resource::Body;
use bytes::Bytes;
use tokio::sync::Notify;

use super::Hub;
use crate::limits;

/// A subscriber. Changes of one resource that come faster than they are taken become one.
pub struct Session {
    hub: Arc<Hub>,
    inbox: Arc<Inbox>,
    names: Mutex<HashSet<Arc<str>>>,
}

/// What the hub marks.
pub(super) struct Inbox {
    pub(super) id: u64,
    pub(super) viewer: Arc<str>,
    changed: Mutex<BTreeSet<Arc<str>>>,
    /// Answers to names that could not be subscribed to.
    refused: Mutex<Vec<Bytes>>,
    wake: Notify,
}

/// A subscription beyond the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this proxy already subscribes to {} resources, which is the bound; unsubscribe from unused ones",
    limits::SUBSCRIPTIONS
)]
pub struct TooManySubscriptions;

impl Session {
    pub(super) fn new(hub: Arc<Hub>, id: u64, viewer: Arc<str>) -> Self {
        let inbox = Inbox { id, viewer, changed: Mutex::default(), refused: Mutex::default(), wake: Notify::new() };
        Self { hub, inbox: Arc::new(inbox), names: Mutex::default() }
    }

    /// Subscribes; the present answer comes first, also to who had subscribed before.
    ///
    /// # Errors
    /// `TooManySubscriptions`.
    pub fn subscribe(&self, name: &str) -> Result<(), TooManySubscriptions> {
        let mut names = self.names();
        if names.len() >= limits::SUBSCRIPTIONS && !names.contains(name) {
            return Err(TooManySubscriptions);
        }
        let name: Arc<str> = name.into();
        self.hub.subscribe(&name, &self.inbox);
        self.inbox.mark(&name);
        names.insert(name);
        Ok(())
    }

    /// Ends a subscription; unknown names are fine.
    pub fn unsubscribe(&self, name: &str) {
        if self.names().remove(name) {
            self.hub.unsubscribe(name, &self.inbox);
        }
    }

    /// Answers a name with an error, without a subscription. Whoever does not read gets no more of them than fit
    /// into one response.
    pub fn refuse(&self, name: &str, reason: String) {
        let mut refused = self.inbox.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < limits::RESOURCES_PER_RESPONSE {
            refused.push(super::Answer::of(super::content(name, Body::Error(reason)), &mut 0).field);
        }
        self.inbox.wake.notify_one();
    }

    /// Waits for changes, and gives them as `WatchResponse.resources` fields, a bounded number at once.
    /// Cancel safe: what was not returned comes again.
    pub async fn next(&self) -> Vec<Bytes> {
        loop {
            let woken = self.inbox.wake.notified();
            let names = self.inbox.take();
            let mut fields = std::mem::take(&mut *self.inbox.refused.lock().unwrap_or_else(PoisonError::into_inner));
            fields.extend(self.hub.fetch(&names, &self.inbox.viewer));
            if !fields.is_empty() {
                return fields;
            }
            if names.is_empty() {
                woken.await;
            }
        }
    }

    fn names(&self) -> MutexGuard<'_, HashSet<Arc<str>>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for name in self.names().iter() {
            self.hub.unsubscribe(name, &self.inbox);
        }
    }
}

impl Inbox {
    pub(super) fn mark(&self, name: &Arc<str>) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<Arc<str>> {
        let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut names = Vec::new();
        while names.len() < limits::RESOURCES_PER_RESPONSE
            && let Some(name) = changed.pop_first()
        {
            names.push(name);
        }
        names
    }
}
