//! What stands behind the addresses that the application dials. Each address is asked for once, whoever waits for the
//! answer, and stays subscribed while it is used; so the control plane sends its changes by itself.
//!
//! While the control plane is away, what is known stays in use for an hour. What is not known is refused, not guessed;
//! an address outside of the cluster is the one exception, because egress policy decides about it, and by its address.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use byrnie_identity::Clock;
use byrnie_redirect::OriginalDestination;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

mod cache;

use cache::{Cache, Consulted};
pub(crate) use cache::{Known, Questions};

use crate::control::Control;
use crate::model::Destination;
use crate::shared::Shared;
use crate::telemetry::Telemetry;

/// How long the first connection to an address waits for the answer.
pub(crate) const FIRST_WAIT: Duration = Duration::from_secs(2);
/// How often unused addresses are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// The cache of answers. Cheap to clone; clones see the same.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    clock: Clock,
    control: Control,
    telemetry: Telemetry,
    cache: Mutex<Cache>,
    asked: Notify,
    changed: watch::Sender<u64>,
}

/// Why it is not known what an address stands for. The connection is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The control plane is away and was never asked for this address.
    #[error(
        "the control plane is away, and {0} was not dialled before it went: what is not known inside the cluster is \
         refused (see `byrnie proxy status`)"
    )]
    ControlPlaneAway(SocketAddr),
    /// The control plane is connected and did not answer in time.
    #[error("the control plane did not say within {wait} s what {0} stands for", wait = FIRST_WAIT.as_secs())]
    NoAnswer(SocketAddr),
    /// The control plane answered that it can't say, or its answer could not be taken.
    #[error("the control plane can't say what {0} stands for: {1}")]
    Unanswerable(SocketAddr, Arc<str>),
    /// The answer is older than an hour, and the control plane is away.
    #[error("what is known of {0} is more than an hour old, and the control plane is away")]
    Stale(SocketAddr),
    /// More addresses than can be held are dialled at once.
    #[error("more addresses are dialled at once than can be looked up: {0} is refused")]
    Overloaded(SocketAddr),
}

impl DiscoveryError {
    /// The label for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ControlPlaneAway(_) => "control-plane-away",
            Self::NoAnswer(_) => "discovery-timed-out",
            Self::Unanswerable(..) => "discovery-failed",
            Self::Stale(_) => "discovery-stale",
            Self::Overloaded(_) => "discovery-overloaded",
        }
    }
}

impl Discovery {
    /// Nothing known yet.
    pub fn new(control: Control, telemetry: Telemetry, clock: Clock) -> Self {
        let cache = Mutex::new(Cache::new(clock.boot()));
        let (asked, changed) = (Notify::new(), watch::Sender::new(0));
        Self(Arc::new(Inner { clock, control, telemetry, cache, asked, changed }))
    }

    /// What `dialled` stands for: from the cache, or asked for once for all who wait.
    ///
    /// # Errors
    /// Why it is not known, at the latest after two seconds.
    pub async fn lookup(&self, dialled: OriginalDestination) -> Result<Arc<Destination>, DiscoveryError> {
        let address = canonical(dialled.0);
        let result = self.find(address).await;
        let label = result.as_ref().map_or_else(DiscoveryError::as_str, |_| "ok");
        self.0.telemetry.metrics().lookup(label);
        result
    }

    async fn find(&self, address: SocketAddr) -> Result<Arc<Destination>, DiscoveryError> {
        let deadline = Instant::now() + FIRST_WAIT;
        let outside = self.is_outside(address);
        loop {
            let notified = match self.consult(address, outside)? {
                Ok(destination) => return Ok(destination),
                Err(notified) => notified,
            };
            if timeout_at(deadline, notified).await.is_ok() {
                continue;
            }
            let mut cache = self.lock();
            return match cache.peek(address, self.0.clock.boot()) {
                Some(answer) => Ok(answer),
                None if cache.is_attached() => Err(DiscoveryError::NoAnswer(address)),
                None if outside => Ok(cache.guess_external(address)),
                None => Err(DiscoveryError::ControlPlaneAway(address)),
            };
        }
    }

    fn consult(
        &self,
        address: SocketAddr,
        outside: bool,
    ) -> Result<Result<Arc<Destination>, OwnedNotified>, DiscoveryError> {
        let mut cache = self.lock();
        match cache.consult(address, self.0.clock.boot(), outside)? {
            Consulted::Known(destination) => Ok(Ok(destination)),
            Consulted::Wait(answered) => {
                if cache.has_questions() {
                    self.0.asked.notify_one();
                }
                // Made under the lock: an answer that comes between here and the wait is not missed.
                Ok(Err(answered.notified_owned()))
            }
        }
    }

    /// The answer that is held for `address`, if one is; counts as a use of it.
    pub fn peek(&self, address: SocketAddr) -> Option<Arc<Destination>> {
        self.lock().peek(canonical(address), self.0.clock.boot())
    }

    /// Changes when an answer that was given before is replaced by another.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// What is known now, for the administration.
    pub(crate) fn snapshot(&self) -> Vec<Known> {
        self.lock().snapshot(self.0.clock.boot())
    }

    /// Addresses held.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// A stream to the control plane is open: from now on questions are handed out. Returns all addresses held.
    pub(crate) fn attach(&self) -> Vec<SocketAddr> {
        self.lock().attach()
    }

    /// The stream has ended; what is known is from now on as old as this moment.
    pub(crate) fn detach(&self, now: Duration) {
        self.lock().detach(now);
    }

    /// Ends when there are questions for the control plane.
    pub(crate) async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// Takes the questions that wait.
    pub(crate) fn questions(&self) -> Questions {
        self.lock().questions()
    }

    /// The control plane said what `address` stands for.
    pub fn answered(&self, address: SocketAddr, destination: Destination) {
        let changed = self.lock().answered(canonical(address), destination);
        if changed {
            self.0.changed.send_modify(|number| *number += 1);
        }
    }

    /// The control plane can't say, or what it said could not be taken. What was said before stays in force.
    pub(crate) fn failed(&self, address: SocketAddr, reason: &str) {
        self.lock().failed(canonical(address), reason, self.0.clock.boot());
    }

    fn sweep(&self) {
        let mut cache = self.lock();
        cache.sweep(self.0.clock.boot());
        if cache.has_questions() {
            self.0.asked.notify_one();
        }
    }

    /// Known to be outside of the cluster: false while the cluster's networks are not known.
    fn is_outside(&self, address: SocketAddr) -> bool {
        self.0.control.own().is_some_and(|own| !own.networks.contains(address.ip()))
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of addresses that nobody dials any more, for as long as the process runs.
pub async fn maintain(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        shared.discovery.sweep();
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
