//! TLS below tonic: our own verifier judges certificates, and every call knows who the connection proved to be.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use byrnie_identity::{PeerIdentity, VerifyError, tls};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::{limits, plane::Plane};

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The other end's address.
    pub(crate) address: SocketAddr,
    /// What it proved in the handshake; `None`: it presented no certificate.
    pub(crate) identity: Option<PeerIdentity>,
    /// What it was proved with: DER, leaf first.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
}

/// A connection whose handshake is done.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    /// Who has proved nothing has time for one Certify.
    until: Option<Pin<Box<Sleep>>>,
    _turn: Option<Turn>,
    _place: OwnedSemaphorePermit,
}

/// Makes [`Connection`]s of what a listener accepts.
pub(super) struct Acceptor {
    config: Arc<ArcSwap<ServerConfig>>,
    plane: Arc<Plane>,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    per_address: Arc<PerAddress>,
    anonymous: Arc<PerAddress>,
}

impl Acceptor {
    pub(super) fn new(config: Arc<ArcSwap<ServerConfig>>, plane: Arc<Plane>) -> Self {
        let connections = Arc::new(Semaphore::new(limits::CONNECTIONS));
        let handshakes = Arc::new(Semaphore::new(limits::TLS_HANDSHAKES));
        let per_address = Arc::new(PerAddress::new(limits::TLS_HANDSHAKES_PER_ADDRESS));
        let anonymous = Arc::new(PerAddress::new(limits::ANONYMOUS_PER_ADDRESS));
        Self { config, plane, connections, handshakes, per_address, anonymous }
    }

    /// Accepts until the receiver is dropped. Nothing that a peer does ends it.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener, ready: mpsc::Sender<io::Result<Connection>>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            match accepted {
                Ok((stream, address)) => self.begin(stream, address, &ready),
                Err(error) => {
                    // EMFILE and its like: to try again at once would spin until somebody closes a file.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn begin(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, ready: &mpsc::Sender<io::Result<Connection>>) {
        let Ok(place) = self.connections.clone().try_acquire_owned() else {
            tracing::warn!(peer.address = %address, cause = "overloaded", "connection refused: too many connections");
            return;
        };
        let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
            tracing::warn!(peer.address = %address, cause = "overloaded", "connection refused: too many TLS handshakes at once");
            return;
        };
        let Some(turn) = PerAddress::take(&self.per_address, address.ip()) else {
            tracing::warn!(peer.address = %address, cause = "overloaded", "connection refused: too many TLS handshakes at once from this address");
            return;
        };
        let (acceptor, ready) = (self.clone(), ready.clone());
        tokio::spawn(async move {
            let shaken =
                tokio::time::timeout(limits::TLS_HANDSHAKE, acceptor.shake_hands(stream, address, place)).await;
            drop((permit, turn));
            match shaken {
                Ok(Ok(connection)) => {
                    // The server has ended where this fails.
                    let _ = ready.send(Ok(connection)).await;
                }
                Ok(Err(error)) => acceptor.failed(address, &error),
                Err(_) => {
                    let seconds = limits::TLS_HANDSHAKE.as_secs();
                    tracing::info!(peer.address = %address, cause = "timeout", "TLS handshake not done after {seconds} s");
                }
            }
        });
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let stream = TlsAcceptor::from(self.config.load_full()).accept(stream).await?;
        let (identity, chain) = match stream.get_ref().1.peer_certificates() {
            None => (None, Arc::default()),
            Some(chain) => {
                let identity = self.plane.verifier.verify(chain).map_err(io::Error::other)?;
                (Some(identity), chain.iter().cloned().map(CertificateDer::into_owned).collect())
            }
        };
        let (mut until, mut turn) = (None, None);
        if identity.is_none() {
            let too_many = || io::Error::other("too many connections without a certificate from this address");
            turn = Some(PerAddress::take(&self.anonymous, address.ip()).ok_or_else(too_many)?);
            until = Some(Box::pin(tokio::time::sleep(limits::ANONYMOUS)));
        }
        Ok(Connection { stream, caller: Caller { address, identity, chain }, until, _turn: turn, _place: place })
    }

    /// Certificates that are refused are worth remembering; what does not even speak TLS is not.
    fn failed(&self, address: SocketAddr, error: &io::Error) {
        let inner = error.get_ref();
        let judged = inner
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .and_then(tls::verify_error)
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<VerifyError>()));
        let cause = judged.map_or("tls", |judged| judged.cause.as_str());
        tracing::info!(peer.address = %address, cause, %error, "TLS handshake failed");
        if judged.is_some() {
            self.plane.proxies.refused_here(&address, cause, error.to_string(), self.plane.clock.wall());
        }
    }
}

/// Handshakes under way, or anonymous connections, by address, so that one address can't take them all.
#[derive(Debug)]
struct PerAddress {
    counts: Mutex<HashMap<IpAddr, usize>>,
    most: usize,
}

struct Turn {
    of: Arc<PerAddress>,
    address: IpAddr,
}

impl PerAddress {
    fn new(most: usize) -> Self {
        Self { counts: Mutex::default(), most }
    }

    fn take(of: &Arc<Self>, address: IpAddr) -> Option<Turn> {
        let mut counts = of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= of.most {
            return None;
        }
        *count += 1;
        Some(Turn { of: of.clone(), address })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
