//! How every TCP connection of the data path is made and tuned.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use byrnie_redirect::{Exempt, set_keepalive, set_mark, set_priority};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::limits::CONNECT;

/// How connections within the pod are paced: not at all. Loopback has no path to probe, and a node's default may be one
/// that spreads what is sent over time (BBR): then a fifth of the p99 of 1,000 requests per second is its, and 4 % of a bulk
/// transfer's CPU. Between pods the node's default holds. Every kernel has this one, and gives it to
/// everybody unless it was told otherwise.
pub(crate) const CONGESTION_IN_POD: &[u8] = b"reno";

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody listens there.
    #[error("connection refused by {0}")]
    Refused(SocketAddr),
    /// No answer in time.
    #[error("no answer from {0} within {1:?}; a NetworkPolicy or firewall may drop this port")]
    Timeout(SocketAddr, Duration),
    /// Anything else.
    #[error("connecting to {0}: {1}")]
    Failed(SocketAddr, io::Error),
}

impl ConnectError {
    /// A label from a closed set.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            ConnectError::Refused(_) => "connect-refused",
            ConnectError::Timeout(..) => "connect-timeout",
            ConnectError::Failed(..) => "connect-failed",
        }
    }
}

/// Connects as the proxy: past capture, without delay of small writes, and with keepalive, so that a peer that vanished
/// is found within half a minute.
pub(crate) async fn connect(address: SocketAddr, exempt: Exempt) -> Result<TcpStream, ConnectError> {
    let stream = limited(address, open(socket(address, exempt)?, address)).await?;
    // A socket that the peer has closed already refuses it, which the first read will show.
    let _ = set_keepalive(&stream);
    Ok(stream)
}

/// The same to an application of this pod, which can't vanish without its kernel, and to which nothing is lost.
pub(crate) async fn connect_in_pod(address: SocketAddr, exempt: Exempt) -> Result<TcpStream, ConnectError> {
    let socket = socket(address, exempt)?;
    // It saves time, and nothing else depends on it.
    let _ = socket.set_tcp_congestion(CONGESTION_IN_POD);
    limited(address, open(socket, address)).await
}

/// Connects without keepalive, for a caller that bounds it.
pub(crate) async fn connect_without_limit(address: SocketAddr, exempt: Exempt) -> Result<TcpStream, ConnectError> {
    open(socket(address, exempt)?, address).await
}

async fn limited(
    address: SocketAddr,
    opening: impl Future<Output = Result<TcpStream, ConnectError>>,
) -> Result<TcpStream, ConnectError> {
    tokio::time::timeout(CONNECT, opening).await.unwrap_or(Err(ConnectError::Timeout(address, CONNECT)))
}

/// A socket whose connections capture lets pass.
fn socket(address: SocketAddr, exempt: Exempt) -> Result<Socket, ConnectError> {
    let failed = |error| ConnectError::Failed(address, error);
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP)).map_err(failed)?;
    match exempt {
        Exempt::Mark(mark) => set_mark(&socket, mark),
        Exempt::Uid(_) => set_priority(&socket),
    }
    .map_err(failed)?;
    Ok(socket)
}

async fn open(socket: Socket, address: SocketAddr) -> Result<TcpStream, ConnectError> {
    match TcpSocket::from_std_stream(socket.into()).connect(address).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(ConnectError::Refused(address)),
        Err(error) => Err(ConnectError::Failed(address, error)),
        Ok(stream) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
    }
}

/// Makes every close of `stream` a reset, until [`ended_cleanly`] is said: also the close that the kernel does when this
/// process is killed. An application must never take a broken connection for a finished one.
pub(crate) fn reset_unless_clean(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Both directions of `stream` ended in order: it may close like any other.
pub(crate) fn ended_cleanly(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}
