//! Where a connection wanted to go before capture redirected it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt};

/// The address a redirected connection was meant for. Its own type, so that
/// it cannot be taken for the address of a peer or of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginalDestination(pub SocketAddr);

impl fmt::Display for OriginalDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a connection has no original destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRedirected {
    /// Connection tracking knows it, and nothing rewrote its destination: it
    /// was dialled straight at the listener.
    #[error("the connection was made to {0} itself, not redirected to it by the capture rules")]
    Direct(SocketAddr),
    /// Connection tracking does not know it: there are no capture rules in
    /// this network namespace, or its entry was flushed.
    #[error(
        "the connection to {0} is unknown to connection tracking: no capture rules are in \
         this network namespace (see `byrnie capture show`)"
    )]
    Untracked(SocketAddr),
    /// The kernel would not say.
    #[error("cannot read the original destination of the connection: {0}")]
    Unreadable(Errno),
}

/// The destination that `stream` was meant for, from `SO_ORIGINAL_DST`
/// (IPv4, and IPv4 inside an IPv6 socket) or `IP6T_SO_ORIGINAL_DST`.
///
/// # Errors
/// [`NotRedirected`] when no capture rule rewrote the connection.
pub fn original_dst(stream: &impl AsFd) -> Result<OriginalDestination, NotRedirected> {
    let fd = stream.as_fd();
    let local = getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .map_err(NotRedirected::Unreadable)
        .and_then(|name| socket_addr(&name).ok_or(NotRedirected::Unreadable(Errno::EAFNOSUPPORT)))?;
    let found = match local.ip() {
        IpAddr::V4(_) => getsockopt(&fd, OriginalDst).map(from_v4),
        IpAddr::V6(_) => getsockopt(&fd, Ip6tOriginalDst).map(from_v6),
    };
    match found {
        Ok(original) if original == local => Err(NotRedirected::Direct(local)),
        Ok(original) => Ok(OriginalDestination(original)),
        Err(Errno::ENOENT | Errno::ENOPROTOOPT) => Err(NotRedirected::Untracked(local)),
        Err(errno) => Err(NotRedirected::Unreadable(errno)),
    }
}

/// The address of a socket, with IPv4 inside IPv6 as the IPv4 it is: such a
/// connection is tracked, and was redirected, as IPv4.
fn socket_addr(name: &SockaddrStorage) -> Option<SocketAddr> {
    let address = name
        .as_sockaddr_in()
        .map(|v4| SocketAddr::from((v4.ip(), v4.port())))
        .or_else(|| name.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

fn from_v4(raw: nix::libc::sockaddr_in) -> SocketAddr {
    let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    SocketAddr::from((address, u16::from_be(raw.sin_port)))
}

fn from_v6(raw: nix::libc::sockaddr_in6) -> SocketAddr {
    let address = Ipv6Addr::from(raw.sin6_addr.s6_addr);
    SocketAddr::from((address, u16::from_be(raw.sin6_port)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_that_nothing_redirected_has_no_original_destination() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        let expected = [NotRedirected::Direct(address), NotRedirected::Untracked(address)];
        let found = original_dst(&server).unwrap_err();
        assert!(expected.contains(&found), "{found:?}");
    }

    #[test]
    fn a_socket_that_is_not_tcp_is_refused_and_not_a_panic() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(original_dst(&one), Err(NotRedirected::Unreadable(_))));
    }
}
