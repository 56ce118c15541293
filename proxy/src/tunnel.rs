//! The tunnel between two proxies: `byrnie/1` frames inside mutual TLS, one stream at a time, kept and used again.
//! `client` dials and opens streams, `server` accepts and serves them, `relay` moves an open stream's bytes, and `pool`
//! keeps a client's idle tunnels. The frames and their rules are `byrnie_proto::tunnel`; `docs/wire-protocol.md` says why.

pub(crate) mod buffer;
pub(crate) mod client;
pub mod client_hello;
pub mod pool;
pub(crate) mod relay;
pub(crate) mod server;
pub(crate) mod tls;

use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_lc_rs::rand::SystemRandom;
use byrnie_identity::tls::TlsFacts;
use byrnie_identity::{PeerIdentity, SvidVerifier, VerifyError, verify_signature};
use byrnie_proto::tunnel::{Binding, NONCE_LEN, ProtocolError, Received, Role, Session, v1};
use byrnie_redirect::Leg;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::time::Instant;

use crate::certificates::Generation;
use crate::limits::BUFFER_APPLICATION;
use tls::{PeerEnd, Tls, TlsError};

/// Why a tunnel is over, or was never made.
#[derive(Debug, Error)]
pub(crate) enum TunnelError {
    /// TLS, or TCP under it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The peer sent what `byrnie/1` does not allow.
    #[error("the peer broke the tunnel protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The peer proved no identity that holds, or not the one that belongs here.
    #[error("{0}")]
    Identity(#[from] VerifyError),
    /// The peer's `REAUTH` does not hold.
    #[error("the peer's REAUTH was refused: {0}")]
    Reauth(String),
    /// What the peer put into its `OPEN` or `ACCEPT`.
    #[error("a nonce of {0} bytes, expected {NONCE_LEN}")]
    Nonce(usize),
    /// Neither bytes nor an end in time.
    #[error("{0}")]
    Timeout(&'static str),
}

impl From<std::io::Error> for TunnelError {
    fn from(error: std::io::Error) -> Self {
        TunnelError::Tls(TlsError::Io(error))
    }
}

impl TunnelError {
    /// A label from a closed set, for metrics and the access log.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            TunnelError::Tls(TlsError::Io(_)) => "connection-failed",
            TunnelError::Tls(TlsError::Truncated) => "connection-truncated",
            TunnelError::Tls(TlsError::KeyExhausted) => "key-exhausted",
            TunnelError::Tls(TlsError::EndlessMessage(_)) => "tls-error",
            TunnelError::Tls(TlsError::Protocol(error)) => tls_cause(error),
            TunnelError::Protocol(_) => "protocol-error",
            TunnelError::Identity(error) => error.cause.as_str(),
            TunnelError::Reauth(_) => "reauth-failed",
            TunnelError::Nonce(_) => "protocol-error",
            TunnelError::Timeout(_) => "timeout",
        }
    }
}

/// The label of a failed TLS handshake: what our verifier said, where it was asked.
pub(crate) fn tls_cause(error: &rustls::Error) -> &'static str {
    match byrnie_identity::tls::verify_error(error) {
        Some(refused) => refused.cause.as_str(),
        None => match error {
            rustls::Error::AlertReceived(_) => "refused-by-peer",
            rustls::Error::NoCertificatesPresented => "no-certificate",
            _ => "tls-error",
        },
    }
}

/// The sentence of a failed TLS handshake: our verifier's own, where it was asked.
pub(crate) fn tls_reason(error: &rustls::Error) -> String {
    byrnie_identity::tls::verify_error(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// One end of a tunnel whose peer has been verified.
pub(crate) struct Tunnel {
    tls: Tls,
    session: Session,
    peer: PeerIdentity,
    facts: Arc<TlsFacts>,
    leg: Option<Leg>,
    binding: Binding,
    /// Which of our own SVIDs the peer has seen last.
    generation: u64,
    born: Instant,
}

impl Tunnel {
    /// Takes a connection whose handshake has ended, and the identity that it proved.
    /// Boxed: it moves from task to task, and lies in each one's future.
    fn new(tls: Tls, role: Role, own: &Generation, peer: PeerIdentity) -> Result<Box<Tunnel>, TunnelError> {
        let (client_leaf, server_leaf) = match role {
            Role::Client => (own.svid.leaf_fingerprint(), peer.leaf_fingerprint()),
            Role::Server => (peer.leaf_fingerprint(), own.svid.leaf_fingerprint()),
        };
        let facts = tls.facts(TlsFacts::of).ok_or(TlsError::Protocol(rustls::Error::HandshakeNotComplete))?;
        Ok(Box::new(Tunnel {
            leg: tls.leg(),
            tls,
            session: Session::new(role),
            peer,
            facts: Arc::new(facts),
            binding: Binding { client_nonce: [0; NONCE_LEN], server_nonce: [0; NONCE_LEN], client_leaf, server_leaf },
            generation: own.number,
            born: Instant::now(),
        }))
    }

    pub(crate) fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    pub(crate) fn facts(&self) -> &Arc<TlsFacts> {
        &self.facts
    }

    /// The TCP connection under it; `None` when that is gone already.
    pub(crate) fn leg(&self) -> Option<Leg> {
        self.leg
    }

    /// Writes frames into one TLS record where they fit.
    fn send(&mut self, write: impl FnOnce(&mut Session, &mut Vec<u8>)) -> Result<(), TunnelError> {
        let mut frames = Vec::new();
        write(&mut self.session, &mut frames);
        Ok(self.tls.encrypt(&frames)?)
    }

    /// Makes this end's part of the binding, if the peer does not have it yet.
    fn fresh_nonce(&mut self) -> Vec<u8> {
        if !self.session.wants_nonce() {
            return Vec::new();
        }
        let nonce = match self.session.role() {
            Role::Client => &mut self.binding.client_nonce,
            Role::Server => &mut self.binding.server_nonce,
        };
        // The only failure is a kernel without randomness; the nonce then stays at its last value, and REAUTH rests on
        // the peer's nonce and the two fingerprints.
        let _ = aws_lc_rs::rand::SecureRandom::fill(&SystemRandom::new(), nonce);
        nonce.to_vec()
    }

    /// Keeps the peer's part of the binding; only the first of a tunnel counts.
    fn peer_nonce(&mut self, bytes: &[u8], first: bool) -> Result<(), TunnelError> {
        if !first {
            return if bytes.is_empty() { Ok(()) } else { Err(TunnelError::Nonce(bytes.len())) };
        }
        let nonce = <[u8; NONCE_LEN]>::try_from(bytes).map_err(|_| TunnelError::Nonce(bytes.len()))?;
        match self.session.role() {
            Role::Client => self.binding.server_nonce = nonce,
            Role::Server => self.binding.client_nonce = nonce,
        }
        Ok(())
    }

    /// Proves a renewed SVID to the peer, once per generation.
    fn prove(&mut self, own: &Generation) -> Result<(), TunnelError> {
        if own.number == self.generation || !self.session.is_bound() {
            return Ok(());
        }
        let leaf = own.svid.chain().first().map(|leaf| leaf.as_ref()).unwrap_or_default();
        let text = self.binding.signed_text(self.session.role(), self.session.next_reauth(), leaf);
        let (scheme, signature) = own.svid.sign(&text).map_err(|error| TunnelError::Reauth(error.to_string()))?;
        let chain = own.svid.chain().iter().map(|certificate| certificate.to_vec()).collect();
        self.generation = own.number;
        let reauth = v1::Reauth { chain, signature_scheme: scheme.into(), signature, sequence: 0 };
        self.send(|session, out| session.reauth(reauth, out))
    }

    /// Takes the peer's renewed identity: verified like a handshake, bound to this tunnel, and the same SPIFFE ID.
    fn renewed(&mut self, reauth: &v1::Reauth, verifier: &SvidVerifier) -> Result<(), TunnelError> {
        let chain: Vec<CertificateDer<'static>> = reauth.chain.iter().map(|der| der.clone().into()).collect();
        let leaf = chain.first().ok_or_else(|| TunnelError::Reauth("no certificate".into()))?;
        let scheme = u16::try_from(reauth.signature_scheme)
            .map_err(|_| TunnelError::Reauth(format!("signature scheme {}", reauth.signature_scheme)))?;
        let peer = verifier.verify(&chain)?;
        let text = self.binding.signed_text(self.session.role().peer(), reauth.sequence, leaf);
        verify_signature(leaf, scheme, &text, &reauth.signature)?;
        if peer.id() != self.peer.id() || peer.is_outside_mesh() != self.peer.is_outside_mesh() {
            return Err(TunnelError::Reauth(format!("expected {}, found {}", self.peer.id(), peer.id())));
        }
        self.peer = peer;
        Ok(())
    }

    /// Whether `DATA` came together with what was heard last.
    fn has_data(&self) -> bool {
        self.session.next_data(self.tls.decrypted()).is_some()
    }

    /// Reads until the peer has said something. `DATA` goes to `data`, as many pieces at a time as are there, which returns
    /// whether it can take more; all of the pieces are taken in any case. `data` hears as well whether `FIN` is here behind
    /// them.
    fn poll_heard(
        &mut self,
        cx: &mut Context<'_>,
        mut data: impl FnMut(&[IoSlice<'_>], bool) -> bool,
    ) -> Poll<Result<Heard, TunnelError>> {
        loop {
            loop {
                let bytes = self.tls.plaintext()?;
                if bytes.is_empty() {
                    break;
                }
                let (mut taken, received) = self.session.receive(bytes)?;
                let heard = match received {
                    None => None,
                    Some(Received::Data(piece)) => {
                        let mut pieces = Pieces::of(piece);
                        while let rest = bytes.get(taken..).unwrap_or_default()
                            && let Some(length) = self.session.next_data(rest)
                            && pieces.have_room_for(length)
                        {
                            let (more, received) = self.session.receive(rest)?;
                            taken += more;
                            if let Some(Received::Data(piece)) = received {
                                pieces.push(piece);
                            }
                        }
                        let last = self.session.next_is_fin(bytes.get(taken..).unwrap_or_default());
                        (!data(pieces.filled(), last)).then_some(Heard::Data)
                    }
                    Some(Received::Open(open)) => Some(Heard::Open(open)),
                    Some(Received::Accept(accept)) => Some(Heard::Accept(accept)),
                    Some(Received::Refuse(refuse)) => Some(Heard::Refuse(refuse)),
                    Some(Received::Fin) => Some(Heard::Fin),
                    Some(Received::Reset(reset)) => Some(Heard::Reset(reset.code())),
                    Some(Received::GoAway(last)) => Some(Heard::GoAway(last)),
                    Some(Received::Reauth(reauth)) => Some(Heard::Reauth(reauth)),
                };
                self.tls.consume_plaintext(taken);
                if let Some(heard) = heard {
                    return Poll::Ready(Ok(heard));
                }
            }
            match self.tls.peer_end() {
                PeerEnd::Closed => return Poll::Ready(Ok(Heard::Closed)),
                PeerEnd::Truncated => return Poll::Ready(Err(TlsError::Truncated.into())),
                PeerEnd::Open => {}
            }
            ready!(self.tls.poll_fill(cx))?;
        }
    }

    /// A frame that the session allows, but not at this place.
    fn unexpected(&self, frame: &'static str) -> TunnelError {
        let expected = "what an open stream carries".to_owned();
        ProtocolError::Unexpected { frame, stream: self.session.stream(), expected }.into()
    }

    /// Ends TLS and TCP in order: what waits, then close_notify, then the peer's end.
    pub(crate) async fn close(mut self: Box<Self>) {
        if self.tls.close().is_ok() {
            let _ = tokio::time::timeout(crate::limits::CLOSE_NOTIFY, self.tls.end()).await;
        }
    }

    /// Ends the stream, if there is one, with `code`, and with it the tunnel.
    pub(crate) async fn reset(mut self: Box<Self>, code: v1::ResetCode) {
        if self.send(|session, out| session.reset(code, out)).is_ok() {
            self.close().await;
        }
    }
}

/// Pieces of the application's bytes that lie in different frames, to be written together: a peer whose application says
/// little at a time and often has many of them in one read.
struct Pieces<'a> {
    slices: [IoSlice<'a>; PIECES],
    count: usize,
    bytes: usize,
}

/// More than a read of the usual size holds.
const PIECES: usize = 32;

impl<'a> Pieces<'a> {
    fn of(first: &'a [u8]) -> Pieces<'a> {
        let mut slices = [IoSlice::new(&[]); PIECES];
        slices[0] = IoSlice::new(first);
        Pieces { slices, count: 1, bytes: first.len() }
    }

    /// What an application does not take is kept for it, and that is one frame at most.
    fn have_room_for(&self, length: usize) -> bool {
        self.count < PIECES && self.bytes + length <= BUFFER_APPLICATION
    }

    fn push(&mut self, piece: &'a [u8]) {
        if let Some(slot) = self.slices.get_mut(self.count) {
            *slot = IoSlice::new(piece);
            self.count += 1;
            self.bytes += piece.len();
        }
    }

    fn filled(&self) -> &[IoSlice<'a>] {
        self.slices.get(..self.count).unwrap_or_default()
    }
}

/// What the peer said, `DATA` apart.
#[derive(Debug)]
enum Heard {
    /// `DATA` came, and who takes it can take no more now.
    Data,
    Open(v1::Open),
    Accept(v1::Accept),
    Refuse(v1::Refuse),
    Fin,
    Reset(v1::ResetCode),
    GoAway(u32),
    Reauth(v1::Reauth),
    /// The peer ended TLS.
    Closed,
}

#[cfg(test)]
pub(crate) mod tests;
