//! The open application connections of this proxy. Each is registered before it is authorized, and looked at again
//! whenever an identity, a bundle, a policy or a destination changes, and twice a second for what time alone changes: so
//! there is no moment in which a change can miss a connection, and no timer per connection.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Waker};

use byrnie_identity::{PeerIdentity, SpiffeId};
use byrnie_policy::{EgressRequest, Peer, Request, evaluate, evaluate_egress};
use byrnie_proto::tunnel::v1::ResetCode;
use byrnie_redirect::Leg;
use tokio::sync::watch;

use crate::limits::{HALF_CLOSED, SETTLE, SWEEP};
use crate::model::{Destination, DestinationKind, Endpoint, Meshed};
use crate::shared::Shared;

pub mod unreachable;

/// What a connection rests on: the facts that are looked at again when something changes.
#[derive(Clone, Debug)]
pub(crate) enum Grounds {
    /// A stream of a tunnel that a mesh peer dialled, to this port of the pod.
    Inbound { port: u16 },
    /// A TLS client outside of the mesh, at this port of the pod.
    Ingress { port: u16 },
    /// A client that proved nothing, at this port of the pod.
    InboundPlaintext { source: IpAddr, port: u16 },
    /// A stream of a tunnel to the endpoint that must be `expected`, dialled by the application as `dialled`.
    Outbound { dialled: SocketAddr, endpoint: SocketAddr, expected: SpiffeId },
    /// Plaintext to an endpoint inside the cluster.
    OutboundPlaintext { dialled: SocketAddr, endpoint: SocketAddr },
    /// A connection out of the cluster.
    Egress { dialled: SocketAddr, destination: SocketAddr },
}

/// Why a connection is cut.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    /// What the peer is told.
    pub(crate) code: ResetCode,
    /// A label from a closed set.
    pub(crate) cause: &'static str,
    /// For the log.
    pub(crate) reason: String,
}

const PROVE: u8 = 1;
const GO_AWAY: u8 = 2;

/// One open application connection.
pub(crate) struct Stream {
    grounds: Grounds,
    /// The verified peer; `None` on plaintext legs.
    peer: Mutex<Option<PeerIdentity>>,
    /// Its TCP connection to another machine, once it is known.
    leg: OnceLock<Leg>,
    cut: OnceLock<Cut>,
    /// What the connection's own task is asked to do.
    asked: AtomicU8,
    waker: Mutex<Option<Waker>>,
    half_closed: AtomicBool,
    /// The sweep in which a byte moved last.
    active: AtomicU64,
}

impl Stream {
    /// Its TCP connection to another machine; the other one ends at an application of this pod, whose kernel can't vanish.
    /// `None`: the connection is gone already, as its reader will see.
    pub(crate) fn carried_by(&self, leg: Option<Leg>) {
        if let Some(leg) = leg {
            let _ = self.leg.set(leg);
        }
    }

    /// Makes `cx` the task that is woken when something is asked of this connection.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match waker.as_mut() {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// Why this connection has to end, if it has.
    pub(crate) fn cut(&self) -> Option<&Cut> {
        self.cut.get()
    }

    /// Ends when the connection has to.
    pub(crate) async fn cut_off(&self) -> Cut {
        std::future::poll_fn(|cx| {
            self.register(cx);
            self.cut().cloned().map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }

    /// Whether the connection is asked to prove a renewed SVID; the question is answered by asking.
    pub(crate) fn take_prove(&self) -> bool {
        self.take(PROVE)
    }

    /// Whether the connection is asked to say `GOAWAY`.
    pub(crate) fn take_go_away(&self) -> bool {
        self.take(GO_AWAY)
    }

    /// The peer has proved a renewed identity.
    pub(crate) fn set_peer(&self, peer: PeerIdentity) {
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer);
    }

    pub(crate) fn set_half_closed(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
    }

    fn take(&self, what: u8) -> bool {
        self.asked.load(Ordering::Relaxed) & what != 0 && self.asked.fetch_and(!what, Ordering::AcqRel) & what != 0
    }

    fn ask(&self, what: u8) {
        self.asked.fetch_or(what, Ordering::AcqRel);
        self.wake();
    }

    fn cut_with(&self, cut: Cut) {
        if self.cut.set(cut).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// The registry of one process.
#[derive(Default)]
pub struct Streams {
    next: AtomicU64,
    sweep: AtomicU64,
    streams: Mutex<HashMap<u64, Arc<Stream>>>,
    /// Connections that have reached the pod and not ended: streams, and what is none yet or none any more.
    arrived: AtomicU64,
    /// The TCP connections whose peers were found to be gone at the last look.
    unreachable: watch::Sender<HashSet<Leg>>,
}

/// A registered connection; it leaves the registry when this is dropped.
pub(crate) struct Registered<'a> {
    streams: &'a Streams,
    number: u64,
    stream: Arc<Stream>,
}

impl Registered<'_> {
    /// A byte has moved.
    pub(crate) fn touch(&self) {
        self.stream.active.store(self.streams.sweep.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Looks at the connection as it stands now; called once it is registered.
    ///
    /// # Errors
    /// Why it must not go on.
    pub(crate) fn check(&self, shared: &Shared) -> Result<(), Cut> {
        check(&self.stream, shared, &mut Decided::default())
    }
}

impl std::ops::Deref for Registered<'_> {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.number);
    }
}

/// A connection that reached the pod; it counts until this is dropped.
pub(crate) struct Arrived(Arc<Shared>);

impl Arrived {
    /// Counts one.
    pub(crate) fn of(shared: &Arc<Shared>) -> Arrived {
        shared.streams.arrived.fetch_add(1, Ordering::Relaxed);
        Arrived(Arc::clone(shared))
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        self.0.streams.arrived.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Streams {
    /// No connections yet.
    pub fn new() -> Streams {
        Streams::default()
    }

    /// How many connections are open.
    pub fn open(&self) -> u64 {
        self.lock().len() as u64
    }

    /// How many connections that reached the pod have not ended.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Registers a connection. To be followed by [`Registered::check`]: what changed before is seen there, what changes
    /// after is seen by the next sweep.
    pub(crate) fn register(&self, grounds: Grounds, peer: Option<PeerIdentity>) -> Registered<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream {
            grounds,
            peer: Mutex::new(peer),
            leg: OnceLock::new(),
            cut: OnceLock::new(),
            asked: AtomicU8::new(0),
            waker: Mutex::new(None),
            half_closed: AtomicBool::new(false),
            active: AtomicU64::new(self.sweep.load(Ordering::Relaxed)),
        });
        self.lock().insert(number, stream.clone());
        Registered { streams: self, number, stream }
    }

    /// Cuts every open connection, for a proxy that ends.
    pub(crate) fn cut_all(&self, reason: &str) {
        for stream in self.all() {
            stream.cut_with(Cut { code: ResetCode::Shutdown, cause: "shutdown", reason: reason.to_owned() });
        }
    }

    /// How many sweeps were made.
    #[cfg(test)]
    pub(crate) fn sweeps(&self) -> u64 {
        self.sweep.load(Ordering::Relaxed)
    }

    /// Lets as many sweeps pass as `time` has.
    #[cfg(test)]
    pub(crate) fn pass(&self, time: std::time::Duration) {
        self.sweep.fetch_add((time.as_millis() / SWEEP.as_millis()) as u64, Ordering::Relaxed);
    }

    fn all(&self) -> Vec<Arc<Stream>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at all connections whenever something has changed, and on every sweep. Runs once per process, for ever.
pub async fn supervise(shared: Arc<Shared>) {
    let mut certificates = shared.certificates.changed();
    let mut control = shared.control.changed();
    let mut discovery = shared.discovery.changed();
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut generation = None;
    let mut draining = false;
    loop {
        let changed = tokio::select! {
            _ = tick.tick() => None,
            changed = certificates.changed() => Some(changed),
            changed = control.changed() => Some(changed),
            changed = discovery.changed() => Some(changed),
            () = shared.drain.draining(), if !draining => Some(Ok(())),
        };
        let now = match changed {
            // The one count that is a measure of time.
            None => shared.streams.sweep.fetch_add(1, Ordering::Relaxed) + 1,
            Some(Ok(())) => {
                // Changes come in flocks, and each sweep looks at every stream.
                tokio::time::sleep(SETTLE).await;
                shared.streams.sweep.load(Ordering::Relaxed)
            }
            Some(Err(_)) => return,
        };
        let current = shared.certificates.current().map(|generation| generation.number);
        let renewed = current != generation;
        generation = current;
        let drain_began = shared.drain.is_draining() && !draining;
        draining |= drain_began;
        let mut decided = Decided::default();
        for stream in shared.streams.all() {
            if let Err(cut) = check(&stream, &shared, &mut decided).and_then(|()| not_forgotten(&stream, now)) {
                stream.cut_with(cut);
                continue;
            }
            if renewed {
                stream.ask(PROVE);
            }
            if drain_began {
                stream.ask(GO_AWAY);
            }
        }
    }
}

/// A connection of which one side has ended must move bytes, or it is nobody's any more.
fn not_forgotten(stream: &Stream, now: u64) -> Result<(), Cut> {
    let bound = (HALF_CLOSED.as_millis() / SWEEP.as_millis().max(1)) as u64;
    let silent = now.saturating_sub(stream.active.load(Ordering::Relaxed));
    if stream.half_closed.load(Ordering::Relaxed) && silent > bound {
        let reason = format!("half-closed for {} s without a byte", HALF_CLOSED.as_secs());
        return Err(Cut { code: ResetCode::Idle, cause: "half-closed", reason });
    }
    Ok(())
}

/// What policy said in one look at the connections. A peer has many, and thousands of rules cost as much for each of them:
/// by certificate and port, and whether it came as a proxy.
#[derive(Default)]
struct Decided(HashMap<([u8; 32], u16, bool), Result<(), Cut>>);

impl Decided {
    fn once(
        &mut self,
        (peer, port, proxy): (&PeerIdentity, u16, bool),
        decide: impl FnOnce() -> Result<(), Cut>,
    ) -> Result<(), Cut> {
        self.0.entry((peer.leaf_fingerprint(), port, proxy)).or_insert_with(decide).clone()
    }
}

fn check(stream: &Stream, shared: &Shared, decided: &mut Decided) -> Result<(), Cut> {
    let peer = stream.peer.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(peer) = &peer {
        shared.certificates.verifier().check_still_valid(peer).map_err(|error| Cut {
            code: ResetCode::IdentityExpired,
            cause: error.cause.as_str(),
            reason: format!("the peer's identity holds no longer: {error}"),
        })?;
    }
    let own = shared.control.own().ok_or_else(|| denied("no-policy", "this proxy has no policies yet".into()))?;
    let now = shared.clock.wall();
    let inbound = |peer: Peer<'_>, port: u16| {
        let decision = evaluate(&own.policies, &Request { peer, port, now });
        if decision.allowed { Ok(()) } else { Err(denied(decision.reason.as_str(), decision.to_string())) }
    };
    match (&stream.grounds, &peer) {
        (Grounds::Inbound { port }, Some(peer)) => {
            decided.once((peer, *port, true), || inbound(Peer::Mesh(peer), *port))
        }
        (Grounds::Ingress { port }, Some(peer)) => {
            decided.once((peer, *port, false), || inbound(Peer::Ingress(peer), *port))
        }
        (Grounds::InboundPlaintext { source, port }, _) => inbound(Peer::Plaintext(*source), *port),
        (Grounds::Outbound { dialled, endpoint, expected }, Some(_)) => match meshed(shared, *dialled, *endpoint) {
            Some(Meshed::Yes(id)) if id != *expected => {
                Err(denied("wrong-identity", format!("{endpoint} is {id} now, and was {expected}")))
            }
            _ => Ok(()),
        },
        (Grounds::OutboundPlaintext { dialled, endpoint }, _) => match meshed(shared, *dialled, *endpoint) {
            Some(Meshed::Yes(id)) => Err(denied("meshed-now", format!("{endpoint} is meshed now, as {id}"))),
            Some(Meshed::EnrolledUnmeshed { permissive: true, until }) if until.is_none_or(|end| now < end) => Ok(()),
            Some(Meshed::EnrolledUnmeshed { .. }) => {
                Err(denied("plaintext-refused", format!("no Permissive covers plaintext to {endpoint} any longer")))
            }
            Some(Meshed::External) => {
                Err(denied("external-now", format!("{endpoint} counts as outside of the cluster now")))
            }
            Some(Meshed::NotEnrolled) | None => Ok(()),
        },
        (Grounds::Egress { dialled, destination }, _) => {
            if let Some(known) = shared.discovery.peek(*dialled)
                && !is_outside(&known, *destination)
            {
                return Err(denied("inside-now", format!("{destination} counts as inside of the cluster now")));
            }
            let request =
                EgressRequest { source: &own.spiffe_id, destination: destination.ip(), port: destination.port() };
            let decision = evaluate_egress(&own.policies, &request);
            if decision.allowed { Ok(()) } else { Err(denied(decision.reason.as_str(), decision.to_string())) }
        }
        (Grounds::Inbound { .. } | Grounds::Ingress { .. } | Grounds::Outbound { .. }, None) => {
            Err(denied("no-identity", "a secured connection without a peer".into()))
        }
    }
}

/// Whether connections to `destination` leave the cluster. What an egress policy allows goes in plaintext: so it must not
/// reach a pod of which the control plane had not heard when the connection began.
fn is_outside(known: &Destination, destination: SocketAddr) -> bool {
    let external = |endpoint: &Endpoint| endpoint.address == destination && endpoint.meshed == Meshed::External;
    known.kind == DestinationKind::External || known.endpoints.iter().any(external)
}

/// What the control plane says of `endpoint` now, if it still says anything.
fn meshed(shared: &Shared, dialled: SocketAddr, endpoint: SocketAddr) -> Option<Meshed> {
    let destination = shared.discovery.peek(dialled)?;
    destination.endpoints.iter().find(|known| known.address == endpoint).map(|known| known.meshed.clone())
}

fn denied(cause: &'static str, reason: String) -> Cut {
    Cut { code: ResetCode::PolicyDenied, cause, reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::model::AppProtocol;
    use crate::test_support::TestMesh;

    #[tokio::test]
    async fn policy_is_asked_once_for_all_connections_of_a_peer_to_a_port() {
        let mesh = TestMesh::new();
        let shared = mesh.proxy("orders");
        let peer = |account| {
            let svid = mesh.svid(account, std::time::Duration::from_secs(60));
            shared.certificates.verifier().verify(svid.chain()).unwrap()
        };
        let [web, renewed] = [peer("web"), peer("web")];
        let mut decided = Decided::default();
        let mut questions = |grounds, peer: &PeerIdentity| {
            let registered = shared.streams.register(grounds, Some(peer.clone()));
            let allowed = check(&registered, &shared, &mut decided).is_ok();
            (decided.0.len(), allowed)
        };
        assert_eq!(questions(Grounds::Inbound { port: 80 }, &web), (1, true));
        assert_eq!(questions(Grounds::Inbound { port: 80 }, &web), (1, true));
        assert_eq!(questions(Grounds::Inbound { port: 81 }, &web), (2, true));
        // Who comes as no proxy needs an IngressPolicy.
        assert_eq!(questions(Grounds::Ingress { port: 80 }, &web), (3, false));
        assert_eq!(questions(Grounds::Inbound { port: 80 }, &web), (3, true));
        assert_eq!(questions(Grounds::Inbound { port: 80 }, &renewed), (4, true));
    }

    #[test]
    fn what_egress_let_out_stays_out_only_while_its_destination_is_outside() {
        let address: SocketAddr = "10.9.9.9:80".parse().unwrap();
        let endpoint = |meshed| Endpoint {
            address,
            weight: 1,
            zone: "".into(),
            workload: "".into(),
            pod_uid: "".into(),
            meshed,
            terminating: false,
        };
        let known = |kind, endpoints| Destination { kind, service: None, protocol: AppProtocol::Unknown, endpoints };
        assert!(is_outside(&known(DestinationKind::External, vec![]), address));
        assert!(is_outside(&known(DestinationKind::Service, vec![endpoint(Meshed::External)]), address));
        let meshed = Meshed::Yes(crate::test_support::id("db"));
        assert!(!is_outside(&known(DestinationKind::Pod, vec![endpoint(meshed)]), address));
        assert!(!is_outside(&known(DestinationKind::Pod, vec![endpoint(Meshed::NotEnrolled)]), address));
        assert!(!is_outside(&known(DestinationKind::UnknownInternal, vec![]), address));
    }
}
