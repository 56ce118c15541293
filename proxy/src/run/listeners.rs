//! Opens every listener before anything starts, and reports all that can't be.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use byrnie_redirect::set_keepalive;
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::Bound;
use crate::config::Config;
use crate::sockets::{CONGESTION_IN_POD, reset_unless_clean};

/// All listeners of the process.
pub(super) struct Listeners {
    pub(super) workers: Vec<WorkerListeners>,
    pub(super) admin: Vec<std::net::TcpListener>,
    pub(super) metrics: Vec<std::net::TcpListener>,
    pub(super) health: Vec<std::net::TcpListener>,
    /// Path of the Unix socket.
    pub(super) control: PathBuf,
}

/// The listeners of one worker.
pub(super) struct WorkerListeners {
    pub(super) outbound: Vec<std::net::TcpListener>,
    pub(super) inbound: Vec<std::net::TcpListener>,
}

/// Why a listener can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("{option}: {address} is taken by another process (`ss -ltnp` names it; see --help for other ports)")]
    Taken {
        /// The option that says where.
        option: &'static str,
        /// Where.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("{option}: can't listen on {address}: {source}")]
    Failed {
        /// The option that says where.
        option: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The Unix socket can't be bound.
    #[error("--admin-socket: can't listen on {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Connections that wait for accept; the kernel takes the smaller of this and `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Opens them all.
pub(super) fn open(config: &Config) -> Result<Listeners, Vec<ListenError>> {
    let mut errors = Vec::new();
    let listen = &config.listen;
    let mut workers = Vec::new();
    let shared = config.workers.get() > 1;
    if shared {
        // With SO_REUSEPORT a second proxy of the same user would bind without an error and take half of the
        // connections. A bind without it finds the first one.
        let probes = [("--outbound-port", listen.outbound()), ("--inbound-port", listen.inbound())];
        for (option, addresses) in probes {
            drop(bind_all(option, &addresses, false, &mut errors));
        }
    }
    for _ in 0..config.workers.get() {
        if !errors.is_empty() {
            break;
        }
        let outbound = only(bind_all("--outbound-port", &listen.outbound(), shared, &mut errors));
        outbound.iter().for_each(reset_unless_clean);
        workers.push(WorkerListeners {
            outbound,
            inbound: only(bind_all("--inbound-port", &listen.inbound(), shared, &mut errors)),
        });
    }
    let admin = only(bind_all("--admin-listen", &[listen.admin], false, &mut errors));
    let metrics = only(bind_all("--metrics-listen", &listen.metrics, false, &mut errors));
    let health = only(bind_all("--health-listen", &listen.health, false, &mut errors));
    let control = config.admin_socket.clone();
    if let Some(parent) = control.parent()
        && let Err(source) = private_directory(parent)
    {
        errors.push(ListenError::Socket { path: control.clone(), source });
    }
    if errors.is_empty() { Ok(Listeners { workers, admin, metrics, health, control }) } else { Err(errors) }
}

/// Makes the directory for its owner alone where it is missing; one that is there stays as it is.
fn private_directory(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn only(bound: Vec<Bound>) -> Vec<std::net::TcpListener> {
    bound.into_iter().map(|(_, listener)| listener).collect()
}

/// Binds all addresses; a family that this machine does not have is left out where there is another.
fn bind_all(option: &'static str, addresses: &[SocketAddr], shared: bool, errors: &mut Vec<ListenError>) -> Vec<Bound> {
    let mut bound = Vec::new();
    let mut missing = None;
    for address in addresses {
        match bind(*address, shared) {
            Ok(listener) => bound.push((*address, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                errors.push(ListenError::Taken { option, address: *address });
            }
            Err(source) => {
                let error = ListenError::Failed { option, address: *address, source };
                let errno = match &error {
                    ListenError::Failed { source, .. } => source.raw_os_error().map(Errno::from_raw),
                    _ => None,
                };
                if matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)) && addresses.len() > 1 {
                    missing = Some(error);
                } else {
                    errors.push(error);
                }
            }
        }
    }
    match missing {
        Some(error) if bound.is_empty() && errors.is_empty() => errors.push(error),
        Some(error) => tracing::info!(%error, "this machine lacks an address family; the other is used alone"),
        None => {}
    }
    bound
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // IPv4 has a listener of its own, so that both work where one is switched off.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit these (tcp(7), socket(7)), and are many.
    socket.set_tcp_nodelay(true)?;
    set_keepalive(&socket)?;
    if address.ip().is_loopback() {
        // It saves time, and nothing else depends on it.
        let _ = socket.set_tcp_congestion(CONGESTION_IN_POD);
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn free() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_its_option() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut errors = Vec::new();
        bind_all("--inbound-port", &[taken.local_addr().unwrap()], false, &mut errors);
        assert!(matches!(&errors[..], [ListenError::Taken { option: "--inbound-port", .. }]), "{errors:?}");
        assert!(errors[0].to_string().contains("ss -ltnp"));
    }

    #[test]
    fn what_a_listener_is_set_to_holds_for_what_it_accepts() {
        let address = free();
        let listener = bind(address, false).unwrap();
        reset_unless_clean(&listener);
        let _client = std::net::TcpStream::connect(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (accepted, listener) = (socket2::SockRef::from(&accepted), socket2::SockRef::from(&listener));
        assert!(accepted.tcp_nodelay().unwrap() && accepted.keepalive().unwrap());
        assert!(accepted.tcp_congestion().unwrap().starts_with(b"reno\0"));
        assert_eq!(accepted.linger().unwrap(), Some(std::time::Duration::ZERO));
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), listener.tcp_keepalive_time().unwrap());
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), listener.tcp_keepalive_interval().unwrap());
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), listener.tcp_keepalive_retries().unwrap());
    }

    #[test]
    fn workers_share_a_port_and_a_second_proxy_does_not() {
        let address = free();
        let mut errors = Vec::new();
        let first = bind_all("--inbound-port", &[address], true, &mut errors);
        let second = bind_all("--inbound-port", &[address], true, &mut errors);
        assert_eq!((first.len(), second.len(), errors.len()), (1, 1, 0));
        bind_all("--inbound-port", &[address], false, &mut errors);
        assert!(matches!(&errors[..], [ListenError::Taken { .. }]));
    }

    #[test]
    fn an_address_that_this_machine_lacks_is_an_error_where_it_is_the_only_one() {
        let nowhere = SocketAddr::new("192.0.2.77".parse().unwrap(), 0);
        let mut errors = Vec::new();
        assert!(bind_all("--metrics-listen", &[nowhere], false, &mut errors).is_empty());
        assert_eq!(errors.len(), 1);
        errors.clear();
        assert_eq!(bind_all("--metrics-listen", &[nowhere, free()], false, &mut errors).len(), 1);
        assert!(errors.is_empty());
    }
}
