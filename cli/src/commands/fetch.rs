//! `byrnie identity fetch`: an X.509-SVID for something that runs no proxy. The key is made here; the control plane
//! sees its public half and the join token.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::tls::{self, ALPN_H2};
use byrnie_identity::{Clock, KeyPair, SvidVerifier, Svid, TrustBundle, TrustBundles, TrustDomain, control_plane_id};
use byrnie_proto::mesh::v1::identity_client::IdentityClient;
use byrnie_proto::mesh::v1::{CertifyRequest, certify_request};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tonic::transport::{Endpoint, Uri};

use crate::args::FetchArgs;
use crate::failure::{Exit, Failure};

/// Longest wait for the certificate.
const ANSWER: Duration = Duration::from_secs(10);

/// A new identity, and the roots that came with it.
pub(crate) struct Fetched {
    pub(crate) svid: Svid,
    pub(crate) key_pem: String,
    pub(crate) bundle: TrustBundle,
}

pub(super) fn run(args: FetchArgs) -> Result<Exit, Failure> {
    let trust_domain: TrustDomain = args.trust_domain.parse().map_err(|error| {
        Failure::new(Exit::Usage, "--trust-domain is none").expected("a name such as cluster.local").found(error)
    })?;
    let pem = read(&args.trust_bundle)?;
    let bundle = TrustBundle::from_pem(trust_domain, 0, &pem).map_err(|error| {
        Failure::new(Exit::Usage, format!("--trust-bundle {} can't be used", args.trust_bundle.display())).found(error)
    })?;
    let token = String::from_utf8_lossy(&read(&args.join_token_file)?).trim().to_owned();
    let target = args.control_plane;
    let fetched = crate::client::runtime()?
        .block_on(fetch(&bundle, token, target, move || async move { TcpStream::connect(target).await }))?;
    fetched.write(&args.out)?;
    anstream::println!("{} (serial {}) is in {}", fetched.svid.id(), fetched.svid.serial(), args.out.display());
    Ok(Exit::Success)
}

/// Makes a key and gets a certificate for it with `token`, from the control plane that `connect` reaches at `target`.
///
/// # Errors
/// Where the control plane can't be reached, is not who `bundle` says, or refuses the token.
pub(crate) async fn fetch<C, F>(
    bundle: &TrustBundle,
    token: String,
    target: SocketAddr,
    connect: C,
) -> Result<Fetched, Failure>
where
    C: Fn() -> F + Send + Sync + Clone + 'static,
    F: Future<Output = io::Result<TcpStream>> + Send,
{
    let broken = |error: &dyn std::fmt::Display| Failure::new(Exit::Refused, "cannot prepare the request").found(error);
    let key = KeyPair::generate().map_err(|error| broken(&error))?;
    let csr = key.csr_der().map_err(|error| broken(&error))?;
    let key_pem = key.to_pem().to_string();
    let mut bundles = TrustBundles::default();
    bundles.insert(bundle.clone());
    let verifier = SvidVerifier::new(bundles.shared(), Clock::system());
    let expected = control_plane_id(bundle.trust_domain());
    let config = tls::client_config(None, &verifier, ALPN_H2).map_err(|error| broken(&error))?;
    let connector = tower::service_fn(move |_: Uri| {
        let (connect, config, verifier, expected) =
            (connect.clone(), Arc::clone(&config), Arc::clone(&verifier), expected.clone());
        async move {
            let stream = connect().await?;
            let name = ServerName::from(target.ip());
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            let peer = tls::peer_identity(stream.get_ref().1, &verifier).map_err(io::Error::other)?;
            peer.expect(&expected).map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The connector does TLS itself: tonic's own takes no verifier.
    let endpoint = Endpoint::from_static("http://control-plane.invalid").timeout(ANSWER).connect_timeout(ANSWER);
    let channel = endpoint.connect_with_connector(connector).await.map_err(|error| {
        Failure::new(Exit::Unreachable, "the control plane can't be reached")
            .expected(format!("a control plane of `{}` at {target}", bundle.trust_domain()))
            .found(sources(&error))
            .next("check --control-plane and --trust-bundle (`byrnie identity bundle` prints the right one)")
    })?;
    let request = CertifyRequest { csr, credential: Some(certify_request::Credential::JoinToken(token)) };
    let answer = IdentityClient::new(channel).certify(request).await.map_err(|status| {
        Failure::new(Exit::Refused, format!("the control plane gave no certificate: {}", status.message()))
            .found(format!("{:?}", status.code()))
            .next("byrnie token create NAMESPACE/POD   (a token is good for one use, and for minutes)")
    })?;
    let answer = answer.into_inner();
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Refused, "the control plane's answer can't be used").found(error)
    };
    let chain = answer.chain.into_iter().map(Into::into).collect();
    let svid = Svid::new(chain, key).map_err(|error| wrong(&error))?;
    let bundle = match answer.bundle {
        Some(new) => TrustBundle::try_from(&new).map_err(|error| wrong(&error))?,
        None => bundle.clone(),
    };
    Ok(Fetched { svid, key_pem, bundle })
}

impl Fetched {
    /// Writes `tls.key`, `tls.crt` and `ca.crt`.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Failure> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| Failure::new(Exit::Refused, format!("cannot write {path}")).found(error)
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
        let files = [
            ("tls.key", self.key_pem.as_str(), 0o600),
            ("tls.crt", &self.svid.chain_pem(), 0o644),
            ("ca.crt", &self.bundle.to_pem(), 0o644),
        ];
        for (name, content, mode) in files {
            let path = dir.join(name);
            replace(&path, content, mode).map_err(failed(&path))?;
        }
        Ok(())
    }
}

fn replace(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    let written = file.write_all(content.as_bytes()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}", path.display())).found(error))
}

/// An error with everything behind it: the transport's own sentence alone is "transport error".
fn sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
