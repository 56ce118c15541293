//! How the leader writes: level-triggered, one task for each kind of thing, a failure of one object told and tried again
//! without stopping the others, and nothing written without the Lease.

use std::{collections::BTreeSet, fmt::Display, future::Future, sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

use super::{client::longer, lease::Term};
use crate::{limits, plane::Plane, proxies::cut};

/// Brings one kind of thing up to date.
pub(super) trait Writer: Send + 'static {
    /// What it writes, in the log.
    const WHAT: &'static str;
    /// How often it looks, where nothing of the mesh changes.
    const EVERY: Duration;

    /// Writes what differs from what should be; what failed, each with its object.
    fn pass(&mut self, plane: &Plane) -> impl Future<Output = Failures> + Send;
}

/// What failed in one pass.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeSet<String>);

impl Failures {
    pub(super) fn add(&mut self, object: impl Display, reason: impl Display) {
        self.0.insert(format!("{object}: {reason}"));
    }

    /// Keeps what went well, and notes what did not.
    pub(super) fn keep<T, E: Display>(&mut self, object: impl Display, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(object, error)).ok()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    /// What fails again and again is told when it begins, and every few minutes.
    fn tell(&self, what: &str, told: &mut BTreeSet<String>) {
        let fresh: Vec<&String> = self.0.difference(told).collect();
        for failure in fresh.iter().take(limits::FAILURES_TOLD) {
            tracing::error!(reason = cut((*failure).clone()), "{what}: not written; it is tried again");
        }
        if fresh.len() > limits::FAILURES_TOLD {
            tracing::error!("{what}: {} more are not written", fresh.len() - limits::FAILURES_TOLD);
        }
        told.clone_from(&self.0);
    }
}

/// Runs a writer for as long as the term lasts, and is dropped with it.
pub(super) async fn keep<W: Writer>(
    mut writer: W,
    plane: Arc<Plane>,
    term: Arc<Term>,
    mut changed: watch::Receiver<u64>,
) {
    let mut wait = limits::API_RETRY;
    let mut told = BTreeSet::new();
    let mut told_at = plane.clock.monotonic();
    loop {
        changed.mark_unchanged();
        let failures = match term.left().await {
            Ok(left) => match timeout(left, writer.pass(&plane)).await {
                Ok(failures) => failures,
                Err(_) => one("the Lease", "it ran out in the middle of a pass"),
            },
            Err(reason) => one("the Lease", reason),
        };
        let now = plane.clock.monotonic();
        if now.saturating_sub(told_at) >= limits::FAILURES_TOLD_AGAIN {
            told_at = now;
            told.clear();
        }
        failures.tell(W::WHAT, &mut told);
        let pause = if failures.is_empty() {
            wait = limits::API_RETRY;
            W::EVERY
        } else {
            wait = longer(wait);
            wait
        };
        // Changes are taken together, and one object that fails does not make others wait.
        tokio::time::sleep(limits::WRITE_COALESCE).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(()) = changed.changed() => {}
        }
    }
}

fn one(object: &str, reason: impl Display) -> Failures {
    let mut failures = Failures::default();
    failures.add(object, reason);
    failures
}
