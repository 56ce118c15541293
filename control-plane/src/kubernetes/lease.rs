//! Which replica writes what must be written once: the one that holds the Lease `byrnie-control-plane`.
//!
//! The Lease manager renews by itself and says when that fails; it does not say until when the Lease holds. So whoever
//! writes asks for that first ([`Term::left`]) and has stopped by then, whatever became of the manager's calls.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use byrnie_api::labels::{CONTROL_PLANE, SYSTEM_NAMESPACE};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseParams};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use super::client::{ApiError, Cluster, call, longer};
use crate::limits;

/// The time in which this replica holds the Lease.
pub(super) struct Term {
    leases: Api<Lease>,
    replica: String,
    /// When the API server was asked last, and until when the Lease held then.
    known: Mutex<Option<(Instant, Instant)>>,
}

impl Term {
    /// How long the Lease holds from now on. Nobody else can take it before.
    ///
    /// # Errors
    /// It is not ours, is over, or can't be read: nothing may be written.
    pub(super) async fn left(&self) -> Result<Duration, String> {
        let now = Instant::now();
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((asked, until)) = known
            && now.saturating_duration_since(asked) < limits::LEASE_ASKED
            && until > now
        {
            return Ok(until.saturating_duration_since(now));
        }
        let lease = call(self.leases.get(CONTROL_PLANE)).await.map_err(|error| error.to_string())?;
        let left = left(&lease, &self.replica, SystemTime::now())?;
        let asked = Instant::now();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, asked + left));
        Ok(left)
    }
}

/// Stands for the Lease until `end`, and runs what `begin` starts whenever it holds it. The Lease is given back at the
/// end, so that another replica need not wait until it runs out.
pub(super) async fn stand(cluster: Cluster, end: impl Future<Output = ()>, begin: impl Fn(Arc<Term>) -> JoinSet<()>) {
    let mut end = std::pin::pin!(end);
    let leases: Api<Lease> = Api::namespaced(cluster.lease.clone(), SYSTEM_NAMESPACE);
    let mut wait = limits::API_RETRY;
    loop {
        // After a failure the manager no longer tells what it holds: a new one does.
        let manager = match manager(&cluster).await {
            Ok(manager) => manager,
            Err(error) => {
                tracing::warn!(%error, "Lease {SYSTEM_NAMESPACE}/{CONTROL_PLANE}: can't be read or made; trying again");
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = &mut end => return,
                }
                wait = longer(wait);
                continue;
            }
        };
        let served = tokio::select! {
            served = serve(&cluster, &manager, &begin) => served,
            () = &mut end => {
                match give_back(&leases, &cluster.replica).await {
                    Ok(true) => tracing::info!("the Lease is given back: another replica leads from now on"),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%error, "the Lease can't be given back; others wait until it runs out"),
                }
                return;
            }
        };
        wait = limits::API_RETRY;
        let Some(failure) = served else {
            continue;
        };
        tracing::warn!(reason = failure, "the Lease can't be held; trying again");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = &mut end => return,
        }
    }
}

/// Writes while the Lease is held. Returns when the manager does not know any more what it holds: with what failed, or
/// `None` where the Lease was given back by its holder, which the manager would notice only when it would have run out.
/// Dropped, it stops writing.
async fn serve(cluster: &Cluster, manager: &LeaseManager, begin: &impl Fn(Arc<Term>) -> JoinSet<()>) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(cluster.lease.clone(), SYSTEM_NAMESPACE);
    let mut tasks = JoinSet::new();
    loop {
        let changed = tokio::select! {
            changed = manager.changed() => changed,
            () = given_back(&leases), if tasks.is_empty() => return None,
        };
        match changed {
            Ok(true) => {
                tracing::info!(replica = cluster.replica, "this replica leads: it writes what is written once");
                let term = Term {
                    leases: Api::namespaced(cluster.lease.clone(), SYSTEM_NAMESPACE),
                    replica: cluster.replica.clone(),
                    known: Mutex::default(),
                };
                tasks = begin(Arc::new(term));
            }
            Ok(false) => {
                tasks = JoinSet::new();
                tracing::info!(replica = cluster.replica, "this replica no longer leads");
            }
            Err(error) => {
                tasks.abort_all();
                return Some(error.to_string());
            }
        }
    }
}

/// Returns when nobody holds the Lease.
async fn given_back(leases: &Api<Lease>) {
    loop {
        tokio::time::sleep(limits::LEASE_LOOKED_AT).await;
        if let Ok(lease) = call(leases.get(CONTROL_PLANE)).await
            && lease.spec.is_none_or(|spec| spec.holder_identity.is_none_or(|holder| holder.is_empty()))
        {
            return;
        }
    }
}

/// Gives the Lease back where it is ours; says whether it was.
async fn give_back(leases: &Api<Lease>, replica: &str) -> Result<bool, ApiError> {
    let lease = call(leases.get(CONTROL_PLANE)).await?;
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
    if holder != Some(replica) {
        return Ok(false);
    }
    let patch = json!({
        // Whoever has taken it meanwhile keeps it.
        "metadata": {"resourceVersion": lease.resource_version()},
        "spec": {"holderIdentity": null, "acquireTime": null, "renewTime": null, "leaseDurationSeconds": null},
    });
    call(leases.patch(CONTROL_PLANE, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    Ok(true)
}

async fn manager(cluster: &Cluster) -> Result<LeaseManager, kube_lease_manager::LeaseManagerError> {
    let params = LeaseParams::new(cluster.replica.clone(), limits::LEASE.as_secs(), limits::LEASE_GRACE.as_secs());
    LeaseManagerBuilder::new(cluster.lease.clone(), CONTROL_PLANE)
        .with_namespace(SYSTEM_NAMESPACE)
        .with_parameters(params)
        .build()
        .await
}

/// How long a Lease still holds for `replica`. `renewTime` is this machine's, so that no other clock plays a part.
fn left(lease: &Lease, replica: &str, now: SystemTime) -> Result<Duration, String> {
    let spec = lease.spec.as_ref().ok_or("it has no spec")?;
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == replica => {}
        Some(holder) => return Err(format!("it is held by {}", crate::proxies::cut(holder.to_owned()))),
        None => return Err("nobody holds it".to_owned()),
    }
    let renewed = spec.renew_time.as_ref().ok_or("it has no renewTime")?;
    let renewed = SystemTime::from(renewed.0);
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0);
    // A time in the future is a clock that was set back: then it holds as long as it was taken for, at most.
    let gone = now.duration_since(renewed).unwrap_or(Duration::ZERO);
    let left = Duration::from_secs(duration.min(limits::LEASE.as_secs())).saturating_sub(gone);
    if left.is_zero() { Err("it has run out".to_owned()) } else { Ok(left) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::{
        super::testing::{Answer, fake},
        *,
    };

    #[tokio::test]
    async fn a_lease_is_given_back_by_its_holder_alone_and_only_as_it_was_read() {
        for (holder, given) in [("a", true), ("b", false)] {
            let stored = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": CONTROL_PLANE, "resourceVersion": "7"}, "spec": {"holderIdentity": holder}});
            let (client, seen) = fake(move |_| Answer::json(200, &stored));
            assert_eq!(give_back(&Api::namespaced(client, SYSTEM_NAMESPACE), "a").await.unwrap(), given);
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), if given { 2 } else { 1 });
            if given {
                assert_eq!(seen[1].method, "PATCH");
                assert_eq!(seen[1].json()["metadata"]["resourceVersion"], "7");
            }
        }
    }

    fn lease(spec: serde_json::Value) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": CONTROL_PLANE}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_lease_holds_for_its_holder_and_for_its_time() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let ours = lease(json!({"holderIdentity": "a", "leaseDurationSeconds": 30,
            "renewTime": "2027-01-15T08:00:00.000000Z"}));
        assert_eq!(left(&ours, "a", now), Ok(Duration::from_secs(30)));
        assert_eq!(left(&ours, "a", now + Duration::from_secs(29)), Ok(Duration::from_secs(1)));
        assert!(left(&ours, "a", now + Duration::from_secs(30)).unwrap_err().contains("run out"));
        assert_eq!(left(&ours, "a", now - Duration::from_secs(100)), Ok(Duration::from_secs(30)));
        assert!(left(&ours, "b", now).unwrap_err().contains("held by a"));
    }

    #[test]
    fn a_lease_that_says_too_little_is_nobodys() {
        let now = SystemTime::now();
        assert!(left(&Lease::default(), "a", now).is_err());
        for spec in [
            json!({}),
            json!({"holderIdentity": "a"}),
            json!({"holderIdentity": "a", "leaseDurationSeconds": -1,
            "renewTime": "2027-01-15T08:00:00.000000Z"}),
        ] {
            assert!(left(&lease(spec), "a", now).is_err());
        }
    }
}
