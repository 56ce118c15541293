//! Peers that are gone while data is under way to them, which keepalive does
//! not find: the kernel sends no keepalive probe while anything waits to be
//! acknowledged or sent, and gives up by itself only after about a quarter of
//! an hour (`tcp_retries2`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nlink::netlink::SockDiag;
use nlink::sockdiag::{InetSocket, SocketFilter, SocketInfo, TcpInfo, TcpState};
use socket2::{SockAddr, SockRef};

use crate::KEEPALIVE_PROBES;

/// One end of a TCP connection, by its two addresses: they name one socket of
/// a network namespace. IPv4 inside IPv6 is the IPv4 that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leg {
    /// This end's address.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

impl Leg {
    /// The addresses of a connected socket.
    ///
    /// # Errors
    /// `ENOTCONN` when it is not, or no longer, connected.
    pub fn of(socket: &impl AsFd) -> io::Result<Leg> {
        let socket = SockRef::from(socket);
        let address = |address: SockAddr| address.as_socket().ok_or(io::Error::from(io::ErrorKind::Unsupported));
        Ok(Leg::between(address(socket.local_addr()?)?, address(socket.peer_addr()?)?))
    }

    fn between(local: SocketAddr, remote: SocketAddr) -> Leg {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Leg { local: plain(local), remote: plain(remote) }
    }
}

/// The kernel did not tell about its sockets.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot look at the TCP sockets of this network namespace: {0}. A peer that vanishes with data under way is found \
     late, by the kernel, after about 15 min. sock_diag needs no privilege, but CONFIG_INET_TCP_DIAG (module `tcp_diag`; \
     try `modprobe` on the node), and a seccomp profile that allows netlink sockets"
)]
pub struct SocketsUnreadable(#[from] nlink::Error);

/// The ends, in the network namespace of the calling thread, whose peers are
/// gone although data is under way to them: nothing was heard from them for
/// `bound`, and [`KEEPALIVE_PROBES`] retransmissions or window probes in a row
/// went unanswered. A peer that merely does not read has closed its window and
/// answers the probes, so it is never among them; this is what
/// `TCP_USER_TIMEOUT` gets wrong.
///
/// One dump by netlink `sock_diag` (`tcp_info` of `linux/tcp.h`), by anybody,
/// over every connected socket of the namespace. It blocks for that long. A
/// kernel before 5.4 does not tell the window; there only the peers with a
/// closed window are found.
///
/// # Errors
/// [`SocketsUnreadable`] when the kernel refuses.
pub fn stalled_peers(bound: Duration) -> Result<Vec<Leg>, SocketsUnreadable> {
    // The states in which something may still be under way to the peer.
    let states = [TcpState::Established, TcpState::CloseWait, TcpState::FinWait1, TcpState::Closing, TcpState::LastAck];
    let filter = SocketFilter::tcp().states(&states).with_tcp_info().build();
    let kernel = nlink::blocking::Connection::<SockDiag>::new()?;
    let sockets = kernel.run(|kernel| Box::pin(async move { kernel.query(&filter).await }))?;
    let is_stalled = |socket: &&InetSocket| socket.tcp_info.as_ref().is_some_and(|info| stalled(info, bound));
    let stalled = sockets.iter().filter_map(SocketInfo::as_inet).filter(is_stalled);
    Ok(stalled.map(|socket| Leg::between(socket.local, socket.remote)).collect())
}

fn stalled(info: &TcpInfo, bound: Duration) -> bool {
    // Either alone may be old on a healthy connection: a peer that only sends
    // leaves the time of its last ACK as it was (header prediction), and one
    // that only receives sends no data.
    let silent = Duration::from_millis(info.last_ack_recv.min(info.last_data_recv).into());
    let open = info.unacked > 0 && info.snd_wnd > 0;
    // An ACK that moves anything resets the first, any ACK the second. Without
    // them a single segment sent after a long silence would look like a stall
    // for the one round trip that its ACK takes.
    let unanswered = if open { info.retransmits } else { info.probes };
    silent >= bound && u32::from(unanswered) >= KEEPALIVE_PROBES
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    const BOUND: Duration = Duration::from_secs(30);

    /// Data under way to a peer that vanished 31 s ago.
    fn vanished() -> TcpInfo {
        TcpInfo {
            unacked: 4,
            snd_wnd: 65_536,
            retransmits: 7,
            last_ack_recv: 31_000,
            last_data_recv: 45_000,
            ..TcpInfo::default()
        }
    }

    /// Data waiting for a peer that closed its window and answers the probes,
    /// which the kernel sends up to 120 s apart.
    fn not_reading() -> TcpInfo {
        TcpInfo { notsent_bytes: 100_000, last_ack_recv: 119_000, last_data_recv: 3_600_000, ..TcpInfo::default() }
    }

    #[test]
    fn a_peer_that_left_data_unanswered_is_stalled() {
        assert!(stalled(&vanished(), BOUND));
    }

    #[test]
    fn it_is_not_before_the_bound() {
        assert!(!stalled(&TcpInfo { last_ack_recv: 29_999, ..vanished() }, BOUND));
    }

    #[test]
    fn a_peer_that_sends_is_alive_however_old_its_last_ack() {
        assert!(!stalled(&TcpInfo { last_ack_recv: 3_600_000, last_data_recv: 10, ..vanished() }, BOUND));
    }

    #[test]
    fn a_segment_sent_after_a_long_silence_has_time_to_be_answered() {
        assert!(!stalled(&TcpInfo { unacked: 1, retransmits: 0, ..vanished() }, BOUND));
        assert!(!stalled(&TcpInfo { unacked: 1, retransmits: 2, ..vanished() }, BOUND));
    }

    #[test]
    fn a_peer_that_merely_does_not_read_is_not_stalled() {
        assert!(!stalled(&not_reading(), BOUND));
        assert!(!stalled(&TcpInfo { probes: 2, ..not_reading() }, BOUND), "two lost probes prove nothing");
    }

    #[test]
    fn a_window_that_closed_over_data_under_way_is_no_stall() {
        assert!(!stalled(&TcpInfo { snd_wnd: 0, ..vanished() }, BOUND));
    }

    #[test]
    fn a_peer_that_vanished_with_its_window_closed_leaves_probes_unanswered() {
        assert!(stalled(&TcpInfo { probes: 3, ..not_reading() }, BOUND));
    }

    #[test]
    fn a_leg_is_what_both_ends_say_and_ipv4_inside_ipv6_is_ipv4() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let at = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let near = TcpStream::connect(at).unwrap();
        let (far, _) = listener.accept().unwrap();
        let (near, far) = (Leg::of(&near).unwrap(), Leg::of(&far).unwrap());
        assert_eq!(near, Leg { local: far.remote, remote: far.local });
        assert_eq!(near.remote, at);
    }

    #[test]
    fn the_kernel_answers_an_unprivileged_question() {
        stalled_peers(BOUND).unwrap();
    }
}
