//! The serving certificate: read from the files of a mounted Secret, and read again when they change.
//!
//! It is no SVID. The API server knows its issuer from `caBundle` in the webhook configurations, which the control plane
//! keeps; so a new certificate is trusted before it stands here.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::time_provider::DefaultTimeProvider;
use rustls::version::TLS13;
use tracing::{info, warn};
use zeroize::{Zeroize, Zeroizing};

use crate::limits;

/// The certificate of the moment, for every handshake from now on.
#[derive(Default)]
pub struct Serving {
    key: ArcSwapOption<CertifiedKey>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("is_there", &self.is_there()).finish()
    }
}

impl Serving {
    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.key.load().is_some()
    }

    /// TLS 1.3 with this certificate; the API server speaks it, and nobody else is served. Clients show no certificate:
    /// what is answered depends on the question alone, and changes nothing.
    ///
    /// # Errors
    /// When rustls can't be configured; not by any input.
    pub fn tls(self: &Arc<Self>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let crypto = Arc::new(provider::default_provider());
        let mut config = ServerConfig::builder_with_details(crypto, Arc::new(DefaultTimeProvider))
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key.load_full()
    }
}

/// The files `tls.crt` and `tls.key` of a directory, as a Secret of type `kubernetes.io/tls` is mounted.
pub struct Files {
    directory: PathBuf,
    serving: Arc<Serving>,
    /// The text of the chain that was taken up last. A new key comes with a new certificate.
    last: Vec<u8>,
    complained: bool,
}

impl Files {
    /// Reads from `directory`, into `serving`.
    pub fn new(directory: &Path, serving: Arc<Serving>) -> Self {
        Self { directory: directory.to_owned(), serving, last: Vec::new(), complained: false }
    }

    /// Reads again and again, until dropped. What is not there yet is waited for; what is not sound is passed over.
    pub async fn follow(mut self) {
        loop {
            // Two small files; a blocking read of them is shorter than the way to another thread.
            self.look();
            tokio::time::sleep(limits::CERTIFICATE_POLL).await;
        }
    }

    /// Reads once.
    pub fn look(&mut self) {
        match self.read() {
            Ok(Some(key)) => {
                self.serving.key.store(Some(Arc::new(key)));
                self.complained = false;
                info!(directory = %self.directory.display(), "serving certificate taken up");
            }
            Ok(None) => {}
            Err(reason) if !self.complained => {
                self.complained = true;
                let holds =
                    if self.serving.is_there() { "the one before is served on" } else { "nothing is served yet" };
                warn!(directory = %self.directory.display(), %reason, "no serving certificate; {holds}");
            }
            Err(_) => {}
        }
    }

    /// `None`: nothing new.
    fn read(&mut self) -> Result<Option<CertifiedKey>, String> {
        let chain = self.file("tls.crt")?;
        if self.last == chain {
            return Ok(None);
        }
        let text = Zeroizing::new(self.file("tls.key")?);
        let certificates = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("tls.crt: expected certificates as PEM, found: {error}"))?;
        if certificates.is_empty() {
            return Err("tls.crt: expected a certificate, found none".to_owned());
        }
        let mut key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|error| format!("tls.key: expected a private key as PEM, found: {error}"))?;
        let signer = provider::sign::any_supported_type(&key).map_err(|error| format!("tls.key: {error}"));
        key.zeroize();
        let whole = CertifiedKey::new(certificates, signer?);
        // The two files are read one after the other, and may be of two Secrets; the next look finds them of one.
        whole.keys_match().map_err(|error| format!("tls.key does not belong to tls.crt: {error}"))?;
        self.last = chain;
        Ok(Some(whole))
    }

    fn file(&self, name: &str) -> Result<Vec<u8>, String> {
        let failed = |error: std::io::Error| format!("{name}: {error}");
        let file = std::fs::File::open(self.directory.join(name)).map_err(failed)?;
        // Sized beforehand: a buffer that grows leaves copies of the key behind.
        let mut content = Vec::with_capacity(limits::CERTIFICATE_BYTES as usize + 1);
        file.take(limits::CERTIFICATE_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > limits::CERTIFICATE_BYTES {
            return Err(format!("{name}: expected at most {} bytes, found more", limits::CERTIFICATE_BYTES));
        }
        Ok(content)
    }
}
