//! A reverse proxy as ingress controllers are: it takes plain HTTP from outside and calls its upstream by HTTP or, when
//! it is told so, by HTTPS with a client certificate from files, checking that the server's certificate leads to
//! `ca.crt` and bears the configured DNS name. In NGINX's words: `proxy_ssl_certificate`, `proxy_ssl_verify on`,
//! `proxy_ssl_trusted_certificate`, `proxy_ssl_name`. Configuration and certificates are read again when they change.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_rustls::TlsConnector;

use super::{fetch, serve};

/// The configuration file, JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where it listens; read at the start only.
    pub(crate) listen: Vec<SocketAddr>,
    /// The upstream, `http://host:port`; the path is the client's.
    pub(crate) upstream: String,
    /// How to speak TLS to it; plain HTTP where this is missing.
    pub(crate) tls: Option<Tls>,
}

/// TLS to the upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    /// PEM: the client certificate chain.
    pub(crate) certificate: PathBuf,
    /// PEM: its key.
    pub(crate) key: PathBuf,
    /// PEM: the roots that the server's chain must lead to.
    pub(crate) ca: PathBuf,
    /// The DNS name that the server's certificate must bear.
    pub(crate) server_name: String,
}

/// A configuration with its certificates, and the state of the files that it was read from.
struct Loaded {
    upstream: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    stamps: Vec<(PathBuf, Option<SystemTime>)>,
}

/// Runs it, for ever.
pub(super) async fn run(path: &Path) -> io::Result<()> {
    let listen = read(path)?.listen;
    let current = Rc::new(RefCell::new(Rc::new(load(path)?)));
    let path: Rc<Path> = path.into();
    serve::serve(&listen, move |request, _| {
        let (current, path) = (Rc::clone(&current), Rc::clone(&path));
        async move {
            let loaded = refresh(&current, &path);
            match pass_on(&loaded, request.uri()).await {
                Ok(answer) => {
                    // Only the body: internal headers stay inside.
                    let mut response = Response::new(Full::new(answer.body));
                    *response.status_mut() = answer.status;
                    response
                }
                Err(error) => bad_gateway(&error),
            }
        }
    })
    .await
}

fn bad_gateway(error: &io::Error) -> Response<Full<Bytes>> {
    serve::say(format_args!("upstream: {error}"));
    serve::json(StatusCode::BAD_GATEWAY, &json!({ "ingress": "bad gateway", "error": error.to_string() }))
}

async fn pass_on(loaded: &Loaded, wanted: &Uri) -> io::Result<fetch::Answer> {
    let mut parts = loaded.upstream.clone().into_parts();
    parts.path_and_query = wanted.path_and_query().cloned();
    let url = Uri::from_parts(parts).map_err(io::Error::other)?;
    match &loaded.tls {
        None => fetch::get(&url, None).await,
        Some((connector, name)) => {
            let stream = fetch::connect(&url).await?;
            let stream = connector.connect(name.clone(), stream).await?;
            fetch::get_on(stream, &url, None).await
        }
    }
}

/// What is valid now; after a change that can't be read, what was valid before.
fn refresh(current: &RefCell<Rc<Loaded>>, path: &Path) -> Rc<Loaded> {
    let changed = current.borrow().stamps.iter().any(|(file, stamp)| modified(file) != *stamp);
    if changed {
        match load(path) {
            Ok(loaded) => {
                serve::say(format_args!("configuration read again"));
                *current.borrow_mut() = Rc::new(loaded);
            }
            Err(error) => serve::say(format_args!("configuration kept: {error}")),
        }
    }
    Rc::clone(&current.borrow())
}

fn read(path: &Path) -> io::Result<Config> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let text = std::fs::read(path).map_err(at)?;
    serde_json::from_slice(&text).map_err(|error| at(error.into()))
}

fn load(path: &Path) -> io::Result<Loaded> {
    let config = read(path)?;
    let mut files = vec![path.to_owned()];
    if let Some(tls) = &config.tls {
        files.extend([&tls.certificate, &tls.key, &tls.ca].map(PathBuf::clone));
    }
    // Before they are read: a change in between is then seen the next time.
    let stamps = files.into_iter().map(|file| (file.clone(), modified(&file))).collect();
    let tls = config.tls.as_ref().map(connector).transpose()?;
    Ok(Loaded { upstream: config.upstream.parse().map_err(io::Error::other)?, tls, stamps })
}

fn connector(tls: &Tls) -> io::Result<(TlsConnector, ServerName<'static>)> {
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |error: rustls_pki_types::pem::Error| io::Error::other(format!("{path}: {error}"))
    };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(&tls.ca).map_err(named(&tls.ca))? {
        roots.add(root.map_err(named(&tls.ca))?).map_err(io::Error::other)?;
    }
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&tls.certificate).map_err(named(&tls.certificate))?.collect();
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(named(&tls.key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map_err(named(&tls.certificate))?, key)
        .map_err(io::Error::other)?;
    let name = ServerName::try_from(tls.server_name.clone()).map_err(io::Error::other)?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}
