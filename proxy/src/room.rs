//! How much this process has room for. Its limit of open files is shared out beforehand: what strangers and the
//! application open never takes the files that the proxy's own ports, its control plane and its probes need.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::inbound::Gate;
use crate::limits::{FILES_OF_PROXY, FILES_OF_WORKER, HANDSHAKES, HANDSHAKES_PER_SOURCE, IDLE_TOTAL, INBOUND_PER_PEER};

/// The room of one process, and who is in it.
#[derive(Clone)]
pub struct Room {
    bounds: Bounds,
    gate: Gate,
    files: u64,
    connections: Arc<Semaphore>,
    warned: Arc<Seldom>,
}

/// What there may be at once: what `limits` says, or less where the process may not open as many files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections, of two files each: the one that was accepted and the one that was dialled for it.
    pub connections: usize,
    /// Idle tunnels of one worker.
    pub idle_tunnels: usize,
    /// TLS handshakes under way.
    pub handshakes: usize,
    /// TLS handshakes under way from one address.
    pub handshakes_per_source: usize,
    /// Inbound tunnels of one SPIFFE ID.
    pub tunnels_per_peer: usize,
}

/// A connection's place, until dropped.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Room {
    /// Raises the limit of open files as far as this process may, and shares it out among `workers`.
    ///
    /// # Errors
    /// The limit is too low to carry anything: what it is and what it must be.
    pub fn of_process(workers: usize) -> Result<Self, String> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| format!("open files: {error}"))?;
        // What may not be raised is used as it is.
        let files = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
        let room = Self::under(files, workers);
        if room.bounds.connections < LEAST {
            let needed = own_files(workers) * 16 / 15 + 3 * LEAST;
            return Err(format!("limit of open files (ulimit -n): expected at least {needed}, found {files}"));
        }
        Ok(room)
    }

    fn under(files: u64, workers: usize) -> Self {
        let bounds = Bounds::under(usize::try_from(files).unwrap_or(usize::MAX), workers);
        let places = bounds.connections.min(Semaphore::MAX_PERMITS);
        Self {
            bounds,
            gate: Gate::new(bounds),
            files,
            connections: Arc::new(Semaphore::new(places)),
            warned: Arc::default(),
        }
    }

    /// What there may be at once.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Where those enter who have proved nothing yet.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// A place for one more connection, as soon as there is one: until then clients wait in the kernel's queue.
    pub(crate) async fn place(&self) -> Place {
        let places = Arc::clone(&self.connections);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return Place(place);
        }
        self.warn();
        match places.acquire_owned().await {
            Ok(place) => Place(place),
            // Nobody closes it.
            Err(_) => std::future::pending().await,
        }
    }

    fn warn(&self) {
        if self.warned.is_due() {
            tracing::warn!(
                connections = self.bounds.connections,
                open_files_limit = self.files,
                "as many connections are open as the limit of open files allows; new ones wait; raise it (ulimit -n)"
            );
        }
    }
}

impl Default for Room {
    /// That of a process without a limit worth its name.
    fn default() -> Self {
        Self::under(1 << 20, 1)
    }
}

impl Bounds {
    fn under(files: usize, workers: usize) -> Self {
        // A tunnel that idles is worth less than a connection: a sixteenth is enough to save most handshakes.
        let idle = files / 16;
        let connections = files.saturating_sub(own_files(workers) + idle) / 2;
        // Those who have proved nothing can never hold more than half.
        Self {
            connections,
            idle_tunnels: IDLE_TOTAL.min(idle / workers.max(1)),
            handshakes: HANDSHAKES.min(connections / 2),
            handshakes_per_source: HANDSHAKES_PER_SOURCE.min(connections / 4),
            tunnels_per_peer: INBOUND_PER_PEER.min(connections / 2),
        }
    }
}

fn own_files(workers: usize) -> usize {
    FILES_OF_PROXY + workers.saturating_mul(FILES_OF_WORKER)
}

/// Lets a warning through once in five seconds: what it is about is tried many times in between.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// One that has let nothing through yet.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether the warning goes through now.
    pub(crate) fn is_due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= QUIET);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

/// With fewer places than this a pod is not served.
const LEAST: usize = 32;
/// Between two warnings.
const QUIET: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_idle_tunnels_and_the_proxys_own_files_fit_under_the_limit() {
        for (files, workers) in [(256, 1), (1024, 1), (1024, 4), (20_000, 1), (1 << 20, 8)] {
            let bounds = Bounds::under(files, workers);
            let needed = 2 * bounds.connections + workers * bounds.idle_tunnels + own_files(workers);
            assert!(needed <= files, "{files} files, {workers} workers: {bounds:?}");
            assert!(bounds.connections >= LEAST, "{files} files, {workers} workers: {bounds:?}");
            assert!(bounds.handshakes <= bounds.connections / 2, "strangers could take every place: {bounds:?}");
        }
    }

    #[test]
    fn a_limit_of_20_000_files_carries_9_000_connections_and_a_high_one_the_limits_of_the_table() {
        assert!(Bounds::under(20_000, 1).connections >= 9_000);
        let bounds = Bounds::under(1 << 20, 1);
        let found = (bounds.idle_tunnels, bounds.handshakes, bounds.handshakes_per_source, bounds.tunnels_per_peer);
        assert_eq!(found, (IDLE_TOTAL, HANDSHAKES, HANDSHAKES_PER_SOURCE, INBOUND_PER_PEER));
    }

    #[tokio::test]
    async fn who_finds_no_place_waits_until_another_leaves() {
        let room = Room::under(256, 1);
        let mut held = Vec::new();
        for _ in 0..room.bounds().connections {
            held.push(room.place().await);
        }
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.place().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.pop();
        waiting.await.expect("a place");
    }
}
