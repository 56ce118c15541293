//! Which replica writes what must be written once: the one that holds the Lease `byrnie-control-plane`.
//!
//! Of replicas of different versions it is one of the newest: in the middle of an upgrade, or where an older one was
//! started beside it, what the newer version writes is not written over by a version that knows less. A replica that
//! waits while an older one leads asks for the Lease by an annotation, and the older one hands it over. Where only older
//! ones are left, they lead.
//!
//! The Lease manager renews by itself and says when that fails; it does not say until when the Lease holds. So whoever
//! writes asks for that first ([`Term::left`]) and has stopped by then, whatever became of the manager's calls.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use byrnie_api::{
    is_newer,
    labels::{CONTROL_PLANE, SYSTEM_NAMESPACE, WANTED_BY},
};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseParams};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use super::client::{ApiError, Cluster, call, longer, version_of};
use crate::{limits, proxies::cut};

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
        let turn = tokio::select! {
            turn = serve(&cluster, &manager, &begin) => turn,
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
        match turn {
            Turn::Free => continue,
            Turn::Wanted(by) => match hand_over(&leases, &cluster.replica, &by).await {
                Ok(()) => tracing::info!(to = cut(by), "the Lease is handed over: a newer version leads from now on"),
                Err(error) => tracing::warn!(%error, "the Lease can't be handed over; trying again"),
            },
            Turn::Failed(reason) => tracing::warn!(reason, "the Lease can't be held; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = &mut end => return,
        }
    }
}

/// Why the Lease manager's word is not enough any more.
enum Turn {
    /// The holder has given the Lease back, or handed it over to this replica; the manager would notice only when it
    /// would have run out.
    Free,
    /// This replica holds it, and that one, of a newer version, asks for it.
    Wanted(String),
    /// The manager does not know what it holds.
    Failed(String),
}

/// Writes while the Lease is held, until the manager's word is not enough. Dropped, it stops writing.
async fn serve(cluster: &Cluster, manager: &LeaseManager, begin: &impl Fn(Arc<Term>) -> JoinSet<()>) -> Turn {
    let leases: Api<Lease> = Api::namespaced(cluster.lease.clone(), SYSTEM_NAMESPACE);
    let mut tasks = JoinSet::new();
    loop {
        let changed = tokio::select! {
            changed = manager.changed() => changed,
            turn = looked_at(&leases, &cluster.replica, !tasks.is_empty()) => {
                // Nothing is written any more before another one may.
                tasks.shutdown().await;
                return turn;
            }
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
                return Turn::Failed(error.to_string());
            }
        }
    }
}

/// Looks at the Lease until it is this replica's turn to take it or, where it `leads`, to hand it over. Who waits while an
/// older version leads asks for it.
async fn looked_at(leases: &Api<Lease>, replica: &str, leads: bool) -> Turn {
    loop {
        tokio::time::sleep(limits::LEASE_LOOKED_AT).await;
        let Ok(lease) = call(leases.get(CONTROL_PLANE)).await else {
            continue;
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let wanted = lease.metadata.annotations.as_ref().and_then(|all| all.get(WANTED_BY)).map(String::as_str);
        if leads {
            if let Some(by) = wanted.filter(|by| goes_before(by, replica)) {
                return Turn::Wanted(by.to_owned());
            }
        } else if holder.is_empty() || holder == replica {
            return Turn::Free;
        } else if goes_before(replica, holder)
            && !wanted.is_some_and(|by| goes_before(by, holder) && !goes_before(replica, by))
            // What fails is tried again at the next look.
            && ask_for(leases, &lease, replica).await.is_ok()
        {
            tracing::info!(holder = cut(holder.to_owned()), "an older version leads: it is asked for the Lease");
        }
    }
}

/// Whether one replica is of a newer version than another.
fn goes_before(one: &str, other: &str) -> bool {
    is_newer(version_of(one), version_of(other))
}

async fn ask_for(leases: &Api<Lease>, found: &Lease, replica: &str) -> Result<(), ApiError> {
    let patch = json!({"metadata": {"resourceVersion": found.resource_version(), "annotations": {WANTED_BY: replica}}});
    call(leases.patch(CONTROL_PLANE, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    Ok(())
}

/// Hands the Lease over. It runs out as ever where the other one is gone by now. Whatever has changed meanwhile stays.
async fn hand_over(leases: &Api<Lease>, replica: &str, to: &str) -> Result<(), ApiError> {
    let lease = call(leases.get(CONTROL_PLANE)).await?;
    if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) != Some(replica) {
        return Ok(());
    }
    let now = MicroTime(Timestamp::now());
    let patch = json!({
        "metadata": {"resourceVersion": lease.resource_version(), "annotations": {WANTED_BY: null}},
        "spec": {"holderIdentity": to, "acquireTime": now, "renewTime": now,
            "leaseDurationSeconds": limits::LEASE.as_secs()},
    });
    call(leases.patch(CONTROL_PLANE, &PatchParams::default(), &Patch::Merge(&patch))).await?;
    Ok(())
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
        Some(holder) => return Err(format!("it is held by {}", cut(holder.to_owned()))),
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
    use serde_json::Value;

    use super::{
        super::testing::{Answer, Asked, fake},
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

    /// What a replica does that looks at a Lease with this holder and wish, within a minute.
    async fn looks(replica: &str, holder: &str, wanted: Option<&str>) -> (Option<Turn>, Vec<Value>) {
        let mut stored = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": CONTROL_PLANE, "resourceVersion": "7"}, "spec": {"holderIdentity": holder}});
        if let Some(wanted) = wanted {
            stored["metadata"]["annotations"] = json!({WANTED_BY: wanted});
        }
        let (client, seen) = fake(move |asked| {
            if asked.method == "PATCH" {
                stored["metadata"]["annotations"] = asked.json()["metadata"]["annotations"].clone();
            }
            Answer::json(200, &stored)
        });
        let leases = Api::namespaced(client, SYSTEM_NAMESPACE);
        let looking = looked_at(&leases, replica, replica == holder);
        let turn = tokio::time::timeout(Duration::from_secs(60), looking).await.ok();
        let written = seen.lock().unwrap().iter().filter(|asked| asked.method == "PATCH").map(Asked::json).collect();
        (turn, written)
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_an_older_version_asks_it_once_for_the_lease() {
        for wanted in [None, Some("gone_0.1.5_1"), Some("older_0.0.1_1"), Some("odd")] {
            let (turn, written) = looks("b_0.2.0_1", "a_0.1.0_1", wanted).await;
            // One that the older version would hand the Lease over to, and that is older than this one, is no hindrance.
            assert!(turn.is_none());
            assert_eq!(written.len(), 1, "{wanted:?}");
            assert_eq!(
                written[0]["metadata"],
                json!({"resourceVersion": "7", "annotations": {WANTED_BY: "b_0.2.0_1"}})
            );
        }
        for (holder, wanted) in
            [("a_0.1.0_1", Some("c_0.2.0_1")), ("a_0.2.0_1", None), ("a_0.3.0_1", None), ("a_1", None)]
        {
            let (turn, written) = looks("b_0.2.0_1", holder, wanted).await;
            assert!(turn.is_none() && written.is_empty(), "{holder} {wanted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_hears_of_newer_versions_alone() {
        let (turn, _) = looks("a_0.1.0_1", "a_0.1.0_1", Some("b_0.2.0_1")).await;
        assert!(matches!(turn, Some(Turn::Wanted(by)) if by == "b_0.2.0_1"));
        for wanted in [None, Some("b_0.1.0_2"), Some("b_0.0.9_2"), Some("b_latest_2"), Some("")] {
            assert!(looks("a_0.1.0_1", "a_0.1.0_1", wanted).await.0.is_none(), "{wanted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_free_or_handed_over_is_taken() {
        assert!(matches!(looks("a_0.1.0_1", "", None).await.0, Some(Turn::Free)));
        let stored = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": CONTROL_PLANE}, "spec": {"holderIdentity": "b_0.2.0_1"}});
        let (client, _) = fake(move |_| Answer::json(200, &stored));
        let turn = looked_at(&Api::namespaced(client, SYSTEM_NAMESPACE), "b_0.2.0_1", false).await;
        assert!(matches!(turn, Turn::Free));
    }

    #[tokio::test]
    async fn a_lease_is_handed_over_by_its_holder_alone_and_only_as_it_was_read() {
        for (holder, given) in [("a", true), ("b", false)] {
            let stored = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": CONTROL_PLANE, "resourceVersion": "7"}, "spec": {"holderIdentity": holder}});
            let (client, seen) = fake(move |_| Answer::json(200, &stored));
            hand_over(&Api::namespaced(client, SYSTEM_NAMESPACE), "a", "b_0.2.0_1").await.unwrap();
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), if given { 2 } else { 1 });
            if given {
                let patch = seen[1].json();
                assert_eq!(patch["metadata"], json!({"resourceVersion": "7", "annotations": {WANTED_BY: null}}));
                assert_eq!(patch["spec"]["holderIdentity"], "b_0.2.0_1");
                let handed: Lease = serde_json::from_value(json!({"metadata": {}, "spec": patch["spec"]})).unwrap();
                assert!(left(&handed, "b_0.2.0_1", SystemTime::now()).unwrap() > Duration::from_secs(20));
            }
        }
    }

    fn lease(spec: Value) -> Lease {
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
