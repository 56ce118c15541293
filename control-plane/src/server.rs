//! The doors: TLS for proxies; a Unix socket for the command line, and in Kubernetes a loopback port for the same.

mod administration;
mod codec;
mod connection;
mod loopback;
mod routes;
mod socket;

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use self::{administration::AdministrationService, connection::Acceptor, routes::Routes};
pub(crate) use self::{codec::Fields, connection::Caller, socket::bind as bind_socket};
use crate::{limits, plane::Plane};

/// Serves proxies on all listeners until the control plane ends.
pub(crate) async fn serve_proxies(
    plane: Arc<Plane>,
    listeners: Vec<TcpListener>,
    config: Arc<ArcSwap<ServerConfig>>,
) -> Result<(), tonic::transport::Error> {
    let acceptor = Arc::new(Acceptor::new(config, plane.clone()));
    let (ready, connections) = mpsc::channel(16);
    for listener in listeners {
        tokio::spawn(acceptor.clone().run(listener, ready.clone()));
    }
    drop(ready);
    let ending = ended(plane.clone());
    builder().serve_with_incoming_shutdown(Routes::new(plane), ReceiverStream::new(connections), ending).await
}

/// Serves the command line on the Unix socket until the control plane ends.
pub(crate) async fn serve_administration(
    plane: Arc<Plane>,
    listener: UnixListener,
) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(socket::accept(listener, ready));
    let ending = ended(plane.clone());
    let service = AdministrationService::server(plane);
    builder().serve_with_incoming_shutdown(service, ReceiverStream::new(connections), ending).await
}

/// Serves the command line on a loopback port until the control plane ends: in Kubernetes it comes by the API server's
/// port-forward, which asks who may.
pub(crate) async fn serve_loopback(plane: Arc<Plane>, listener: TcpListener) -> Result<(), tonic::transport::Error> {
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(loopback::accept(listener, ready));
    let ending = ended(plane.clone());
    let service = AdministrationService::server(plane);
    builder().serve_with_incoming_shutdown(service, ReceiverStream::new(connections), ending).await
}

fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(limits::H2_KEEPALIVE))
        .http2_keepalive_timeout(Some(limits::H2_KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(limits::H2_STREAMS)
}

async fn ended(plane: Arc<Plane>) {
    let mut ending = plane.ending.subscribe();
    // An error means that the sender is gone, and that is an end, too.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// What listening on an address came to.
///
/// # Errors
/// The reason and what to do about it.
pub(crate) fn bind(address: std::net::SocketAddr, option: &str) -> Result<TcpListener, String> {
    listen(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => format!("{address}: the port is already taken; stop what listens there (ss -ltnp), or give another address with {option}"),
        io::ErrorKind::PermissionDenied => format!("{address}: this user may not listen there; give a port from 1024 on with {option}"),
        io::ErrorKind::AddrNotAvailable => format!("{address}: no interface of this machine has the address; give one of its own with {option}"),
        _ => format!("{address}: {error}; give another address with {option}"),
    })
}

/// [`bind`] for what answers whoever reaches it.
///
/// # Errors
/// As there, and for an address that others than this machine can reach.
pub(crate) fn bind_loopback(address: std::net::SocketAddr) -> Result<TcpListener, String> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(format!(
            "--admin-listen {address}: expected a loopback address, such as 127.0.0.1:15129: what it shows is for \
             operators, and it asks nobody who they are"
        ));
    }
    bind(address, "--admin-listen")
}

fn listen(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // 0.0.0.0 and [::] stand side by side on one port only where the latter leaves IPv4 alone.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_families_share_a_port_and_a_taken_one_is_told() {
        let bind = |address| super::bind(address, "--listen");
        let four = bind("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = four.local_addr().unwrap().port();
        let six = bind(format!("[::]:{port}").parse().unwrap());
        // A machine without IPv6 can't say more about it.
        assert!(six.as_ref().is_ok() || six.as_ref().is_err_and(|told| !told.contains("taken")), "{six:?}");
        let told = bind(format!("127.0.0.1:{port}").parse().unwrap()).unwrap_err();
        assert!(told.contains("already taken") && told.contains("--listen"), "{told}");
        let told = bind("192.0.2.1:1".parse().unwrap()).unwrap_err();
        assert!(told.contains("no interface"), "{told}");
    }

    #[tokio::test]
    async fn what_asks_nobody_who_they_are_is_on_no_address_that_others_reach() {
        for reachable in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
            let told = bind_loopback(reachable.parse().unwrap()).unwrap_err();
            assert!(told.contains("loopback") && told.contains("--admin-listen"), "{told}");
        }
        bind_loopback("127.0.0.1:0".parse().unwrap()).unwrap();
    }
}
