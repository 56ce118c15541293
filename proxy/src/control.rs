//! What the control plane says of this pod, and the stream over which it says it: one `Mesh.Watch` per proxy, opened
//! anew with everything it was subscribed to whenever it breaks, and whenever the proxy has a new SVID.
//!
//! What was said stays in force while the control plane is away. A resource that can't be taken is answered with a nack
//! and changes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

pub(crate) mod channel;
mod report;
mod resources;
mod session;

pub use session::run;

use crate::model::OwnPod;

/// What the control plane said of this pod. Cheap to clone; clones see the same.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    own: ArcSwapOption<OwnPod>,
    changed: watch::Sender<u64>,
    link: Mutex<Link>,
}

/// The state of the stream to the control plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    /// The stream is open.
    pub(crate) connected: bool,
    /// Boot time at which that began or ended; `None`: it was never tried.
    pub(crate) since: Option<Duration>,
    /// Why it is not open.
    pub(crate) last_error: Option<String>,
    /// Resources refused and not taken since: why.
    pub(crate) nacks: BTreeMap<String, String>,
}

/// Refused resources that are remembered for the status.
const MAX_NACKS: usize = 64;

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            own: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            link: Mutex::new(Link::default()),
        }))
    }

    /// What was said last; `None` until something was.
    pub fn own(&self) -> Option<Arc<OwnPod>> {
        self.0.own.load_full()
    }

    /// Changes with every new [`Self::own`].
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Whether the stream to the control plane is open.
    pub fn is_connected(&self) -> bool {
        self.link_mut().connected
    }

    pub(crate) fn link(&self) -> Link {
        self.link_mut().clone()
    }

    /// Takes what the control plane said of this pod.
    pub(crate) fn take_own(&self, own: OwnPod) {
        self.0.own.store(Some(Arc::new(own)));
        self.0.changed.send_modify(|number| *number += 1);
    }

    fn connected(&self, now: Duration) {
        let mut link = self.link_mut();
        *link = Link { connected: true, since: Some(now), last_error: None, nacks: std::mem::take(&mut link.nacks) };
    }

    fn disconnected(&self, now: Duration, reason: String) {
        let mut link = self.link_mut();
        if link.connected || link.since.is_none() {
            link.connected = false;
            link.since = Some(now);
        }
        link.last_error = Some(reason);
    }

    fn taken(&self, name: &str) {
        self.link_mut().nacks.remove(name);
    }

    fn refused(&self, name: &str, reason: &str) {
        let mut link = self.link_mut();
        if link.nacks.len() < MAX_NACKS || link.nacks.contains_key(name) {
            link.nacks.insert(name.to_owned(), reason.to_owned());
        }
    }

    fn link_mut(&self) -> MutexGuard<'_, Link> {
        self.0.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
