//! Connections whose peers are gone while data is under way to them. Keepalive finds a peer that vanishes from a quiet
//! connection and is silent on a busy one; the kernel itself gives up only after a quarter of an hour.

use std::collections::HashSet;
use std::sync::Arc;

use byrnie_proto::tunnel::v1::ResetCode;
use byrnie_redirect::{Leg, SocketsUnreadable, stalled_peers};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::{Cut, Streams};
use crate::limits::{UNREACHABLE, UNREACHABLE_LOOK};
use crate::shared::Shared;

/// Looks for them as long as there are streams, and cuts theirs. Runs once per process, for ever.
pub async fn supervise(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(UNREACHABLE_LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned = false;
    loop {
        tick.tick().await;
        if shared.streams.open() == 0 {
            continue;
        }
        match look().await {
            Ok(legs) => {
                warned = false;
                shared.streams.cut_unreachable(legs);
            }
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, "dead peers are found late");
            }
            Err(_) => {}
        }
    }
}

/// On a thread of its own: with many sockets it takes a while, and here connections are carried.
async fn look() -> Result<HashSet<Leg>, SocketsUnreadable> {
    match tokio::task::spawn_blocking(|| stalled_peers(UNREACHABLE)).await {
        Ok(found) => Ok(found?.into_iter().collect()),
        // The runtime is ending.
        Err(_) => Ok(HashSet::new()),
    }
}

impl Streams {
    /// The TCP connections whose peers were found to be gone at the last look.
    pub(crate) fn unreachable(&self) -> watch::Receiver<HashSet<Leg>> {
        self.unreachable.subscribe()
    }

    /// Cuts the streams that one of these TCP connections carries, and tells the pools.
    fn cut_unreachable(&self, gone: HashSet<Leg>) {
        if !gone.is_empty() {
            for stream in self.all() {
                if let Some(leg) = stream.leg.get().filter(|leg| gone.contains(leg)) {
                    let reason = format!(
                        "{} has acknowledged nothing on the way to it for {} s, nor answered three times it was asked",
                        leg.remote,
                        UNREACHABLE.as_secs()
                    );
                    stream.cut_with(Cut { code: ResetCode::Application, cause: "peer-unreachable", reason });
                }
            }
        }
        self.unreachable.send_if_modified(|known| {
            let changed = *known != gone;
            *known = gone;
            changed
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::streams::Grounds;
    use std::net::SocketAddr;

    fn leg(port: u16) -> Leg {
        let remote = SocketAddr::from(([10, 0, 0, 2], port));
        Leg { local: SocketAddr::from(([10, 0, 0, 1], 40_000)), remote }
    }

    #[test]
    fn a_stream_is_cut_when_its_peer_is_gone_and_no_other_is() {
        let streams = Streams::new();
        let grounds = || Grounds::Inbound { port: 80 };
        let cut = streams.register(grounds(), None);
        let (sound, dialling) = (streams.register(grounds(), None), streams.register(grounds(), None));
        cut.carried_by(Some(leg(1)));
        sound.carried_by(Some(leg(4)));
        dialling.carried_by(None);
        let mut told = streams.unreachable();
        streams.cut_unreachable(HashSet::from([leg(1), leg(3), leg(9)]));
        assert_eq!(cut.cut().unwrap().cause, "peer-unreachable");
        assert!(cut.cut().unwrap().reason.contains("10.0.0.2:1 "));
        assert!(sound.cut().is_none() && dialling.cut().is_none());
        assert!(told.has_changed().unwrap());
        assert_eq!(told.borrow_and_update().len(), 3);
        streams.cut_unreachable(HashSet::new());
        assert!(told.borrow_and_update().is_empty(), "an address that is used again is not held to the past");
        streams.cut_unreachable(HashSet::new());
        assert!(!told.has_changed().unwrap());
    }
}
