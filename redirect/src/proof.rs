//! The proof that capture works, by whoever has just put it in place: it takes the proxy's place for a moment, dials an
//! address that only capture can answer (the canary), and must see its own connection arrive.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::geteuid;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    CANARY_APPLICATION_PORT, CANARY_GREETING, CANARY_V4, CANARY_V6, CaptureConfig, Exempt, OriginalDestination,
    original_dst,
};

/// Why it is not proved.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// This process is the one whose connections pass by.
    #[error("it takes a user whose connections are captured, and this process runs as UID {0}, which is exempt")]
    Exempt(u32),
    /// The proxy's port can't be listened on.
    #[error("can't listen on {address} in the proxy's place: {source}")]
    Listen {
        /// The proxy's port.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Neither family has a route that covers its canary.
    #[error("this network namespace has no route to {CANARY_V4} or {CANARY_V6}; expected a default route")]
    NoRoute,
    /// The connection did not arrive.
    #[error("a connection to {canary} did not arrive at the proxy's port: {found}; see `capture show`")]
    NotCaptured {
        /// What was dialled.
        canary: SocketAddr,
        /// What happened instead.
        found: String,
    },
}

/// For a connection that never leaves the machine.
const WAIT: Duration = Duration::from_secs(2);

/// Dials the canary of every address family that has a route to it, as the calling thread's user, and sees it arrive.
/// Returns what was dialled; at least one. Blocks for milliseconds, or a few seconds where capture does not work.
///
/// # Errors
/// See [`ProofError`].
pub fn prove(config: &CaptureConfig) -> Result<Vec<SocketAddr>, ProofError> {
    let own = geteuid().as_raw();
    if config.exempt == Exempt::Uid(own) {
        return Err(ProofError::Exempt(own));
    }
    let mut proved = Vec::new();
    for (canary, loopback) in
        [(IpAddr::from(CANARY_V4), IpAddr::from(Ipv4Addr::LOCALHOST)), (CANARY_V6.into(), Ipv6Addr::LOCALHOST.into())]
    {
        let canary = SocketAddr::new(canary, CANARY_APPLICATION_PORT);
        if !has_route(canary) {
            continue;
        }
        let place = Place::take(SocketAddr::new(loopback, config.outbound_port))?;
        match TcpStream::connect_timeout(&canary, WAIT) {
            Ok(dialled) => {
                let arrived = place.saw(&dialled, canary);
                arrived.map_err(|found| ProofError::NotCaptured { canary, found })?;
                proved.push(canary);
            }
            Err(error) => return Err(ProofError::NotCaptured { canary, found: error.to_string() }),
        }
    }
    if proved.is_empty() { Err(ProofError::NoRoute) } else { Ok(proved) }
}

/// The proxy's place in one address family.
enum Place {
    /// Taken by this process.
    Ours(TcpListener),
    /// Something listens there, which should be the proxy: it answers the canary.
    Proxys,
    /// This machine does not have the family.
    Missing,
}

impl Place {
    fn take(address: SocketAddr) -> Result<Self, ProofError> {
        match listen(address) {
            Ok(listener) => Ok(Self::Ours(listener)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(Self::Proxys),
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(Self::Missing),
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => Ok(Self::Missing),
            Err(source) => Err(ProofError::Listen { address, source }),
        }
    }

    /// Whether `dialled` arrived here, meant for `canary`; else what was seen.
    fn saw(&self, dialled: &TcpStream, canary: SocketAddr) -> Result<(), String> {
        // Both ends go without waiting: the proxy needs the port in a moment.
        let _ = SockRef::from(dialled).set_linger(Some(Duration::ZERO));
        match self {
            Self::Ours(listener) => arrived(listener, dialled, canary),
            Self::Proxys => answered(dialled),
            Self::Missing => Err("something else answered".to_owned()),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(8)?;
    Ok(socket.into())
}

fn arrived(listener: &TcpListener, dialled: &TcpStream, canary: SocketAddr) -> Result<(), String> {
    let own = dialled.local_addr().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + WAIT;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, source)) if source == own => {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return match original_dst(&stream) {
                    Ok(OriginalDestination(found)) if found == canary => Ok(()),
                    Ok(OriginalDestination(found)) => Err(format!("it arrived as a connection to {found}")),
                    Err(error) => Err(error.to_string()),
                };
            }
            // An application that runs already.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("something else answered".to_owned())
}

fn answered(mut dialled: &TcpStream) -> Result<(), String> {
    dialled.set_read_timeout(Some(WAIT)).map_err(|error| error.to_string())?;
    let mut greeting = [0; CANARY_GREETING.len()];
    match dialled.read_exact(&mut greeting) {
        Ok(()) if greeting == *CANARY_GREETING.as_bytes() => Ok(()),
        Ok(()) => Err("something that is no proxy has the proxy's port".to_owned()),
        Err(error) => Err(format!("whoever has the proxy's port did not answer: {error}")),
    }
}

/// Whether this network namespace would send anything to `address`. To connect a UDP socket asks the routes and sends
/// nothing; a TCP connection could also fail for a router's answer, which would mean that it was not captured.
fn has_route(address: SocketAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| socket.connect(address)).is_ok()
}
