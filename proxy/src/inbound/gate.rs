//! Bounds what has proved nothing yet: TLS handshakes under way, per source before in all, and tunnels per proved peer.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use byrnie_identity::SpiffeId;
use tokio::sync::Notify;

use crate::room::Bounds;

/// The bounds of one process, and what is within them.
#[derive(Clone)]
pub(crate) struct Gate {
    bounds: Bounds,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    /// Handshakes under way by source, the oldest first.
    sources: HashMap<IpAddr, VecDeque<Arc<Notify>>>,
    peers: HashMap<SpiffeId, usize>,
}

/// A handshake under way; it ends when this is dropped.
pub(crate) struct Entered {
    gate: Gate,
    source: IpAddr,
    evicted: Arc<Notify>,
}

/// A tunnel of one peer; it counts until this is dropped.
pub(crate) struct Held {
    gate: Gate,
    peer: SpiffeId,
}

impl Gate {
    /// A gate that nobody is in.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, counts: Arc::default() }
    }

    /// Counts a handshake of `source`. Over a bound, the oldest handshake of this source, or of the one that has the
    /// most, is told to end.
    pub(crate) fn enter(&self, source: IpAddr) -> Entered {
        let evicted = Arc::new(Notify::new());
        let mut counts = self.lock();
        let own = counts.sources.get(&source).map_or(0, VecDeque::len);
        if own >= self.bounds.handshakes_per_source {
            counts.evict(source);
        } else if counts.total >= self.bounds.handshakes
            && let Some(heaviest) = counts.heaviest()
        {
            counts.evict(heaviest);
        }
        counts.total += 1;
        counts.sources.entry(source).or_default().push_back(evicted.clone());
        Entered { gate: self.clone(), source, evicted }
    }

    /// Counts a tunnel of `peer`; `None` where it has as many as it may.
    pub(crate) fn admit_peer(&self, peer: &SpiffeId) -> Option<Held> {
        let mut counts = self.lock();
        let count = counts.peers.entry(peer.clone()).or_default();
        if *count >= self.bounds.tunnels_per_peer {
            return None;
        }
        *count += 1;
        Some(Held { gate: self.clone(), peer: peer.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn heaviest(&self) -> Option<IpAddr> {
        self.sources.iter().max_by_key(|(_, handshakes)| handshakes.len()).map(|(source, _)| *source)
    }

    fn evict(&mut self, source: IpAddr) {
        if let Some(oldest) = self.sources.get_mut(&source).and_then(VecDeque::pop_front) {
            oldest.notify_one();
            self.total -= 1;
        }
    }
}

impl Entered {
    /// Ends when this handshake has to make room for others.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        let Some(handshakes) = counts.sources.get_mut(&self.source) else {
            return;
        };
        let before = handshakes.len();
        handshakes.retain(|handshake| !Arc::ptr_eq(handshake, &self.evicted));
        let left = handshakes.len();
        if left == 0 {
            counts.sources.remove(&self.source);
        }
        counts.total -= before - left;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        if let Some(count) = counts.peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::limits::{HANDSHAKES, HANDSHAKES_PER_SOURCE, INBOUND_PER_PEER};
    use crate::room::Room;
    use std::time::Duration;

    async fn is_evicted(entered: &Entered) -> bool {
        tokio::time::timeout(Duration::from_millis(1), entered.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_over_its_bound_loses_its_own_oldest_handshake() {
        let gate = Gate::new(Room::default().bounds());
        let flood: Vec<Entered> = (0..=HANDSHAKES_PER_SOURCE).map(|_| gate.enter([10, 0, 0, 1].into())).collect();
        let other = gate.enter([10, 0, 0, 2].into());
        assert!(is_evicted(&flood[0]).await);
        assert!(!is_evicted(&flood[1]).await);
        assert!(!is_evicted(&other).await);
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_is_full_the_heaviest_source_makes_room() {
        let gate = Gate::new(Room::default().bounds());
        let quiet = gate.enter([10, 0, 1, 1].into());
        let flood: Vec<Entered> = (0..5u8)
            .flat_map(|source| std::iter::repeat_n(source, HANDSHAKES_PER_SOURCE - 1))
            .take(HANDSHAKES)
            .map(|source| gate.enter([10, 0, 0, source].into()))
            .collect();
        assert!(!is_evicted(&quiet).await);
        let mut evicted = 0;
        for entered in &flood {
            evicted += usize::from(is_evicted(entered).await);
        }
        assert_eq!(evicted, 1);
        drop((flood, quiet));
        let counts = gate.lock();
        assert_eq!((counts.total, counts.sources.len()), (0, 0));
    }

    #[test]
    fn one_peer_can_not_take_every_tunnel() {
        let gate = Gate::new(Room::default().bounds());
        let peer: SpiffeId = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let held: Vec<Held> = (0..INBOUND_PER_PEER).map(|_| gate.admit_peer(&peer).unwrap()).collect();
        assert!(gate.admit_peer(&peer).is_none());
        drop(held);
        assert!(gate.admit_peer(&peer).is_some());
        assert!(gate.lock().peers.is_empty());
    }
}
