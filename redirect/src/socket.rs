//! Options of the proxy's own sockets.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};

/// Silence before the first keepalive probe, and time between probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Unanswered probes after which a peer counts as gone: with the interval,
/// about 40 s after it last spoke.
pub const KEEPALIVE_PROBES: u32 = 3;

/// Marks the packets of a socket (`SO_MARK`), so that the capture rules know
/// the proxy's own connections. To be called before `connect`.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` (or `CAP_NET_RAW`) in the user namespace
/// that owns the network namespace.
pub fn set_mark(socket: &impl AsFd, mark: u32) -> io::Result<()> {
    setsockopt(socket, sockopt::Mark, &mark).map_err(|errno| {
        let error = io::Error::from(errno);
        let hint = "exempting the proxy by mark needs CAP_NET_ADMIN in its network namespace; \
                    give the proxy a UID of its own instead";
        io::Error::new(error.kind(), format!("cannot set mark {mark:#010x} on a socket: {error}; {hint}"))
    })
}

/// Gives a socket the priority by which the capture rules know the proxy's own
/// connections after they are closed ([`crate::PROXY_PRIORITY`]). To be called
/// before `connect`.
///
/// # Errors
/// What the kernel says; never for a TCP socket in practice.
pub fn set_priority(socket: &impl AsFd) -> io::Result<()> {
    let priority = i32::try_from(crate::PROXY_PRIORITY).unwrap_or_default();
    Ok(setsockopt(socket, sockopt::Priority, &priority)?)
}

/// Turns TCP keepalive on: [`KEEPALIVE_INTERVAL`] × [`KEEPALIVE_PROBES`].
/// Not `TCP_USER_TIMEOUT`, which kills a healthy peer that merely does not
/// read.
///
/// # Errors
/// What the kernel says; never for a TCP socket in practice.
pub fn set_keepalive(socket: &impl AsFd) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_INTERVAL)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn keepalive_is_on_with_our_times() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_keepalive(&listener).unwrap();
        let socket = SockRef::from(&listener);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
    }
}
