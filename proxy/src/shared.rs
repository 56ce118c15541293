//! What every task of the proxy holds: one [`Shared`] per process, made once in [`crate::run`] and passed by `Arc`.

use tokio::sync::watch;

use byrnie_identity::Clock;

use crate::certificates::Certificates;
use crate::config::Config;
use crate::control::Control;
use crate::discovery::Discovery;
use crate::readiness::Readiness;
use crate::streams::Streams;
use crate::telemetry::Telemetry;

/// The state that all workers and background tasks of one proxy share.
pub struct Shared {
    /// What the operator asked for.
    pub config: Config,
    /// The only source of time.
    pub clock: Clock,
    /// The proxy's own SVID, the trust bundles, and the TLS configurations built from them.
    pub certificates: Certificates,
    /// What the control plane said of this pod.
    pub control: Control,
    /// What the control plane said of addresses that the application dialled.
    pub discovery: Discovery,
    /// Metrics, access log, edges and refusals.
    pub telemetry: Telemetry,
    /// Whether capture is proved and the proxy may be called ready.
    pub readiness: Readiness,
    /// The open application connections.
    pub streams: Streams,
    /// Whether the proxy is going away.
    pub drain: Drain,
}

/// Says that the proxy is going away; clones see the same drain. It begins once and never ends.
#[derive(Clone, Debug)]
pub struct Drain(watch::Sender<bool>);

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Whether [`Self::begin`] was called.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow()
    }

    /// Ends when the drain begins; at once where it has begun already.
    pub async fn draining(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`, so that waiting can't fail.
        let _ = receiver.wait_for(|begun| *begun).await;
    }

    /// Begins the drain; calling it again changes nothing.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_is_seen_by_every_clone_and_by_those_who_come_late() {
        let drain = Drain::new();
        let other = drain.clone();
        assert!(!other.is_draining());
        let waiting = tokio::spawn(async move { other.draining().await });
        drain.begin();
        drain.begin();
        waiting.await.expect("the waiting task ends");
        drain.clone().draining().await;
        assert!(drain.is_draining());
    }
}
