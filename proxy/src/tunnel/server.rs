//! The server's end: accepts a tunnel from a peer that proves its identity, and serves its streams one after another.
//! Every stream is decided on anew, first; then the application is dialled; then the client hears `ACCEPT`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use byrnie_policy::{Authorized, Peer, Request, authorize};
use byrnie_proto::tunnel::{Role, v1};
use byrnie_redirect::OriginalDestination;
use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::certificates::Generation;
use crate::limits::{CLOSE_NOTIFY, SERVER_IDLE_TUNNEL};
use crate::model::{AppProtocol, OwnPod};
use crate::random;
use crate::shared::Shared;
use crate::sockets::{self, ConnectError};
use crate::streams::{Cut, Grounds, Registered};
use crate::telemetry::{Connection, Direction, EdgeKind};
use crate::tunnel::relay::{End, Relay};
use crate::tunnel::tls::{Tls, TlsError};
use crate::tunnel::{Heard, Tunnel, TunnelError};

/// Runs the server's handshake on `stream`, of which `read` was read already, and verifies the client, before `until`.
pub(crate) async fn accept(
    shared: &Shared,
    own: &Arc<Generation>,
    stream: TcpStream,
    read: Vec<u8>,
    until: Instant,
) -> Result<Box<Tunnel>, TunnelError> {
    let connection = UnbufferedServerConnection::new(own.server.clone()).map_err(TlsError::from)?;
    let mut tls = Tls::server(stream, connection, read);
    match tokio::time::timeout_at(until, tls.handshake()).await {
        Ok(result) => result?,
        Err(_) => return Err(TunnelError::Timeout("the TLS handshake took more than 5 s")),
    }
    tls.require_tunnel_alpn()?;
    let peer = shared.certificates.verifier().verify(tls.peer_chain().unwrap_or_default())?;
    Tunnel::new(tls, Role::Server, own, peer)
}

/// Serves the streams of `tunnel`, which was dialled to `dialled` from `source`, until one side ends it.
pub(crate) async fn serve(shared: &Shared, mut tunnel: Box<Tunnel>, source: SocketAddr, dialled: OriginalDestination) {
    let mut fresh = true;
    loop {
        let open = match next_open(shared, &mut tunnel).await {
            Ok(Some(open)) => open,
            Ok(None) => return tunnel.close().await,
            Err(error) => {
                tracing::debug!(%source, %error, "tunnel ended");
                return tunnel.reset(v1::ResetCode::ProtocolError).await;
            }
        };
        let mut connection = shared.telemetry.connection(Direction::Inbound, source, dialled.0);
        connection.kind(EdgeKind::Mesh);
        connection.source(source.ip().to_string().into(), Some(tunnel.peer().id().clone()));
        connection.reused(!fresh);
        if !open.service.is_empty() {
            connection.service(open.service.as_str().into());
        }
        drop(open);
        let outcome = serve_stream(shared, &mut tunnel, dialled, connection, &mut fresh).await;
        match outcome {
            Served::Reusable => {}
            Served::Ended(None) => return tunnel.close().await,
            Served::Ended(Some(code)) => return tunnel.reset(code).await,
        }
    }
}

/// Refuses the first stream of a tunnel whose peer has as many as it may, and ends it. `until`: when the peer must have
/// said what it wants.
pub(crate) async fn turn_away(shared: &Shared, mut tunnel: Box<Tunnel>, connection: Box<Connection>, until: Instant) {
    let reason = format!("{} has too many tunnels to this pod already", tunnel.peer().id());
    let cause = "too-many-tunnels";
    match tokio::time::timeout_at(until, next_open(shared, &mut tunnel)).await {
        Ok(Ok(Some(_))) => {
            let code = v1::RefuseCode::Overloaded;
            let refusal = Refusal { code, retryable: true, cause, reason, rule: None };
            let written = refuse(shared, &mut tunnel, connection, refusal);
            refused(&mut tunnel, written).await;
        }
        _ => connection.refuse(cause, reason),
    }
    tunnel.close().await;
}

/// Waits for the next `OPEN`. `None`: the tunnel is over, in order.
async fn next_open(shared: &Shared, tunnel: &mut Tunnel) -> Result<Option<v1::Open>, TunnelError> {
    loop {
        if shared.drain.is_draining() && tunnel.session.going_away().is_none() {
            tunnel.send(|session, out| session.go_away(out))?;
        }
        let going_away = tunnel.session.going_away().is_some();
        let bound = if going_away { CLOSE_NOTIFY } else { SERVER_IDLE_TUNNEL };
        let heard = std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = tunnel.tls.poll_flush(cx) {
                return Poll::Ready(Err(error.into()));
            }
            tunnel.poll_heard(cx, |_, _| false)
        });
        let heard = tokio::select! {
            heard = heard => heard?,
            () = shared.drain.draining(), if !going_away => continue,
            () = tokio::time::sleep(bound) => return Ok(None),
        };
        match heard {
            Heard::Open(open) => {
                let first = tunnel.session.wants_nonce();
                tunnel.peer_nonce(&open.nonce, first)?;
                return Ok(Some(open));
            }
            Heard::Reauth(reauth) => tunnel.renewed(&reauth, shared.certificates.verifier())?,
            Heard::Closed => return Ok(None),
            _ => return Err(tunnel.unexpected("a frame between streams")),
        }
    }
}

enum Served {
    /// The tunnel may serve another stream.
    Reusable,
    /// It may not; the code is what the peer has to be told, if anything.
    Ended(Option<v1::ResetCode>),
}

async fn serve_stream(
    shared: &Shared,
    tunnel: &mut Tunnel,
    dialled: OriginalDestination,
    mut connection: Box<Connection>,
    fresh: &mut bool,
) -> Served {
    let port = dialled.0.port();
    let registered = shared.streams.register(Grounds::Inbound { port }, Some(tunnel.peer().clone()));
    let (own, authorized) = match admit(shared, tunnel, &registered, port) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let written = refuse(shared, tunnel, connection, refusal);
            return refused(tunnel, written).await;
        }
    };
    connection.destination(own.workload.clone(), Some(own.spiffe_id.clone()));
    connection.decided(authorized.decision());
    let speaks_first = tunnel.has_data();
    // Boxed: what it takes to get in is given back when that is done.
    let application = match Box::pin(dial_application(shared, &authorized, dialled, speaks_first)).await {
        Ok(application) => application,
        Err(error) => {
            let written = refuse(shared, tunnel, connection, Refusal::application(&error));
            return refused(tunnel, written).await;
        }
    };
    registered.carried_by(tunnel.leg());
    let nonce = tunnel.fresh_nonce();
    if let Err(error) = tunnel.send(|session, out| session.accept(&v1::Accept { nonce }, out)) {
        connection.refuse(error.cause(), error.to_string());
        return Served::Ended(None);
    }
    connection.secured(&tunnel.facts().clone(), std::mem::take(fresh));
    let is_http = own.ports.get(&port) == Some(&AppProtocol::Http);
    let http = is_http.then(|| connection.follow_http());
    let relay = Relay::new(shared, tunnel, &application, &registered).behind_accept();
    let mut relay = relay.speaking_first(speaks_first).shown_to(http);
    let end = relay.run().await;
    let (sent, received) = (relay.sent, relay.received);
    if matches!(end, End::Clean) {
        sockets::ended_cleanly(&application);
    }
    connection.detail(end.detail());
    // Counted as the client sees them.
    connection.finish(received, sent, end.label());
    match end {
        End::Clean if tunnel.session.reusable() || tunnel.session.going_away().is_some() => Served::Reusable,
        End::Clean => Served::Ended(None),
        broken => Served::Ended(broken.reset_code()),
    }
}

/// Why a stream is refused, for the peer and for the log.
struct Refusal {
    code: v1::RefuseCode,
    retryable: bool,
    cause: &'static str,
    reason: String,
    rule: Option<Arc<str>>,
}

impl Refusal {
    fn application(error: &ConnectError) -> Refusal {
        let (code, retryable) = match error {
            ConnectError::Refused(_) => (v1::RefuseCode::ConnectRefused, true),
            ConnectError::Timeout(..) => (v1::RefuseCode::ConnectTimeout, false),
            ConnectError::Failed(..) => (v1::RefuseCode::ConnectFailed, false),
        };
        Refusal { code, retryable, cause: error.cause(), reason: format!("the application: {error}"), rule: None }
    }
}

impl From<Cut> for Refusal {
    fn from(cut: Cut) -> Refusal {
        let expired = cut.code == v1::ResetCode::IdentityExpired;
        let code = if expired { v1::RefuseCode::IdentityExpired } else { v1::RefuseCode::PolicyDenied };
        // With an identity that holds, another tunnel may well get in.
        Refusal { code, retryable: expired, cause: cut.cause, reason: cut.reason, rule: None }
    }
}

/// Decides on a stream that is registered already, with the identity, bundle and policies of this moment.
fn admit(
    shared: &Shared,
    tunnel: &Tunnel,
    registered: &Registered<'_>,
    port: u16,
) -> Result<(Arc<OwnPod>, Authorized), Refusal> {
    let own = shared.control.own().ok_or_else(|| Refusal {
        code: v1::RefuseCode::Overloaded,
        retryable: true,
        cause: "no-policy",
        reason: "this proxy has no policies yet".into(),
        rule: None,
    })?;
    let request = Request { peer: Peer::Mesh(tunnel.peer()), port, now: shared.clock.wall() };
    let authorized = authorize(&own.policies, &request).map_err(|decision| Refusal {
        code: v1::RefuseCode::PolicyDenied,
        retryable: false,
        cause: "policy-denied",
        reason: decision.to_string(),
        rule: decision.rule.filter(|_| tunnel.peer().id().namespace() == Some(&own.namespace)),
    })?;
    registered.check(shared)?;
    Ok((own, authorized))
}

/// Connects to the application, at the one port that was authorized. `speaks_first`: as for
/// [`sockets::connect_in_pod`].
pub(crate) async fn dial_application(
    shared: &Shared,
    authorized: &Authorized,
    dialled: OriginalDestination,
    speaks_first: bool,
) -> Result<TcpStream, ConnectError> {
    let address = SocketAddr::new(dialled.0.ip(), authorized.port());
    let application = sockets::connect_in_pod(address, shared.config.exempt, speaks_first).await?;
    sockets::reset_unless_clean(&application);
    Ok(application)
}

/// Sends the refusal that was written.
async fn refused(tunnel: &mut Tunnel, written: Result<(), TunnelError>) -> Served {
    if written.is_err() {
        return Served::Ended(None);
    }
    let flush = std::future::poll_fn(|cx| tunnel.tls.poll_flush(cx));
    let told = matches!(tokio::time::timeout(CLOSE_NOTIFY, flush).await, Ok(Ok(())));
    if told && tunnel.session.reusable() { Served::Reusable } else { Served::Ended(None) }
}

/// Records the refusal, and writes it for the peer with what it may know.
fn refuse(
    shared: &Shared,
    tunnel: &mut Tunnel,
    mut connection: Box<Connection>,
    refusal: Refusal,
) -> Result<(), TunnelError> {
    let correlation_id = random::hex::<8>();
    connection.correlation_id(&correlation_id);
    if let Some(own) = shared.control.own() {
        connection.destination(own.workload.clone(), Some(own.spiffe_id.clone()));
    }
    connection.refuse(refusal.cause, refusal.reason);
    let message = v1::Refuse {
        code: refusal.code.into(),
        retryable: refusal.retryable,
        rule: refusal.rule.as_deref().unwrap_or_default().to_owned(),
        correlation_id,
    };
    tunnel.send(|session, out| session.refuse(&message, out))
}
