//! The client's end: dials a tunnel to an endpoint that must be who the control plane says it is, and opens streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use byrnie_identity::SpiffeId;
use byrnie_proto::tunnel::{HEADER_LEN, MAX_PAYLOAD, Role, v1};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::certificates::Generation;
use crate::limits::{OPEN_TO_ACCEPT, TLS_HANDSHAKE};
use crate::shared::Shared;
use crate::sockets::{self, ConnectError};
use crate::tunnel::relay::{FromApplication, Said};
use crate::tunnel::tls::{Tls, TlsError};
use crate::tunnel::{Heard, Tunnel, TunnelError};

/// Why no tunnel was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("no tunnel to {0}: {1}")]
    Tunnel(SocketAddr, TunnelError),
}

impl DialError {
    /// A label from a closed set.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            DialError::Connect(error) => error.cause(),
            DialError::Tunnel(_, error) => error.cause(),
        }
    }
}

/// Dials `endpoint`, which has to prove that it is `expected`. Nothing of the application is sent before it has.
pub(crate) async fn dial(
    shared: &Shared,
    own: &Arc<Generation>,
    endpoint: SocketAddr,
    expected: &SpiffeId,
) -> Result<Box<Tunnel>, DialError> {
    let stream = sockets::connect(endpoint, shared.config.exempt).await?;
    let handshake = secure(shared, own, stream, endpoint, expected);
    let result = match tokio::time::timeout(TLS_HANDSHAKE, handshake).await {
        Ok(result) => result,
        Err(_) => Err(TunnelError::Timeout("the TLS handshake took more than 5 s")),
    };
    result.map_err(|error| DialError::Tunnel(endpoint, error))
}

async fn secure(
    shared: &Shared,
    own: &Arc<Generation>,
    stream: TcpStream,
    endpoint: SocketAddr,
    expected: &SpiffeId,
) -> Result<Box<Tunnel>, TunnelError> {
    // No SNI is sent; rustls wants a name all the same.
    let name = ServerName::IpAddress(endpoint.ip().into());
    let connection = UnbufferedClientConnection::new(own.client.clone(), name).map_err(TlsError::from)?;
    let mut tls = Tls::client(stream, connection);
    tls.handshake().await?;
    tls.require_tunnel_alpn()?;
    // Answered from the verifier's cache: the handshake has just verified this chain.
    let peer = shared.certificates.verifier().verify(tls.peer_chain().unwrap_or_default())?;
    peer.expect(expected)?;
    Tunnel::new(tls, Role::Client, own, peer)
}

/// What the application has sent before its stream was accepted, kept so that another attempt can send it again.
#[derive(Default)]
pub(crate) struct Early {
    pub(crate) bytes: Vec<u8>,
    /// When the first of them were read.
    pub(crate) since: Option<Instant>,
    pub(crate) ended: bool,
}

impl Early {
    fn hear(&mut self, said: &Said<'_>) {
        self.since.get_or_insert_with(Instant::now);
        self.bytes.extend_from_slice(said.frame.get(HEADER_LEN..).unwrap_or_default());
        self.ended |= said.ended;
    }
}

/// Why a stream was not opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The server said no.
    Refused(v1::Refuse),
    /// The server is going away and has not served it.
    GoAway,
    /// The tunnel broke. `sent`: it may have delivered bytes of the application.
    Broken { error: TunnelError, sent: bool },
    /// The server reset the stream before it accepted it.
    Reset(v1::ResetCode),
    /// The application's connection broke.
    Application(std::io::Error),
}

impl OpenError {
    /// Whether the stream may be dialled again, unseen by the application: only where the server can't have served it.
    pub(crate) fn retryable(&self) -> bool {
        match self {
            OpenError::Refused(refuse) => refuse.retryable,
            OpenError::GoAway => true,
            OpenError::Broken { error, sent } => !sent && !matches!(error, TunnelError::Timeout(_)),
            OpenError::Reset(_) | OpenError::Application(_) => false,
        }
    }

    /// Whether the tunnel is of no use any more.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            OpenError::Refused(refuse) => match refuse.code() {
                v1::RefuseCode::PolicyDenied => "refused-policy-denied",
                v1::RefuseCode::ConnectRefused => "refused-connect-refused",
                v1::RefuseCode::ConnectTimeout => "refused-connect-timeout",
                v1::RefuseCode::Draining => "refused-draining",
                v1::RefuseCode::NotLocal => "refused-not-local",
                v1::RefuseCode::Overloaded => "refused-overloaded",
                v1::RefuseCode::IdentityExpired => "refused-identity-expired",
                v1::RefuseCode::ConnectFailed | v1::RefuseCode::Unspecified => "refused-connect-failed",
            },
            OpenError::GoAway => "go-away",
            OpenError::Broken { error, .. } => error.cause(),
            OpenError::Reset(_) => "reset-by-peer",
            OpenError::Application(_) => "reset-by-application",
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Refused(refuse) => {
                write!(f, "refused by the peer: {}", refuse.code().as_str_name().trim_start_matches("REFUSE_CODE_"))?;
                if !refuse.rule.is_empty() {
                    write!(f, " by {}", refuse.rule)?;
                }
                if !refuse.correlation_id.is_empty() {
                    write!(f, " (correlation ID {})", refuse.correlation_id)?;
                }
                Ok(())
            }
            OpenError::GoAway => f.write_str("the peer is going away"),
            OpenError::Broken { error, .. } => write!(f, "{error}"),
            OpenError::Reset(code) => write!(f, "the peer reset the stream: {}", code.as_str_name()),
            OpenError::Application(error) => write!(f, "the application's connection broke: {error}"),
        }
    }
}

/// Opens the next stream of `tunnel` for `application`. What the application has said by now goes out with the `OPEN`;
/// what it says until the answer follows, 64 KiB in all, and stays in `early`.
pub(crate) async fn open(
    tunnel: &mut Tunnel,
    shared: &Shared,
    application: &TcpStream,
    early: &mut Early,
    mut message: v1::Open,
) -> Result<(), OpenError> {
    let first = tunnel.session.wants_nonce();
    message.nonce = tunnel.fresh_nonce();
    let reader = FromApplication::new();
    let mut opening = Opening { shared, tunnel, application, early, reader, sent: false, write_failed: false, first };
    opening.begin(&message)?;
    match tokio::time::timeout(OPEN_TO_ACCEPT, std::future::poll_fn(|cx| opening.poll(cx))).await {
        Ok(result) => result,
        Err(_) => {
            let error = TunnelError::Timeout("no answer to OPEN within 4 s");
            Err(OpenError::Broken { error, sent: opening.sent })
        }
    }
}

struct Opening<'a> {
    shared: &'a Shared,
    tunnel: &'a mut Tunnel,
    application: &'a TcpStream,
    early: &'a mut Early,
    reader: FromApplication,
    /// Whether bytes of the application have left.
    sent: bool,
    /// TCP takes no more; what the server said before that is still to be read.
    write_failed: bool,
    first: bool,
}

impl Opening<'_> {
    fn broken(&self, error: impl Into<TunnelError>) -> OpenError {
        OpenError::Broken { error: error.into(), sent: self.sent }
    }

    /// `OPEN`, and in the same TLS record what the application has said already.
    fn begin(&mut self, message: &v1::Open) -> Result<(), OpenError> {
        if self.early.bytes.is_empty() && !self.early.ended {
            let mut now = Context::from_waker(std::task::Waker::noop());
            if let Poll::Ready(read) = self.reader.poll_read(self.application, MAX_PAYLOAD, &mut now) {
                let said = read.map_err(OpenError::Application)?;
                self.early.hear(&said);
            }
        }
        let mut frames = Vec::new();
        if !self.tunnel.session.open(message, &mut frames) {
            return Err(OpenError::GoAway);
        }
        if !self.early.bytes.is_empty() {
            frames.extend_from_slice(&self.tunnel.session.data(self.early.bytes.len()));
            frames.extend_from_slice(&self.early.bytes);
            self.sent = true;
        }
        if self.early.ended {
            self.tunnel.session.fin(&mut frames);
            self.sent = true;
        }
        self.tunnel.tls.encrypt(&frames).map_err(|error| self.broken(error))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), OpenError>> {
        loop {
            let up = self.poll_up(cx)?;
            let heard = match self.tunnel.poll_heard(cx, |_, _| false) {
                Poll::Pending if up.is_pending() => return Poll::Pending,
                Poll::Pending => continue,
                Poll::Ready(heard) => heard.map_err(|error| self.broken(error))?,
            };
            if let Some(answer) = self.answered(heard)? {
                return Poll::Ready(answer);
            }
        }
    }

    /// Sends what can be sent. A server that refuses and closes while bytes are on their way to it makes writing fail, and
    /// its answer, which may allow another attempt, is to be read all the same.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, OpenError> {
        if self.write_failed {
            return Ok(Poll::Pending);
        }
        match self.send_more(cx) {
            Err(OpenError::Broken { error: TunnelError::Tls(TlsError::Io(_)), .. }) => {
                self.write_failed = true;
                Ok(Poll::Pending)
            }
            other => other,
        }
    }

    /// What the application says while the answer is on its way.
    fn send_more(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, OpenError> {
        match self.tunnel.tls.poll_flush(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(flushed) => flushed.map_err(|error| self.broken(error))?,
        }
        let room = MAX_PAYLOAD.saturating_sub(self.early.bytes.len());
        if self.early.ended || room == 0 {
            return Ok(Poll::Pending);
        }
        let mut said = match self.reader.poll_read(self.application, room, cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(said) => said.map_err(OpenError::Application)?,
        };
        self.sent = true;
        self.early.hear(&said);
        said.write(&mut self.tunnel.session);
        match self.tunnel.tls.encrypt(said.frame) {
            Ok(()) => Ok(Poll::Ready(())),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// `None`: that was not the answer yet.
    fn answered(&mut self, heard: Heard) -> Result<Option<Result<(), OpenError>>, OpenError> {
        Ok(match heard {
            Heard::Accept(accept) => {
                self.tunnel.peer_nonce(&accept.nonce, self.first).map_err(|error| self.broken(error))?;
                Some(Ok(()))
            }
            Heard::Refuse(refuse) => Some(Err(OpenError::Refused(refuse))),
            Heard::GoAway(last) if last < self.tunnel.session.stream() => Some(Err(OpenError::GoAway)),
            Heard::GoAway(_) => None,
            Heard::Reset(code) => Some(Err(OpenError::Reset(code))),
            Heard::Reauth(reauth) => {
                let renewed = self.tunnel.renewed(&reauth, self.shared.certificates.verifier());
                renewed.map_err(|error| self.broken(error))?;
                None
            }
            Heard::Closed => Some(Err(self.broken(TlsError::Truncated))),
            Heard::Data | Heard::Fin | Heard::Open(_) => {
                Some(Err(self.broken(self.tunnel.unexpected("DATA, FIN or OPEN"))))
            }
        })
    }
}
