//! Peers that are no proxies of ours: with a certificate of the mesh, an expired one, somebody else's, or none, and with
//! or without manners. They speak TLS by rustls and frames by the codec of `byrnie_proto`, one step at a time, as a
//! scenario wants.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::authority::{CertificateAuthority, IssueLimits};
use byrnie_identity::tls::{self, ALPN_TUNNEL, ClientAuth};
use byrnie_identity::{Clock, KeyPair, SpiffeId, Svid, SvidVerifier, TrustBundle, TrustBundles, TrustDomain};
use byrnie_proto::tunnel::{Received, Role, Session, v1};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::{DEADLINE, Mesh, Pod, within};

/// Makes identities as the mesh's own authority does, or as another's.
pub struct Mint {
    authority: CertificateAuthority,
}

impl Mint {
    /// The authority of the mesh itself, by its key on disk: what a thief of that key could do.
    pub fn of(mesh: &Mesh) -> Self {
        let domain = "cluster.local".parse().expect("a trust domain");
        let limits = IssueLimits::allow_shorter(Duration::from_secs(1));
        // A copy: the control plane's own files stay as they are.
        let copy = mesh.directory().join("stolen-ca");
        copy_directory(&mesh.control_plane().state().join("ca"), &copy);
        let authority = CertificateAuthority::open_or_create_with(&copy, domain, &Clock::system(), limits);
        Self { authority: authority.expect("the mesh's authority") }
    }

    /// An authority that nobody in the mesh trusts.
    pub fn foreign(trust_domain: &str) -> Self {
        let domain: TrustDomain = trust_domain.parse().expect("a trust domain");
        let limits = IssueLimits::allow_shorter(Duration::from_secs(1));
        Self { authority: CertificateAuthority::create_with(domain, &Clock::system(), limits).expect("an authority") }
    }

    /// An SVID for a workload.
    pub fn svid(&self, namespace: &str, service_account: &str, ttl: Duration) -> Svid {
        let id = SpiffeId::workload(self.authority.trust_domain(), namespace, service_account).expect("a SPIFFE ID");
        let key = KeyPair::generate().expect("a key");
        let issued = self.authority.issue(&key.spki_der(), &id, ttl).expect("an SVID");
        Svid::new(issued.chain, key).expect("an SVID")
    }

    /// The authority's roots.
    pub fn bundle(&self) -> TrustBundle {
        self.authority.bundle()
    }
}

/// A verifier that trusts these roots.
pub fn verifier(bundle: TrustBundle) -> Arc<SvidVerifier> {
    let mut bundles = TrustBundles::default();
    bundles.insert(bundle);
    SvidVerifier::new(bundles.shared(), Clock::system())
}

/// Does a TLS handshake as a client of the mesh, with `svid` or without a certificate.
///
/// # Errors
/// A refused connection or handshake. In TLS 1.3 a server's refusal of the client's certificate comes only with the
/// first read.
pub async fn connect(
    pod: &Pod,
    to: SocketAddr,
    svid: Option<&Svid>,
    trusting: &Arc<SvidVerifier>,
    alpn: &[u8],
) -> io::Result<client::TlsStream<TcpStream>> {
    let config = tls::client_config(svid, trusting, alpn).expect("a TLS configuration");
    let stream = pod.connect(to).await?;
    let name = ServerName::IpAddress(to.ip().into());
    within("a TLS handshake", DEADLINE / 5, TlsConnector::from(config).connect(name, stream)).await
}

/// A tunnel as a client of the mesh.
///
/// # Errors
/// As [`connect`].
pub async fn tunnel(
    pod: &Pod,
    to: SocketAddr,
    svid: &Svid,
    trusting: &Arc<SvidVerifier>,
) -> io::Result<RawTunnel<client::TlsStream<TcpStream>>> {
    Ok(RawTunnel::new(connect(pod, to, Some(svid), trusting, ALPN_TUNNEL).await?, Role::Client))
}

/// Does the handshake as a server of the mesh.
///
/// # Errors
/// A client that went away or did not get through.
pub async fn accept(
    stream: TcpStream,
    svid: &Svid,
    trusting: &Arc<SvidVerifier>,
) -> io::Result<RawTunnel<server::TlsStream<TcpStream>>> {
    let config = tls::server_config(svid, trusting, ALPN_TUNNEL, ClientAuth::Required).expect("a TLS configuration");
    let stream = within("a TLS handshake", DEADLINE / 5, TlsAcceptor::from(config).accept(stream)).await?;
    Ok(RawTunnel::new(stream, Role::Server))
}

/// What the other end of a tunnel said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// `OPEN`
    Open(v1::Open),
    /// `ACCEPT`
    Accept(v1::Accept),
    /// `REFUSE`
    Refuse(v1::Refuse),
    /// `DATA`, a piece of it
    Data(Vec<u8>),
    /// `FIN`
    Fin,
    /// `RESET`
    Reset(v1::ResetCode),
    /// `GOAWAY`, with the last stream
    GoAway(u32),
    /// `REAUTH`
    Reauth,
    /// TLS ended in order.
    Closed,
    /// TCP ended, in whatever way, without TLS having ended.
    Broken,
}

/// One end of a tunnel, driven by hand.
pub struct RawTunnel<S> {
    stream: S,
    session: Session,
    read: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawTunnel<S> {
    fn new(stream: S, role: Role) -> Self {
        Self { stream, session: Session::new(role), read: Vec::new() }
    }

    /// Opens the next stream.
    pub async fn open(&mut self) {
        let nonce = if self.session.wants_nonce() { vec![7; 32] } else { Vec::new() };
        let open = v1::Open { nonce, ..Default::default() };
        self.send(|session, out| assert!(session.open(&open, out), "no stream may follow")).await;
    }

    /// Opens a stream and hears what becomes of it.
    pub async fn open_and_hear(&mut self) -> Said {
        self.open().await;
        self.hear().await
    }

    /// Accepts the stream that was asked for.
    pub async fn accept_stream(&mut self) {
        let nonce = if self.session.wants_nonce() { vec![9; 32] } else { Vec::new() };
        self.send(|session, out| session.accept(&v1::Accept { nonce }, out)).await;
    }

    /// Refuses it.
    pub async fn refuse(&mut self, code: v1::RefuseCode, retryable: bool) {
        let refuse = v1::Refuse { code: code.into(), retryable, ..Default::default() };
        self.send(|session, out| session.refuse(&refuse, out)).await;
    }

    /// Says `DATA`.
    pub async fn data(&mut self, bytes: &[u8]) {
        self.send(|session, out| {
            out.extend_from_slice(&session.data(bytes.len()));
            out.extend_from_slice(bytes);
        })
        .await;
    }

    /// Says `FIN`.
    pub async fn fin(&mut self) {
        self.send(Session::fin).await;
    }

    /// Says `RESET`.
    pub async fn reset(&mut self, code: v1::ResetCode) {
        self.send(|session, out| session.reset(code, out)).await;
    }

    /// Says `GOAWAY`.
    pub async fn go_away(&mut self) {
        self.send(Session::go_away).await;
    }

    /// Says anything at all. What it cannot deliver any more is the other end's affair.
    pub async fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Hears the next thing that the other end says.
    ///
    /// # Panics
    /// When it breaks the protocol, or is silent for too long.
    pub async fn hear(&mut self) -> Said {
        within("a frame from the other end", DEADLINE / 5, self.next()).await
    }

    /// Hears `count` bytes of `DATA`, in however many pieces.
    ///
    /// # Panics
    /// When something else comes first.
    pub async fn hear_data(&mut self, count: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        while heard.len() < count {
            match self.hear().await {
                Said::Data(piece) => heard.extend(piece),
                other => panic!("expected DATA, {count} bytes of it, heard {other:?} after {}", heard.len()),
            }
        }
        heard
    }

    /// As [`RawTunnel::hear`], without a deadline.
    ///
    /// # Panics
    /// When the other end breaks the protocol.
    pub async fn next(&mut self) -> Said {
        loop {
            let (taken, said) = {
                let (taken, received) = self.session.receive(&self.read).expect("what the protocol allows");
                (taken, received.map(owned))
            };
            self.read.drain(..taken);
            if let Some(said) = said {
                return said;
            }
            if taken > 0 && !self.read.is_empty() {
                continue;
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => return Said::Closed,
                Ok(_) => {}
                Err(_) => return Said::Broken,
            }
        }
    }

    /// TLS and what was not read of it.
    pub fn into_stream(self) -> S {
        self.stream
    }

    async fn send(&mut self, write: impl FnOnce(&mut Session, &mut Vec<u8>)) {
        let mut frames = Vec::new();
        write(&mut self.session, &mut frames);
        self.say(&frames).await;
    }
}

fn owned(received: Received<'_>) -> Said {
    match received {
        Received::Open(open) => Said::Open(open),
        Received::Accept(accept) => Said::Accept(accept),
        Received::Refuse(refuse) => Said::Refuse(refuse),
        Received::Data(bytes) => Said::Data(bytes.to_vec()),
        Received::Fin => Said::Fin,
        Received::Reset(reset) => Said::Reset(reset.code()),
        Received::GoAway(last) => Said::GoAway(last),
        Received::Reauth(_) => Said::Reauth,
    }
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    let entries = std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    for entry in entries.flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}
