//! TLS below tonic: our own verifier judges certificates, and every call knows who the connection proved to be.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use byrnie_identity::{PeerIdentity, SvidVerifier, tls};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use crate::limits;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The other end's address.
    pub(crate) address: SocketAddr,
    /// What it proved in the handshake; `None`: it presented no certificate.
    pub(crate) identity: Option<PeerIdentity>,
}

/// A connection whose handshake is done.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
}

/// Makes [`Connection`]s of what a listener accepts.
pub(super) struct Acceptor {
    pub(super) config: Arc<ArcSwap<ServerConfig>>,
    pub(super) verifier: Arc<SvidVerifier>,
    handshakes: Arc<Semaphore>,
    per_address: Arc<PerAddress>,
}

impl Acceptor {
    pub(super) fn new(config: Arc<ArcSwap<ServerConfig>>, verifier: Arc<SvidVerifier>) -> Self {
        let handshakes = Arc::new(Semaphore::new(limits::TLS_HANDSHAKES));
        Self { config, verifier, handshakes, per_address: Arc::default() }
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
            let shaken = tokio::time::timeout(limits::TLS_HANDSHAKE, acceptor.shake_hands(stream, address)).await;
            drop((permit, turn));
            match shaken {
                Ok(Ok(connection)) => {
                    // The server has ended where this fails.
                    let _ = ready.send(Ok(connection)).await;
                }
                Ok(Err(error)) => {
                    let cause = cause(&error);
                    tracing::info!(peer.address = %address, cause, %error, "TLS handshake failed");
                }
                Err(_) => {
                    let seconds = limits::TLS_HANDSHAKE.as_secs();
                    tracing::info!(peer.address = %address, cause = "timeout", "TLS handshake not done after {seconds} s");
                }
            }
        });
    }

    async fn shake_hands(&self, stream: TcpStream, address: SocketAddr) -> io::Result<Connection> {
        stream.set_nodelay(true)?;
        let stream = TlsAcceptor::from(self.config.load_full()).accept(stream).await?;
        let identity = match stream.get_ref().1.peer_certificates() {
            None => None,
            Some(chain) => Some(self.verifier.verify(chain).map_err(io::Error::other)?),
        };
        Ok(Connection { stream, caller: Caller { address, identity } })
    }
}

fn cause(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(inner) => tls::verify_error(inner).map_or("tls", |error| error.cause.as_str()),
        None => "connection",
    }
}

/// Handshakes under way by address, so that one address can't take them all.
#[derive(Debug, Default)]
struct PerAddress(Mutex<HashMap<IpAddr, usize>>);

struct Turn {
    of: Arc<PerAddress>,
    address: IpAddr,
}

impl PerAddress {
    fn take(of: &Arc<Self>, address: IpAddr) -> Option<Turn> {
        let mut counts = of.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= limits::TLS_HANDSHAKES_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Turn { of: of.clone(), address })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
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
