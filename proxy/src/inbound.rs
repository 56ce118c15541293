//! The server's side of a connection: what arrives at the pod's own addresses. The first bytes say what it is, and
//! whether it may go further is decided before the application is dialled.

mod gate;
mod ingress;
mod local;
mod plaintext;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use byrnie_identity::tls::ALPN_TUNNEL;
use byrnie_policy::MtlsMode;
use byrnie_redirect::{OriginalDestination, original_dst};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

pub(crate) use gate::Gate;
use local::is_own_address;

use crate::limits::{ACCEPT_BACKOFF, BUFFER_MIN, CLIENT_HELLO, TLS_HANDSHAKE};
use crate::model::OwnPod;
use crate::room::{Place, Room, Seldom};
use crate::shared::Shared;
use crate::sockets;
use crate::streams::Arrived;
use crate::telemetry::{Connection, Direction};
use crate::tunnel::client_hello::{ClientHelloReader, FirstBytes};
use crate::tunnel::pool::Worker;
use crate::tunnel::{Tunnel, server};

/// Accepts what capture brings to the inbound port, until the proxy ends.
pub async fn serve(shared: Arc<Shared>, _worker: Arc<Worker>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &shared.room) => accepted,
            // The kernel resets what waits in the queue: nothing of it was read, so its clients go elsewhere.
            () = shared.drain.closing() => return,
        };
        match accepted {
            Some((stream, source, place)) => {
                let (arrived, shared) = (Arrived::of(&shared), shared.clone());
                tokio::spawn(async move {
                    let (_arrived, _place) = (arrived, place);
                    handle(shared, stream, source).await;
                });
            }
            None => tokio::time::sleep(ACCEPT_BACKOFF).await,
        }
    }
}

/// The next connection that there is room for; `None` where the process is out of something and has to wait.
pub(crate) async fn accept(listener: &TcpListener, room: &Room) -> Option<(TcpStream, SocketAddr, Place)> {
    let place = room.place().await;
    match listener.accept().await {
        Ok((stream, source)) => Some((stream, SocketAddr::new(source.ip().to_canonical(), source.port()), place)),
        // The client gave up while it waited: the next one is there already, or will be.
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => None,
        Err(error) => {
            warn_of_exhaustion(&error);
            None
        }
    }
}

fn warn_of_exhaustion(error: &io::Error) {
    static WARNED: Seldom = Seldom::new();
    if WARNED.is_due() {
        tracing::warn!(%error, "connections can't be accepted now; check the limit of open files (ulimit -n)");
    }
}

pub(crate) async fn handle(shared: Arc<Shared>, stream: TcpStream, source: SocketAddr) {
    let dialled = match original_dst(&stream) {
        Ok(dialled) if dialled.0.port() != shared.config.listen.inbound_port && is_own_address(dialled.0.ip()) => {
            dialled
        }
        other => {
            let found = other.map_or_else(|error| error.to_string(), |dialled| dialled.0.to_string());
            let address = stream.local_addr().unwrap_or(source);
            sockets::reset_unless_clean(&stream);
            let connection = shared.telemetry.connection(Direction::Inbound, source, address);
            return connection
                .refuse("not-redirected", format!("expected a captured connection to this pod, found {found}"));
        }
    };
    let until = Instant::now() + TLS_HANDSHAKE;
    let connection = Inbound { shared: shared.clone(), stream, source, dialled, until };
    // Boxed: what it takes to get in is given back when that is done.
    if let Some((tunnel, _held)) = Box::pin(connection.run()).await {
        server::serve(&shared, tunnel, source, dialled).await;
    }
}

/// Why an evicted handshake is refused: label and sentence.
const TOO_MANY: (&str, &str) = ("too-many-handshakes", "this address has more handshakes under way than any other");

/// A tunnel whose peer has proved who it is, and its place among those of this peer.
type Admitted = (Box<Tunnel>, gate::Held);

/// One connection to the pod, of which nothing is known but the addresses.
struct Inbound {
    shared: Arc<Shared>,
    stream: TcpStream,
    source: SocketAddr,
    dialled: OriginalDestination,
    /// When it must have proved who it is.
    until: Instant,
}

impl Inbound {
    /// Serves or refuses whatever it is; only a tunnel is left to its caller.
    async fn run(self) -> Option<Admitted> {
        let Some(own) = self.shared.control.own() else {
            return self.turned_away("not-ready", "this proxy has no policies yet".into());
        };
        let port = self.dialled.0.port();
        match own.policies.mtls_mode(port, self.shared.clock.wall()) {
            MtlsMode::Strict => self.strict(&own).await,
            MtlsMode::Permissive => Box::pin(self.permissive(&own)).await,
        }
    }

    /// Nothing but TLS gets further than its first byte.
    async fn strict(self, own: &OwnPod) -> Option<Admitted> {
        let gate = self.shared.room.gate().enter(self.source.ip());
        let (mut reader, mut read) = (ClientHelloReader::default(), Vec::new());
        let first = tokio::select! {
            first = first_bytes(&self.stream, &mut reader, &mut read, self.until) => first,
            () = gate.evicted() => return self.turned_away(TOO_MANY.0, TOO_MANY.1.into()),
        };
        match first {
            Ok(FirstBytes::Offers) => self.tunnel(read, gate).await,
            // Boxed: rare, and larger than all the rest.
            Ok(FirstBytes::OtherTls) => {
                Box::pin(self.other_tls(own, read, gate)).await;
                None
            }
            Ok(FirstBytes::NotTls) => {
                self.turned_away("plaintext-refused", "plaintext, where mTLS is strict; expected byrnie/1".into())
            }
            Ok(FirstBytes::Incomplete) => {
                self.turned_away("silent", "no ClientHello within 5 s, where mTLS is strict".into())
            }
            Err(error) => {
                self.turned_away("closed-early", format!("the client closed before it had said what it is: {error}"))
            }
        }
    }

    async fn tunnel(self, read: Vec<u8>, gate: gate::Entered) -> Option<Admitted> {
        let Some(certificates) = self.shared.certificates.current() else {
            return self.turned_away("no-svid", "this proxy has no SVID yet".into());
        };
        let Inbound { shared, stream, source, dialled, until } = self;
        let accepted = tokio::select! {
            accepted = server::accept(&shared, &certificates, stream, read, until) => accepted,
            () = gate.evicted() => {
                shared.telemetry.connection(Direction::Inbound, source, dialled.0).refuse(TOO_MANY.0, TOO_MANY.1.into());
                return None;
            }
        };
        drop(gate);
        match accepted {
            Ok(tunnel) => {
                if let Some(held) = shared.room.gate().admit_peer(tunnel.peer().id()) {
                    return Some((tunnel, held));
                }
                let mut connection = record(&shared, source, dialled);
                connection.source(source.ip().to_string().into(), Some(tunnel.peer().id().clone()));
                Box::pin(server::turn_away(&shared, tunnel, connection, until)).await;
            }
            Err(error) => record(&shared, source, dialled).refuse(error.cause(), error.to_string()),
        }
        None
    }

    fn turned_away(&self, cause: &'static str, reason: String) -> Option<Admitted> {
        self.refuse(cause, reason);
        None
    }

    fn refuse(&self, cause: &'static str, reason: String) {
        sockets::reset_unless_clean(&self.stream);
        record(&self.shared, self.source, self.dialled).refuse(cause, reason);
    }
}

/// The record of a connection whose source is known by its address alone.
fn record(shared: &Shared, source: SocketAddr, dialled: OriginalDestination) -> Box<Connection> {
    let mut connection = shared.telemetry.connection(Direction::Inbound, source, dialled.0);
    connection.source(source.ip().to_string().into(), None);
    if let Some(own) = shared.control.own() {
        connection.destination(own.workload.clone(), Some(own.spiffe_id.clone()));
    }
    connection
}

/// Reads until it is known what the connection is, or `until` has passed ([`FirstBytes::Incomplete`] then). What is read
/// is appended to `read`.
///
/// # Errors
/// The client's end, or that of its connection.
async fn first_bytes(
    stream: &TcpStream,
    reader: &mut ClientHelloReader,
    read: &mut Vec<u8>,
    until: Instant,
) -> io::Result<FirstBytes> {
    let reading = async {
        loop {
            stream.readable().await?;
            read.reserve(BUFFER_MIN);
            let before = read.len();
            match stream.try_read_buf(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => match reader.feed(read.get(before..).unwrap_or_default(), ALPN_TUNNEL) {
                    FirstBytes::Incomplete if read.len() > 2 * CLIENT_HELLO => return Ok(FirstBytes::NotTls),
                    FirstBytes::Incomplete => {}
                    known => return Ok(known),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    };
    tokio::time::timeout_at(until, reading).await.unwrap_or(Ok(FirstBytes::Incomplete))
}
