//! A gRPC channel to the control plane, over TLS that we do ourselves: tonic's own configuration takes no verifier, and
//! the peer must be exactly the control plane, not merely somebody whom the bundle vouches for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use byrnie_identity::{SpiffeId, SvidVerifier, VerifyError, tls};
use byrnie_redirect::Exempt;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::config::HostPort;
use crate::{limits, sockets};

/// Why the control plane could not be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the control plane's address {host} can't be resolved: {source}")]
    Resolve { host: HostPort, source: io::Error },
    #[error("the control plane {host} can't be reached: {reason}")]
    Tcp { host: HostPort, reason: String },
    #[error("the control plane {host} did not finish the TLS handshake within {} s", limits::TLS_HANDSHAKE.as_secs())]
    HandshakeTimedOut { host: HostPort },
    #[error("the control plane at {host} could not prove itself: {reason}; is --trust-bundle the bundle of this mesh?")]
    Untrusted { host: HostPort, reason: VerifyError },
    #[error("the TLS handshake with the control plane {host} failed: {source}")]
    Handshake { host: HostPort, source: io::Error },
    #[error("at {host} expected the control plane {expected}, found {found}")]
    WrongIdentity { host: HostPort, expected: SpiffeId, found: SpiffeId },
    #[error("HTTP/2 with the control plane {host} failed: {reason}")]
    Http { host: HostPort, reason: String },
}

impl ConnectError {
    /// A label from a closed set.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "unresolved",
            Self::Tcp { .. } => "unreachable",
            Self::HandshakeTimedOut { .. } | Self::Handshake { .. } => "handshake-failed",
            Self::Untrusted { .. } => "untrusted",
            Self::WrongIdentity { .. } => "wrong-identity",
            Self::Http { .. } => "http",
        }
    }
}

/// HTTP/2 pings find a control plane that vanished without a word: 10 s and 10 s, as the design's dead peers.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// For the resolver; it has timeouts of its own, which are longer than anyone wants to wait.
const RESOLVE: Duration = Duration::from_secs(5);

/// Opens a channel to `host`, past capture, and requires the peer to be `expected`.
///
/// # Errors
/// See [`ConnectError`].
pub(crate) async fn connect(
    host: &HostPort,
    exempt: Exempt,
    tls: Arc<ClientConfig>,
    verifier: &Arc<SvidVerifier>,
    expected: &SpiffeId,
) -> Result<Channel, ConnectError> {
    let stream = connect_any(host, exempt).await?;
    let stream = handshake(host, stream, tls).await?;
    check_identity(host, &stream, verifier, expected)?;
    over(stream).await.map_err(|error| ConnectError::Http { host: host.clone(), reason: all_causes(&error) })
}

async fn connect_any(host: &HostPort, exempt: Exempt) -> Result<TcpStream, ConnectError> {
    let unresolved = |source| ConnectError::Resolve { host: host.clone(), source };
    let addresses: Vec<SocketAddr> = match host.host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, host.port)],
        Err(_) => tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host.host.as_str(), host.port)))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(unresolved)?
            .take(8)
            .collect(),
    };
    let mut reason = "its name has no address".to_owned();
    for address in addresses {
        match sockets::connect(address, exempt).await {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(ConnectError::Tcp { host: host.clone(), reason })
}

async fn handshake(
    host: &HostPort,
    stream: TcpStream,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    // No name is sent and none is verified: the SPIFFE ID is what counts.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let handshake = TlsConnector::from(tls).connect(name, stream);
    match tokio::time::timeout(limits::TLS_HANDSHAKE, handshake).await {
        Err(_) => Err(ConnectError::HandshakeTimedOut { host: host.clone() }),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => {
            let inner = source.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
            match inner.and_then(tls::verify_error).cloned() {
                Some(reason) => Err(ConnectError::Untrusted { host: host.clone(), reason }),
                None => Err(ConnectError::Handshake { host: host.clone(), source }),
            }
        }
    }
}

fn check_identity(
    host: &HostPort,
    stream: &TlsStream<TcpStream>,
    verifier: &Arc<SvidVerifier>,
    expected: &SpiffeId,
) -> Result<(), ConnectError> {
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = verifier.verify(chain).map_err(|reason| ConnectError::Untrusted { host: host.clone(), reason })?;
    if peer.id() != expected {
        return Err(ConnectError::WrongIdentity {
            host: host.clone(),
            expected: expected.clone(),
            found: peer.id().clone(),
        });
    }
    Ok(())
}

/// HTTP/2 over this one stream: a second connection, which tonic would make by itself, would not be verified.
async fn over(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().ok().and_then(|mut stream| stream.take());
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    Endpoint::from_static("http://control-plane.byrnie")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

fn all_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
