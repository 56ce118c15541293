//! A client's idle tunnels. A tunnel is kept under everything that makes it the right one: the address, who is there, and
//! which of our own SVIDs it was made with; a changed key never finds an old tunnel.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use byrnie_identity::SpiffeId;
use prometheus_client::metrics::gauge::Gauge;

use crate::balance::Loads;
use crate::limits::{IDLE_PER_DESTINATION, IDLE_TUNNEL, TUNNEL_AGE};
use crate::shared::Shared;
use crate::tunnel::{Heard, Tunnel, TunnelError};

/// What one worker keeps to itself: tunnels do not leave the runtime that their sockets are registered with.
#[derive(Default)]
pub struct Worker {
    pub(crate) pool: Pool,
    pub(crate) loads: Loads,
}

impl Worker {
    /// A worker without tunnels.
    pub fn new() -> Arc<Worker> {
        Arc::new(Worker::default())
    }

    /// Idle tunnels that this worker holds.
    pub fn idle_tunnels(&self) -> usize {
        self.pool.count.load(Ordering::Relaxed)
    }
}

/// What a kept tunnel is good for. The trust domain is in the ID.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) address: SocketAddr,
    pub(crate) expected: SpiffeId,
    pub(crate) generation: u64,
}

#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<Key, Vec<Arc<Idle>>>>,
    count: AtomicUsize,
}

struct Idle {
    tunnel: Mutex<Option<Box<Tunnel>>>,
    /// Stops the task that watches the tunnel.
    watcher: Mutex<Option<tokio::task::AbortHandle>>,
    _counted: Counted,
}

/// One of the idle tunnels that the proxy shows to operators, for as long as it is one.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Idle {
    /// Takes the tunnel out, and with it ends its watch.
    fn take(&self) -> Option<Box<Tunnel>> {
        let tunnel = lock(&self.tunnel).take();
        if let Some(watcher) = lock(&self.watcher).take() {
            watcher.abort();
        }
        tunnel
    }
}

impl Pool {
    /// A tunnel for `key` that was good a moment ago: the youngest use first, so that the others can grow old and go.
    /// Whoever takes it has to look at its peer again.
    pub(crate) fn take(&self, key: &Key) -> Option<Box<Tunnel>> {
        loop {
            let idle = {
                let mut pool = lock(&self.idle);
                let kept = pool.get_mut(key)?;
                let idle = kept.pop();
                if kept.is_empty() {
                    pool.remove(key);
                }
                idle?
            };
            self.count.fetch_sub(1, Ordering::Relaxed);
            match idle.take() {
                Some(tunnel) if tunnel.born.elapsed() < TUNNEL_AGE => return Some(tunnel),
                Some(old) => drop(tokio::spawn(old.close())),
                None => {}
            }
        }
    }

    /// Keeps a tunnel whose stream has ended cleanly, if there is room; else it is closed.
    pub(crate) fn put(worker: &Arc<Worker>, shared: &Arc<Shared>, key: Key, tunnel: Box<Tunnel>) {
        let pool = &worker.pool;
        let full = pool.count.load(Ordering::Relaxed) >= shared.room.bounds().idle_tunnels
            || lock(&pool.idle).get(&key).is_some_and(|kept| kept.len() >= IDLE_PER_DESTINATION);
        let current = shared.certificates.current().is_some_and(|own| own.number == key.generation);
        if full || !current || !tunnel.session.reusable() {
            tokio::spawn(tunnel.close());
            return;
        }
        let counted = Counted::new(&shared.telemetry.metrics().idle_tunnels);
        let idle = Arc::new(Idle { tunnel: Mutex::new(Some(tunnel)), watcher: Mutex::new(None), _counted: counted });
        lock(&pool.idle).entry(key.clone()).or_default().push(idle.clone());
        pool.count.fetch_add(1, Ordering::Relaxed);
        let watcher = tokio::spawn(watch(worker.clone(), shared.clone(), key, idle.clone())).abort_handle();
        *lock(&idle.watcher) = Some(watcher);
    }

    /// Forgets an idle tunnel that its watcher has given up.
    fn forget(&self, key: &Key, gone: &Arc<Idle>) {
        let mut pool = lock(&self.idle);
        if let Some(kept) = pool.get_mut(key) {
            let before = kept.len();
            kept.retain(|idle| !Arc::ptr_eq(idle, gone));
            self.count.fetch_sub(before - kept.len(), Ordering::Relaxed);
            if kept.is_empty() {
                pool.remove(key);
            }
        }
    }

    /// Closes every tunnel that `gone` names.
    fn retire(&self, gone: impl Fn(&Key, &Tunnel) -> bool) {
        let mut pool = lock(&self.idle);
        pool.retain(|key, kept| {
            kept.retain(|idle| {
                let retired = lock(&idle.tunnel).as_ref().is_none_or(|tunnel| gone(key, tunnel));
                if retired {
                    self.count.fetch_sub(1, Ordering::Relaxed);
                    idle.take().map(|tunnel| tokio::spawn(tunnel.close()));
                }
                !retired
            });
            !kept.is_empty()
        });
    }
}

/// Watches an idle tunnel until it is taken (which aborts this task), the server ends it, or it has been idle too long.
async fn watch(worker: Arc<Worker>, shared: Arc<Shared>, key: Key, idle: Arc<Idle>) {
    let heard = std::future::poll_fn(|cx| match lock(&idle.tunnel).as_mut() {
        None => Poll::Ready(()),
        Some(tunnel) => poll_idle(tunnel, &shared, cx),
    });
    let _ = tokio::time::timeout(jittered(IDLE_TUNNEL), heard).await;
    worker.pool.forget(&key, &idle);
    let tunnel = lock(&idle.tunnel).take();
    if let Some(tunnel) = tunnel {
        tunnel.close().await;
    }
}

/// `Ready`: the tunnel is of no use any more.
fn poll_idle(tunnel: &mut Tunnel, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        match std::task::ready!(tunnel.poll_heard(cx, |_, _| false)) {
            Ok(Heard::Reauth(reauth)) => {
                let renewed: Result<(), TunnelError> = tunnel.renewed(&reauth, shared.certificates.verifier());
                if renewed.is_err() {
                    return Poll::Ready(());
                }
            }
            _ => return Poll::Ready(()),
        }
    }
}

/// Up to a quarter less than `bound`, so that tunnels made together do not end together.
fn jittered(bound: Duration) -> Duration {
    bound.mul_f64(1.0 - 0.25 * crate::random::fraction())
}

/// Retires the idle tunnels of one worker when what they rest on has changed: those made with an SVID that is no longer
/// ours, those whose peer's identity holds no longer, and those whose peer is gone. Runs for ever, once per worker.
pub async fn supervise(shared: Arc<Shared>, worker: Arc<Worker>) {
    let mut certificates = shared.certificates.changed();
    let mut unreachable = shared.streams.unreachable();
    loop {
        let changed = tokio::select! {
            changed = certificates.changed() => changed,
            changed = unreachable.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        let current = shared.certificates.current().map(|own| own.number);
        let verifier = shared.certificates.verifier();
        let gone = unreachable.borrow_and_update().clone();
        worker.pool.retire(|key, tunnel| {
            Some(key.generation) != current
                || verifier.check_still_valid(tunnel.peer()).is_err()
                || tunnel.leg().is_some_and(|leg| gone.contains(&leg))
        });
    }
}

/// Bytes of the future that watches an idle tunnel.
#[cfg(test)]
pub(crate) fn watch_size(
    worker: &Arc<Worker>,
    shared: &Arc<Shared>,
    address: SocketAddr,
    tunnel: Box<Tunnel>,
) -> usize {
    let key = Key { address, expected: tunnel.peer().id().clone(), generation: 0 };
    let counted = Counted::new(&shared.telemetry.metrics().idle_tunnels);
    let idle = Arc::new(Idle { tunnel: Mutex::new(Some(tunnel)), watcher: Mutex::new(None), _counted: counted });
    std::mem::size_of_val(&watch(worker.clone(), shared.clone(), key, idle))
}
