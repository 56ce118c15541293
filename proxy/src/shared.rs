//! What every task of the proxy holds: one [`Shared`] per process, made once in [`crate::run`] and passed by `Arc`.

use tokio::sync::watch;

use byrnie_identity::Clock;

use crate::certificates::Certificates;
use crate::config::Config;
use crate::control::Control;
use crate::discovery::Discovery;
use crate::readiness::Readiness;
use crate::room::Room;
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
    /// How much this process has room for.
    pub room: Room,
    /// The open application connections.
    pub streams: Streams,
    /// Whether the proxy is going away.
    pub drain: Drain,
}

/// Says that the proxy is going away; clones see the same drain. It goes forward only.
#[derive(Clone, Debug)]
pub struct Drain(watch::Sender<Stage>);

/// How far a proxy has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// Its peers are told, and it is not ready any more; it carries on, new connections too, because those who send them
    /// hear of it later.
    Draining,
    /// It takes no new connections: the process ends.
    Closing,
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self(watch::Sender::new(Stage::Serving))
    }

    /// Whether [`Self::begin`] was called.
    pub fn is_draining(&self) -> bool {
        *self.0.borrow() >= Stage::Draining
    }

    /// Ends when the drain begins; at once where it has begun already.
    pub async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    /// Ends when no new connection is to be taken any more.
    pub async fn closing(&self) {
        self.reached(Stage::Closing).await;
    }

    /// Begins the drain; calling it again changes nothing.
    pub fn begin(&self) {
        self.go_to(Stage::Draining);
    }

    /// Takes no new connections from now on: who dials hears at once that nobody is there, and goes elsewhere.
    pub fn close(&self) {
        self.go_to(Stage::Closing);
    }

    fn go_to(&self, stage: Stage) {
        self.0.send_if_modified(|reached| {
            let forward = stage > *reached;
            *reached = stage.max(*reached);
            forward
        });
    }

    async fn reached(&self, stage: Stage) {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`, so that waiting can't fail.
        let _ = receiver.wait_for(|reached| *reached >= stage).await;
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

    #[tokio::test]
    async fn who_closes_drains_too_and_never_goes_back() {
        let drain = Drain::new();
        drain.close();
        drain.begin();
        drain.draining().await;
        drain.closing().await;
    }
}
