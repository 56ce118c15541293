//! Attackers: they speak TLS and the tunnel protocol correctly, from where an attacker would stand, and lie only about
//! who they are.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use byrnie_identity::authority::{CertificateAuthority, IssueLimits};
use byrnie_identity::tls::{self, ALPN_TUNNEL, ClientAuth};
use byrnie_identity::{Clock, KeyPair, SpiffeId, Svid, SvidVerifier, TrustBundle, TrustBundles, TrustDomain};
use byrnie_netlab::Host;
use byrnie_proto::tunnel::{FrameType, HEADER_LEN, Header};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::load::sources;
use crate::apps::fetch::{self, Answer};
use crate::failure::{Exit, Failure};

/// Longest that an attack waits for the door to open.
const PATIENCE: Duration = Duration::from_secs(5);

/// How an attack ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The attacker got nothing.
    Refused(String),
    /// The attacker got through.
    Accepted(String),
}

/// A certificate of an authority that was made on the spot.
pub(super) fn foreign(trust_domain: &str, claims: &str) -> Result<Svid, Failure> {
    let trust_domain: TrustDomain = trust_domain.parse().map_err(cannot_forge)?;
    let authority = CertificateAuthority::create(trust_domain, &Clock::system()).map_err(cannot_forge)?;
    let id: SpiffeId = claims.parse().map_err(cannot_forge)?;
    issue(&authority, &id, Duration::from_secs(3600))
}

/// A certificate that the mesh's own authority, whose keys are in `authority`, issued some minutes ago for a minute.
pub(super) fn expired(authority: &Path, claims: &str) -> Result<Svid, Failure> {
    let id: SpiffeId = claims.parse().map_err(cannot_forge)?;
    let (past, _) = Clock::manual(SystemTime::now() - Duration::from_secs(300));
    let limits = IssueLimits::allow_shorter(Duration::from_secs(1));
    let authority = CertificateAuthority::open_or_create_with(authority, id.trust_domain().clone(), &past, limits);
    issue(&authority.map_err(cannot_forge)?, &id, Duration::from_secs(60))
}

fn issue(authority: &CertificateAuthority, id: &SpiffeId, ttl: Duration) -> Result<Svid, Failure> {
    let key = KeyPair::generate().map_err(cannot_forge)?;
    let issued = authority.issue(&key.spki_der(), id, ttl).map_err(cannot_forge)?;
    Svid::new(issued.chain, key).map_err(cannot_forge)
}

fn cannot_forge(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Refused, "cannot make the attacker's certificate").found(error)
}

/// Opens a tunnel from `host` to the pod at `target` as `svid`, and asks for a stream.
pub(super) async fn tunnel(host: &Host, target: SocketAddr, svid: &Svid, bundle: &TrustBundle, path: &str) -> Verdict {
    let attempt = async {
        let config = tls::client_config(Some(svid), &verifier(bundle), ALPN_TUNNEL).map_err(io::Error::other)?;
        let stream = host.connect_async(target).await?;
        let mut stream = TlsConnector::from(config).connect(ServerName::from(target.ip()), stream).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
        let open = Header { frame: FrameType::Open, length: 0, stream: 1 }.encode();
        let data = Header { frame: FrameType::Data, length: request.len(), stream: 1 }.encode();
        stream.write_all(&[&open, &data, request.as_bytes()].concat()).await?;
        let mut header = [0; HEADER_LEN];
        stream.read_exact(&mut header).await?;
        let header = Header::decode(header).map_err(io::Error::other)?;
        Ok::<_, io::Error>(header.frame)
    };
    match tokio::time::timeout(PATIENCE, attempt).await {
        Ok(Ok(FrameType::Refuse)) => Verdict::Refused("the stream was refused".into()),
        Ok(Ok(frame)) => Verdict::Accepted(format!("the server answered with {frame:?}")),
        Ok(Err(error)) => Verdict::Refused(sources(&error)),
        Err(_) => Verdict::Refused("no answer".into()),
    }
}

/// Calls the pod at `target` by HTTPS as an ingress would, but as `svid`; without one, anonymously.
pub(super) async fn ingress(
    host: &Host,
    target: SocketAddr,
    name: &str,
    svid: Option<&Svid>,
    bundle: &TrustBundle,
) -> Verdict {
    let attempt = async {
        let verifier = verifier(bundle);
        let config = match svid {
            Some(svid) => tls::ingress_client_config(svid, &verifier),
            None => tls::client_config(None, &verifier, b""),
        };
        let stream = host.connect_async(target).await?;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(config.map_err(io::Error::other)?);
        let stream = connector.connect(name, stream).await?;
        let url = format!("http://{target}/attack-ingress").parse().map_err(io::Error::other)?;
        fetch::get_on(stream, &url, None).await
    };
    verdict(tokio::time::timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
}

/// What an HTTP client got.
pub(super) fn verdict(answer: io::Result<Answer>) -> Verdict {
    match answer {
        Ok(answer) => Verdict::Accepted(format!("HTTP {}", answer.status)),
        Err(error) => Verdict::Refused(sources(&error)),
    }
}

/// Somebody who has taken a pod's address, and answers there with a certificate of the mesh that is not the pod's.
#[derive(Debug)]
pub(super) struct Impostor {
    handshakes: Rc<Cell<u64>>,
    bytes: Rc<Cell<u64>>,
}

impl Impostor {
    /// Listens on `host` at `at`, as `svid`.
    pub(super) fn start(host: &Host, at: SocketAddr, svid: &Svid, bundle: &TrustBundle) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(Exit::Refused, "cannot set up the impostor").found(error);
        let config = tls::server_config(svid, &verifier(bundle), ALPN_TUNNEL, ClientAuth::Required);
        let acceptor = TlsAcceptor::from(config.map_err(cannot_forge)?);
        let listener = host.listen(at).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let impostor = Self { handshakes: Rc::default(), bytes: Rc::default() };
        let (handshakes, bytes) = (Rc::clone(&impostor.handshakes), Rc::clone(&impostor.bytes));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                handshakes.set(handshakes.get() + 1);
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    bytes.set(bytes.get() + count as u64);
                }
            }
        });
        Ok(impostor)
    }

    /// Handshakes that it brought to an end, as far as a server can tell.
    pub(super) fn handshakes(&self) -> u64 {
        self.handshakes.get()
    }

    /// Bytes of the application that it was given.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }
}

fn verifier(bundle: &TrustBundle) -> Arc<SvidVerifier> {
    SvidVerifier::new(TrustBundles::from(bundle.clone()).shared(), Clock::system())
}
