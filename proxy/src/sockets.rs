//! How every TCP connection of the data path is made and tuned.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use byrnie_redirect::{Exempt, set_keepalive, set_mark, set_priority};
use nix::libc::{MSG_MORE, MSG_NOSIGNAL};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
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
/// `speaks_first`: the caller has something to say at once, which the last segment of the handshake waits for (200 ms at
/// most): it is one segment less, and the application is woken once. [`spoken_first`] is to be called after that.
pub(crate) async fn connect_in_pod(
    address: SocketAddr,
    exempt: Exempt,
    speaks_first: bool,
) -> Result<TcpStream, ConnectError> {
    let socket = socket(address, exempt)?;
    // Both save time, and nothing else depends on them.
    let _ = socket.set_tcp_congestion(CONGESTION_IN_POD);
    if speaks_first {
        let _ = socket.set_tcp_quickack(false);
    }
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

/// What was to be said first to the application behind `stream` has been said. Left as it is, the kernel would hold back
/// acknowledgements from now on, 40 ms at most, and an application that answers in two small writes, without
/// `TCP_NODELAY`, waits for one between them (RFC 896).
pub(crate) fn spoken_first(stream: &TcpStream) {
    let _ = stream.set_quickack(true);
}

/// Writes what `stream` takes of `pieces`. `last`: the caller ends this direction right after them, and so that both are one
/// segment, what does not fill one is not sent before that.
///
/// # Errors
/// Those of the socket; `WouldBlock` where it takes nothing.
pub(crate) fn write_some(stream: &TcpStream, pieces: &[IoSlice<'_>], last: bool) -> io::Result<usize> {
    let socket = SockRef::from(stream);
    let flags = MSG_NOSIGNAL | if last { MSG_MORE } else { 0 };
    stream.try_io(Interest::WRITABLE, || match pieces {
        [piece] => socket.send_with_flags(piece, flags),
        _ => socket.send_vectored_with_flags(pieces, flags),
    })
}

/// Makes every close of `stream` a reset, until [`ended_cleanly`] is said: also the close that the kernel does when this
/// process is killed. An application must never take a broken connection for a finished one. What a listener accepts is as
/// the listener.
pub(crate) fn reset_unless_clean(stream: &impl AsFd) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Both directions of `stream` ended in order: it may close like any other.
pub(crate) fn ended_cleanly(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(None);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use byrnie_redirect::PROXY_UID;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::test_support::{connected, listener};

    #[tokio::test]
    async fn who_was_spoken_to_first_gets_its_answer_acknowledged_like_anybody() {
        for speaks_first in [false, true] {
            let (_application, address) = listener().await;
            let stream = connect_in_pod(address, Exempt::Uid(PROXY_UID), speaks_first).await.unwrap();
            stream.writable().await.unwrap();
            stream.try_write(b"first words").unwrap();
            if speaks_first {
                spoken_first(&stream);
            }
            assert!(stream.quickack().unwrap());
        }
    }

    #[tokio::test]
    async fn last_words_arrive_with_the_end_behind_them() {
        let (stream, mut application) = connected().await;
        stream.writable().await.unwrap();
        let pieces = [IoSlice::new(b"last "), IoSlice::new(b"words")];
        assert_eq!(write_some(&stream, &pieces, true).unwrap(), 10);
        SockRef::from(&stream).shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = String::new();
        application.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "last words");
    }
}
