//! TLS clients that are no proxies: an ingress controller with the client certificate that the mesh gave it. They get in
//! where an ingress rule names the identity that they prove, and nowhere else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use byrnie_identity::PeerIdentity;
use byrnie_identity::tls::TlsFacts;
use byrnie_policy::{Peer, Request, authorize};
use byrnie_redirect::Leg;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Inbound, TOO_MANY, gate, record};
use crate::model::OwnPod;
use crate::sockets;
use crate::streams::{Grounds, Registered};
use crate::telemetry::EdgeKind;
use crate::tunnel::server::dial_application;
use crate::tunnel::{tls_cause, tls_reason};

impl Inbound {
    /// A TLS client without `byrnie/1`.
    pub(super) async fn other_tls(self, own: &OwnPod, read: Vec<u8>, gate: gate::Entered) {
        let port = self.dialled.0.port();
        if !own.policies.ingress.iter().any(|rule| rule.ports.contains(port)) {
            let reason = "TLS from outside of the mesh, and no IngressPolicy opens this port; expected byrnie/1";
            return self.refuse("no-ingress-rule", reason.into());
        }
        let Some(certificates) = self.shared.certificates.current() else {
            return self.refuse("no-svid", "this proxy has no SVID yet".into());
        };
        let Inbound { shared, stream, source, dialled, until } = self;
        let client = Replayed { read, taken: 0, stream };
        let handshake = TlsAcceptor::from(certificates.ingress.clone()).accept(client);
        let accepted = tokio::select! {
            accepted = tokio::time::timeout_at(until, handshake) => accepted,
            () = gate.evicted() => {
                return record(&shared, source, dialled).refuse(TOO_MANY.0, TOO_MANY.1.into());
            }
        };
        drop(gate);
        let mut connection = record(&shared, source, dialled);
        connection.kind(EdgeKind::Ingress);
        let client = match accepted {
            Err(_) => return connection.refuse("timeout", "the TLS handshake took more than 5 s".into()),
            Ok(Err(error)) => {
                let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref());
                let reason = of_tls.map_or_else(|| error.to_string(), tls_reason);
                return connection.refuse(of_tls.map_or("tls-error", tls_cause), reason);
            }
            Ok(Ok(client)) => client,
        };
        // Not before: a reset would take the alert of a failed handshake with it.
        sockets::reset_unless_clean(&client.get_ref().0.stream);
        let peer = match verified(&client, &shared) {
            Ok(peer) => peer,
            Err(error) => return connection.refuse(error.cause.as_str(), error.to_string()),
        };
        connection.source(source.ip().to_string().into(), Some(peer.id().clone()));
        let registered = shared.streams.register(Grounds::Ingress { port }, Some(peer.clone()));
        let request = Request { peer: Peer::Ingress(&peer), port, now: shared.clock.wall() };
        let authorized = match authorize(&own.policies, &request) {
            Ok(authorized) => authorized,
            Err(decision) => return connection.refuse(decision.reason.as_str(), decision.to_string()),
        };
        if let Err(cut) = registered.check(&shared) {
            return connection.refuse(cut.cause, cut.reason);
        }
        connection.decided(authorized.decision());
        let application = match dial_application(&shared, &authorized, dialled, false).await {
            Ok(application) => application,
            Err(error) => return connection.refuse(error.cause(), format!("the application: {error}")),
        };
        let Some(facts) = TlsFacts::of(client.get_ref().1) else {
            return connection.refuse("tls-error", "the handshake is not through".into());
        };
        connection.secured(&Arc::new(facts), true);
        let outside = &client.get_ref().0.stream;
        registered.carried_by(Leg::of(outside).ok());
        let (sent, received, end) = relay(client, application, &registered).await;
        connection.detail(registered.cut().filter(|cut| cut.cause == end).map(|cut| cut.reason.clone()));
        connection.finish(sent, received, end);
    }
}

fn verified(
    client: &TlsStream<Replayed>,
    shared: &crate::shared::Shared,
) -> Result<PeerIdentity, byrnie_identity::VerifyError> {
    shared.certificates.verifier().verify(client.get_ref().1.peer_certificates().unwrap_or_default())
}

/// Bytes that the client sent, that it received, and how it ended.
async fn relay(
    mut client: TlsStream<Replayed>,
    mut application: TcpStream,
    registered: &Registered<'_>,
) -> (u64, u64, &'static str) {
    let mut counted = Counted { stream: &mut application, read: 0, written: 0, registered };
    let end = tokio::select! {
        copied = tokio::io::copy_bidirectional(&mut client, &mut counted) => match copied {
            Ok(_) => "clean",
            Err(_) => "reset-by-peer",
        },
        cut = registered.cut_off() => cut.cause,
    };
    let (sent, received) = (counted.written, counted.read);
    if end == "clean" {
        sockets::ended_cleanly(&application);
        sockets::ended_cleanly(&client.get_ref().0.stream);
        let _ = client.shutdown().await;
    }
    (sent, received, end)
}

/// A connection of which some bytes were read before it was known what they are.
pub(super) struct Replayed {
    read: Vec<u8>,
    taken: usize,
    stream: TcpStream,
}

impl AsyncRead for Replayed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = self.read.get(self.taken..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..count).unwrap_or_default());
        self.taken += count;
        if self.taken == self.read.len() {
            self.read = Vec::new();
            self.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The application's connection, with what moved over it: known also when the copy does not end by itself.
struct Counted<'a> {
    stream: &'a mut TcpStream,
    read: u64,
    written: u64,
    registered: &'a Registered<'a>,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut *self.stream).poll_read(cx, buf);
        self.read += (buf.filled().len() - before) as u64;
        self.registered.touch();
        result
    }
}

impl AsyncWrite for Counted<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut *self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = result {
            self.written += count as u64;
            self.registered.touch();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.registered.set_half_closed();
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
