//! The proxies: who is connected, what they report, what they refused.

mod merge;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use byrnie_proto::mesh::v1::{
    Direction, Edge, EgressRecord, IssuedIdentity, Nack, ObservedProxy, ProxyStatus, Refusal, Report,
};
use tokio::sync::oneshot;

use crate::{journal::Journal, limits, model::Model};

/// Shared by all streams.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    of: BTreeMap<Arc<str>, Proxy>,
    refusals: VecDeque<Seen>,
    connections: u64,
}

#[derive(Debug, Default)]
struct Proxy {
    /// The connection's number, and how to end it.
    connected: Option<(u64, oneshot::Sender<()>)>,
    version: String,
    /// The certificate that its stream was opened with.
    presented: Option<IssuedIdentity>,
    report: Option<Report>,
    nacks: BTreeMap<String, String>,
}

/// A refusal, and the UID of the pod whose proxy saw it; empty: the control plane itself.
#[derive(Debug, Clone)]
struct Seen {
    by: Arc<str>,
    refusal: Refusal,
}

/// One stream's place in the list; given up when dropped.
pub(crate) struct Connection {
    proxies: Arc<Proxies>,
    uid: Arc<str>,
    number: u64,
    replaced: oneshot::Receiver<()>,
}

impl Proxies {
    /// Enters a stream; an older one of the same pod is ended. A proxy that was restarted must not wait until its
    /// predecessor's connection is found dead.
    pub(crate) fn connect(
        self: &Arc<Self>,
        uid: &Arc<str>,
        version: &str,
        presented: Option<IssuedIdentity>,
    ) -> Connection {
        let mut state = self.lock();
        state.connections += 1;
        let number = state.connections;
        let (end, replaced) = oneshot::channel();
        let proxy = state.of.entry(uid.clone()).or_default();
        proxy.connected = Some((number, end));
        proxy.version = cut(version.to_owned());
        proxy.presented = presented;
        // What its predecessor could not take it is told anew.
        proxy.nacks.clear();
        Connection { proxies: self.clone(), uid: uid.clone(), number, replaced }
    }

    /// The proxy took it, or no longer asks for it.
    pub(crate) fn acknowledged(&self, uid: &str, name: &str) {
        if let Some(proxy) = self.lock().of.get_mut(uid) {
            proxy.nacks.remove(name);
        }
    }

    pub(crate) fn not_acknowledged(&self, uid: &str, nack: Nack) {
        if let Some(proxy) = self.lock().of.get_mut(uid)
            && (proxy.nacks.len() < limits::NACKS || proxy.nacks.contains_key(&nack.name))
        {
            proxy.nacks.insert(cut(nack.name), cut(nack.reason));
        }
    }

    /// Takes a report in the place of the one before.
    pub(crate) fn report(&self, uid: &Arc<str>, mut report: Report) {
        bound(&mut report);
        let mut state = self.lock();
        let state = &mut *state;
        let Some(proxy) = state.of.get_mut(uid) else {
            return;
        };
        let before = proxy.report.as_ref().map(|report| report.refusals.as_slice()).unwrap_or_default();
        for refusal in report.refusals.iter().filter(|refusal| !before.contains(refusal)) {
            remember(&mut state.refusals, Seen { by: uid.clone(), refusal: refusal.clone() });
        }
        proxy.report = Some(report);
    }

    /// Remembers what the control plane itself refused.
    pub(crate) fn refused_here(&self, peer: &SocketAddr, cause: &'static str, reason: String, at: SystemTime) {
        let millis = at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let refusal = Refusal {
            source: peer.ip().to_canonical().to_string(),
            destination: "byrnie-system/byrnie-control-plane".to_owned(),
            cause: cause.to_owned(),
            reason: cut(reason),
            at_ms: i64::try_from(millis).unwrap_or(i64::MAX),
            direction: Direction::Inbound.into(),
        };
        remember(&mut self.lock().refusals, Seen { by: Arc::from(""), refusal });
    }

    /// Forgets pods that are gone and not connected.
    pub(crate) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().of.retain(|uid, proxy| proxy.connected.is_some() || exists(uid));
    }

    /// All edges, both ends' reports merged.
    pub(crate) fn edges(&self, model: &Model) -> Vec<Edge> {
        merge::edges(model, &self.reports(model))
    }

    /// All egress records, those of one workload's pods added up.
    pub(crate) fn egress(&self, model: &Model) -> Vec<EgressRecord> {
        merge::egress(&self.reports(model))
    }

    /// The certificates that the connected proxies presented.
    pub(crate) fn presented(&self) -> Vec<IssuedIdentity> {
        let state = self.lock();
        let connected = state.of.values().filter(|proxy| proxy.connected.is_some());
        connected.filter_map(|proxy| proxy.presented.clone()).collect()
    }

    /// What the connected proxies said last of themselves.
    pub(crate) fn statuses(&self) -> Vec<(Arc<str>, ProxyStatus)> {
        let state = self.lock();
        let connected = state.of.iter().filter(|(_, proxy)| proxy.connected.is_some());
        let statuses = connected.filter_map(|(uid, proxy)| Some((uid.clone(), proxy.report.as_ref()?.status.clone()?)));
        statuses.collect()
    }

    /// The last refusals, oldest first.
    pub(crate) fn refusals(&self, model: &Model) -> Vec<Refusal> {
        let seen: Vec<Seen> = self.lock().refusals.iter().cloned().collect();
        let mut refusals: Vec<Refusal> = seen.into_iter().map(|seen| named(model, seen)).collect();
        refusals.sort_by_key(|refusal| refusal.at_ms);
        refusals
    }

    /// Every pod that is connected or was issued a certificate.
    pub(crate) fn observed(&self, model: &Model, journal: &Journal) -> Vec<ObservedProxy> {
        let meshed = journal.meshed_pods();
        let state = self.lock();
        let pods = model.pods().filter(|pod| meshed.contains_key(&pod.uid) || state.of.contains_key(&pod.uid));
        let observed = pods.map(|pod| {
            let proxy = state.of.get(&pod.uid);
            let status = proxy.and_then(|proxy| proxy.report.as_ref()).and_then(|report| report.status.clone());
            let nacks =
                proxy.map(|proxy| proxy.nacks.iter().map(|(name, reason)| format!("{name}: {reason}")).collect());
            ObservedProxy {
                workload: pod.workload.to_string(),
                pod_uid: pod.uid.to_string(),
                connected: proxy.is_some_and(|proxy| proxy.connected.is_some()),
                status,
                nacks: nacks.unwrap_or_default(),
                addresses: pod.addresses.iter().map(ToString::to_string).collect(),
                terminating: pod.terminating,
            }
        });
        observed.collect()
    }

    /// The last report of every pod, with the pod's workload.
    fn reports(&self, model: &Model) -> Vec<(Arc<str>, Report)> {
        let state = self.lock();
        let reports = state.of.iter().filter_map(|(uid, proxy)| {
            let pod = model.pod_by_uid(uid)?;
            Some((pod.workload.clone(), proxy.report.clone()?))
        });
        reports.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Returns when a newer stream of the same pod has come.
    pub(crate) async fn replaced(&mut self) {
        // The sender is dropped, never used.
        let _ = (&mut self.replaced).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxies.lock().of.get_mut(&self.uid)
            && proxy.connected.as_ref().is_some_and(|(number, _)| *number == self.number)
        {
            proxy.connected = None;
        }
    }
}

/// A proxy speaks for its own pod only: its own end of what it saw is what we know, not what it says.
fn named(model: &Model, seen: Seen) -> Refusal {
    let mut refusal = seen.refusal;
    refusal.source = place(model, &refusal.source);
    refusal.destination = place(model, &refusal.destination);
    if let Some(pod) = model.pod_by_uid(&seen.by) {
        match refusal.direction() {
            Direction::Inbound => refusal.destination = pod.workload.to_string(),
            Direction::Outbound => refusal.source = pod.workload.to_string(),
            Direction::Unspecified => {}
        }
    }
    refusal
}

/// The workload at an address, with or without a port; what is none stays as it is.
fn place(model: &Model, text: &str) -> String {
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    let pod = address.ok().and_then(|address| model.pod_by_address(address.to_canonical()));
    pod.map_or_else(|| text.to_owned(), |pod| pod.workload.to_string())
}

fn remember(refusals: &mut VecDeque<Seen>, seen: Seen) {
    if refusals.len() >= limits::REFUSALS {
        refusals.pop_front();
    }
    refusals.push_back(seen);
}

/// Keeps a proxy from filling our memory: more than the bounds is not kept.
fn bound(report: &mut Report) {
    report.edges.truncate(limits::REPORT_EDGES);
    // Nobody knows whose word the others are.
    report.refusals.retain(|refusal| refusal.direction() != Direction::Unspecified);
    report.refusals.truncate(limits::REPORT_REFUSALS);
    report.egress.truncate(limits::REPORT_EGRESS);
    for edge in &mut report.edges {
        for text in [
            &mut edge.source,
            &mut edge.destination,
            &mut edge.source_id,
            &mut edge.destination_id,
            &mut edge.tls_version,
            &mut edge.key_exchange,
            &mut edge.cipher,
        ] {
            *text = cut(std::mem::take(text));
        }
    }
    for refusal in &mut report.refusals {
        for text in [&mut refusal.source, &mut refusal.destination, &mut refusal.cause, &mut refusal.reason] {
            *text = cut(std::mem::take(text));
        }
    }
    for record in &mut report.egress {
        for text in [&mut record.source, &mut record.dialled, &mut record.rule] {
            *text = cut(std::mem::take(text));
        }
    }
    if let Some(status) = &mut report.status {
        for text in
            [&mut status.version, &mut status.not_ready_reason, &mut status.svid_serial, &mut status.admin_socket]
        {
            *text = cut(std::mem::take(text));
        }
    }
}

pub(crate) fn cut(text: String) -> String {
    cut_to(text, limits::REPORT_STRING_BYTES)
}

/// Cut to at most `bytes`, between two characters.
pub(crate) fn cut_to(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let mut end = bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
