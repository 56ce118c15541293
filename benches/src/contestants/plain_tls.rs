//! The plainest pair of proxies with mutual TLS, on tokio and rustls, with one thread: each finds the original destination,
//! shakes hands and copies. No policy, no frames, no metrics, no log, no limits, a handshake for every connection and 64 KiB
//! for it, and nothing of what makes Byrnie cheap. It is not a mesh; it shows what Byrnie's features cost and its tuning gives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use byrnie_identity::authority::CertificateAuthority;
use byrnie_identity::tls::{ALPN_TUNNEL, ClientAuth, client_config, server_config};
use byrnie_identity::{Clock, KeyPair, SpiffeId, Svid, SvidVerifier, TrustBundle, TrustBundles, TrustDomain};
use byrnie_netlab::RunAs;
use byrnie_redirect::original_dst;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{End, INBOUND, OUTBOUND, Running, give_to_proxy, proxys_directory, write_for_proxy};
use crate::failure::{Failure, Result, doing};

const TRUST_DOMAIN: &str = "cluster.local";

/// Of certificates: longer than any run.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Bytes held for each direction of a connection.
const ROOM: usize = 32 << 10;

/// Where a proxy finds the roots that it trusts.
const BUNDLE: &str = "bundle.pem";

/// What issues the certificates of one pair, of the same kind as Byrnie's.
pub(super) struct Authority(CertificateAuthority);

impl Authority {
    /// A new one.
    pub(super) fn new() -> Result<Self> {
        let authority = CertificateAuthority::create(trust_domain()?, &Clock::system());
        Ok(Self(authority.map_err(doing("an authority for plain TLS"))?))
    }

    /// Writes what [`run`] reads.
    fn write(&self, end: &End, directory: &Path) -> Result<()> {
        let id = SpiffeId::workload(self.0.trust_domain(), "bench", &end.name).map_err(doing("a SPIFFE ID"))?;
        let key = KeyPair::generate().map_err(doing("a key"))?;
        let issued = self.0.issue(&key.spki_der(), &id, LIFE).map_err(doing(&id))?;
        let svid = Svid::new(issued.chain, key).map_err(doing(&id))?;
        svid.save(directory).map_err(doing(&id))?;
        give_to_proxy(&directory.join("svid.pem"))?;
        write_for_proxy(&directory.join(BUNDLE), &self.0.bundle().to_pem())
    }
}

/// Starts one: this program, once more.
pub(super) fn start(authority: &Authority, end: &End) -> Result<Running> {
    let directory = end.directory.join("identity");
    proxys_directory(&directory)?;
    authority.write(end, &directory)?;
    let program = std::env::current_exe().map_err(doing("this program's own file"))?;
    let command = end.host.command(program).user(RunAs::Proxy).arg("plain-tls").arg(directory);
    Running::start(&format!("plain TLS of {}", end.name), command, &end.directory)
}

/// Is one of the two proxies, until it is ended.
///
/// # Errors
/// When its identity cannot be read, or its ports be had.
pub(crate) fn run(directory: &Path) -> Result<()> {
    let svid = Svid::load(directory).map_err(Failure::new)?;
    let path = directory.join(BUNDLE);
    let roots = std::fs::read(&path).map_err(doing(path.display()))?;
    let mut bundles = TrustBundles::default();
    bundles.insert(TrustBundle::from_pem(trust_domain()?, 1, &roots).map_err(doing(path.display()))?);
    let verifier = SvidVerifier::new(bundles.shared(), Clock::system());
    let client = client_config(Some(&svid), &verifier, ALPN_TUNNEL).map_err(Failure::new)?;
    let server = server_config(&svid, &verifier, ALPN_TUNNEL, ClientAuth::Required).map_err(Failure::new)?;
    let (connector, acceptor) = (TlsConnector::from(client), TlsAcceptor::from(server));
    // The name goes nowhere: whoever has a certificate of this authority is well.
    let name = ServerName::from(IpAddr::from(Ipv4Addr::LOCALHOST));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(doing("the runtime"))?.block_on(async move {
        let outbound = serve((Ipv4Addr::LOCALHOST, OUTBOUND).into(), move |application, destination| {
            let (connector, name) = (connector.clone(), name.clone());
            async move { carry(application, connector.connect(name, connect(destination).await?).await?).await }
        });
        let inbound = serve((Ipv4Addr::UNSPECIFIED, INBOUND).into(), move |tunnel, destination| {
            let acceptor = acceptor.clone();
            async move {
                let tunnel = acceptor.accept(tunnel).await?;
                carry(connect(destination).await?, tunnel).await
            }
        });
        tokio::try_join!(outbound, inbound).map(|_| ()).map_err(doing("the ports of a proxy"))
    })
}

/// Gives each connection to `handle`, with where it was going. One that fails is closed, and its client sees that.
async fn serve<F>(at: SocketAddr, handle: impl Fn(TcpStream, SocketAddr) -> F) -> std::io::Result<()>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(at).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        if let (Ok(()), Ok(destination)) = (stream.set_nodelay(true), original_dst(&stream)) {
            tokio::spawn(handle(stream, destination.0));
        }
    }
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn carry<T>(mut plain: TcpStream, mut tls: T) -> std::io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut plain, &mut tls, ROOM, ROOM).await.map(|_| ())
}

fn trust_domain() -> Result<TrustDomain> {
    TRUST_DOMAIN.parse().map_err(doing("a trust domain"))
}
