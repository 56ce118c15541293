//! Events about pods: those that should be meshed and are not, and those whose proxies are in trouble.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use byrnie_proto::mesh::v1::ProxyStatus;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::{Api, Client};

use super::{
    client::{Cluster, call},
    events::Events,
    writer::{Failures, Writer},
};
use crate::{
    journal::unix,
    limits,
    model::{Model, PodFacts},
    plane::Plane,
};

/// Tells on a namespace which of its pods should be meshed and are not; the leader's.
pub(super) struct Unmeshed {
    client: Client,
    events: Events,
}

impl Unmeshed {
    pub(super) fn new(cluster: &Cluster, clock: byrnie_identity::Clock) -> Self {
        Self { client: cluster.client.clone(), events: Events::new(cluster, clock) }
    }
}

impl Writer for Unmeshed {
    const WHAT: &'static str = "events on namespaces";
    const EVERY: Duration = limits::EVENT_AGAIN;

    async fn pass(&mut self, plane: &Plane) -> Failures {
        let mut failures = Failures::default();
        for (namespace, workloads) in unmeshed(&plane.model.load_full()) {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            let object = format!("Namespace {namespace}");
            let found = failures.keep(&object, call(namespaces.get_metadata_opt(&namespace)).await);
            let Some(found) = found.flatten() else {
                continue;
            };
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Namespace".to_owned()),
                // So that it stands among the namespace's own events.
                namespace: Some(namespace.clone()),
                name: Some(namespace.clone()),
                uid: found.metadata.uid,
                ..ObjectReference::default()
            };
            let note = note(&namespace, &workloads);
            failures.keep(&object, self.events.warn(&about, "PodsNotMeshed", "Observe", note).await);
        }
        failures
    }
}

fn unmeshed(model: &Model) -> BTreeMap<String, BTreeSet<String>> {
    let mut of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let missing =
        |pod: &&Arc<PodFacts>| pod.enrolled && !pod.injected && !pod.host_network && !pod.finished && !pod.terminating;
    for pod in model.pods().filter(missing) {
        of.entry(pod.namespace.to_string()).or_default().insert(pod.workload.to_string());
    }
    of
}

fn note(namespace: &str, workloads: &BTreeSet<String>) -> String {
    let named: Vec<&str> = workloads.iter().take(NAMED).map(String::as_str).collect();
    let more = workloads.len().saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(
        "the namespace is in the mesh, and pods of {}{more} have no proxy: they were made before, and other pods can't \
         call them; restart them (kubectl -n {namespace} rollout restart deployment NAME), or annotate them \
         byrnie.dev/inject: \"false\"",
        named.join(", ")
    )
}

/// Workloads that a note names.
const NAMED: usize = 5;

/// Tells on pods what their proxies report, for as long as the control plane runs. Every replica does, for the proxies that
/// are connected to it.
pub(super) async fn tell_of_proxies(cluster: Cluster, plane: Arc<Plane>) {
    let mut events = Events::new(&cluster, plane.clock.clone());
    let mut captured: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        tokio::time::sleep(limits::PROXIES_LOOKED_AT).await;
        let model = plane.model.load_full();
        let now = unix(plane.clock.wall());
        let ttl = i64::try_from(plane.ttl().as_secs()).unwrap_or(i64::MAX);
        let reported = plane.proxies.statuses();
        captured.retain(|uid| reported.iter().any(|(reporter, _)| reporter == uid));
        for (uid, status) in reported {
            let Some(pod) = model.pod_by_uid(&uid).filter(|pod| !pod.terminating && !pod.finished) else {
                continue;
            };
            let lost = !status.captured && captured.contains(&uid);
            if status.captured {
                captured.insert(uid.clone());
            }
            for (reason, note) in troubles(&status, lost, now, ttl) {
                if let Err(error) = events.warn(&about(pod), reason, "Report", note).await {
                    tracing::warn!(pod = pod.place(), %error, reason, "an event can't be written");
                }
            }
        }
    }
}

/// What is wrong with a proxy, as the reason and the note of an event.
fn troubles(status: &ProxyStatus, lost: bool, now: i64, ttl: i64) -> Vec<(&'static str, String)> {
    let mut troubles = Vec::new();
    if lost {
        let why = if status.not_ready_reason.is_empty() { "" } else { ": " };
        troubles.push((
            "CaptureLost",
            format!(
                "the pod's connections no longer pass its proxy, which is not ready any more{why}{}; restart the pod, and \
                 look for what changes its nf_tables rules",
                status.not_ready_reason
            ),
        ));
    }
    let left = status.svid_not_after.saturating_sub(now);
    if status.svid_not_after > 0 && left <= 0 {
        let note =
            "the proxy's certificate has expired, and it refuses all connections; its log says why it is not renewed";
        troubles.push(("CertificateExpired", note.to_owned()));
    } else if status.svid_not_after > 0 && left < ttl / 4 {
        // Renewal is due at half of its life.
        let note = "the proxy's certificate should have been renewed and was not; its log says why. When it expires, \
                    the proxy refuses all connections";
        troubles.push(("CertificateNotRenewed", note.to_owned()));
    }
    troubles
}

fn about(pod: &PodFacts) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_in_trouble_when_capture_is_lost_or_its_certificate_is_not_renewed_in_time() {
        let status = |left: i64| ProxyStatus { svid_not_after: 1000 + left, captured: true, ..ProxyStatus::default() };
        let reasons = |status: &ProxyStatus, lost| {
            troubles(status, lost, 1000, 400).iter().map(|(reason, _)| *reason).collect::<Vec<_>>()
        };
        assert!(reasons(&status(200), false).is_empty());
        assert_eq!(reasons(&status(99), false), ["CertificateNotRenewed"]);
        assert_eq!(reasons(&status(0), false), ["CertificateExpired"]);
        assert_eq!(reasons(&status(200), true), ["CaptureLost"]);
        assert!(reasons(&ProxyStatus::default(), false).is_empty());
    }

    #[test]
    fn a_note_names_a_few_workloads_and_counts_the_others() {
        let many = (0..9).map(|number| format!("shop/w{number}")).collect();
        let told = note("shop", &many);
        assert!(told.contains("shop/w4") && !told.contains("shop/w5") && told.contains("4 more"), "{told}");
    }
}
