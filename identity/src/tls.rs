//! The rustls configurations of the mesh. Built once per SVID, never per connection.
//!
//! In all of them but the one for HTTPS probes ([`probe_client_config`]): certificates are judged by [`SvidVerifier`] alone, session resumption is off on both sides (a
//! resumed handshake skips certificate verification), no tickets, no early data, hybrid post-quantum key exchange
//! first. Between proxies, and to the control plane, only TLS 1.3; TLS 1.2 exists on the legs of ingresses alone.

mod facts;
mod unverified;
mod verifiers;

use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs as provider;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, CommonState, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};

use crate::svid::Svid;
use crate::verifier::{PeerIdentity, SvidVerifier, VerifyCause, VerifyError};
pub use facts::TlsFacts;
pub use unverified::probe_client_config;
use verifiers::{ClientVerifier, NameRule, ServerVerifier};

/// The tunnel protocol between two proxies.
pub const ALPN_TUNNEL: &[u8] = b"byrnie/1";
/// HTTP/2: gRPC to the control plane.
pub const ALPN_H2: &[u8] = b"h2";

/// Whether a server goes on with a client that shows no certificate. A bad one is refused in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Every client must prove who it is.
    Required,
    /// A client may be anonymous (first issuance: it has no SVID yet).
    Optional,
}

/// A client in the mesh: TLS 1.3, ALPN `alpn` (empty: none), no SNI.
///
/// The server's chain is verified as an X.509-SVID of any trusted trust domain; the name given to the connection is
/// not looked at. **Who** was expected the caller checks after the handshake, with
/// [`PeerIdentity::expect`](crate::PeerIdentity::expect).
///
/// # Errors
/// When rustls can't be configured; not by any input.
pub fn client_config(
    svid: Option<&Svid>,
    verifier: &Arc<SvidVerifier>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = client(svid, verifier, NameRule::Ignored, MESH_VERSIONS)?;
    config.alpn_protocols = alpn_list(alpn);
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// A server in the mesh: TLS 1.3, ALPN `alpn` (empty: none).
///
/// rustls refuses a client whose ALPN list lacks `alpn`, but not one that sends no list: the caller looks at the
/// negotiated protocol.
///
/// # Errors
/// When rustls can't be configured; not by any input.
pub fn server_config(
    svid: &Svid,
    verifier: &Arc<SvidVerifier>,
    alpn: &[u8],
    client_auth: ClientAuth,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = server(svid, verifier, client_auth, MESH_VERSIONS)?;
    config.alpn_protocols = alpn_list(alpn);
    Ok(Arc::new(config))
}

/// A server for an ingress outside of the mesh that bears a certificate of the mesh: TLS 1.2 and 1.3, a client
/// certificate (an X.509-SVID) is required, ALPN is not negotiated.
///
/// # Errors
/// When rustls can't be configured; not by any input.
pub fn ingress_server_config(svid: &Svid, verifier: &Arc<SvidVerifier>) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = server(svid, verifier, ClientAuth::Required, INGRESS_VERSIONS)?;
    config.require_ems = true;
    Ok(Arc::new(config))
}

/// The ingress's side of that leg, as NGINX does it (`proxy_ssl_verify`): the server's chain must lead to the bundle
/// *and* its certificate must bear the DNS name that the connection is made with. Sends SNI.
///
/// # Errors
/// When rustls can't be configured; not by any input.
pub fn ingress_client_config(svid: &Svid, verifier: &Arc<SvidVerifier>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = client(Some(svid), verifier, NameRule::MustMatch, INGRESS_VERSIONS)?;
    config.require_ems = true;
    Ok(Arc::new(config))
}

/// Who is at the other end of a connection whose handshake is through. Costs one hash: the handshake has just
/// verified the same chain.
///
/// # Errors
/// `no-certificate` for an anonymous client (or before the certificates came); else as
/// [`SvidVerifier::verify`], since time and bundle may have changed in between.
pub fn peer_identity(connection: &CommonState, verifier: &SvidVerifier) -> Result<PeerIdentity, VerifyError> {
    verifier.verify(connection.peer_certificates().unwrap_or_default())
}

/// Why a handshake failed, where it failed for the peer's certificate; `None` where it failed for another reason.
/// The peer itself learns nothing of it but an alert.
pub fn verify_error(error: &rustls::Error) -> Option<&VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
        rustls::Error::InvalidCertificate(CertificateError::BadSignature) => Some(&BAD_HANDSHAKE_SIGNATURE),
        rustls::Error::NoCertificatesPresented => Some(&NO_CERTIFICATE),
        _ => None,
    }
}

/// rustls refused a configuration.
#[derive(Clone, Debug, thiserror::Error)]
#[error("TLS can't be configured: {0}")]
pub struct TlsError(#[from] rustls::Error);

static NO_CERTIFICATE: LazyLock<VerifyError> =
    LazyLock::new(|| VerifyError::new(VerifyCause::NoCertificate, "the peer sent no certificate"));
static BAD_HANDSHAKE_SIGNATURE: LazyLock<VerifyError> = LazyLock::new(|| {
    VerifyError::new(VerifyCause::BadSignature, "the peer does not hold the private key of its certificate")
});

const MESH_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];
const INGRESS_VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The hybrid of ML-KEM-768 and X25519 first; the classical groups for ingresses that don't know it.
static KEY_EXCHANGE: &[&dyn SupportedKxGroup] =
    &[kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(),
        kx_groups: KEY_EXCHANGE.to_vec(),
        ..provider::default_provider()
    })
});

/// AES-128-GCM is fastest where the CPU has instructions for AES, ChaCha20 where it has not. The client's order
/// decides; AES-256 is there for whoever asks for it.
fn cipher_suites() -> Vec<SupportedCipherSuite> {
    let mut suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ];
    if !cpu_has_aes() {
        suites.swap(0, 1);
        suites.swap(3, 4);
    }
    suites
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn cpu_has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn cpu_has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_has_aes() -> bool {
    false
}

fn client(
    svid: Option<&Svid>,
    verifier: &Arc<SvidVerifier>,
    name_rule: NameRule,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::new(verifier.clock().clone()))
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(Arc::clone(verifier), name_rule)));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key()))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

fn server(
    svid: &Svid,
    verifier: &Arc<SvidVerifier>,
    client_auth: ClientAuth,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_details(Arc::clone(&PROVIDER), Arc::new(verifier.clock().clone()))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(Arc::new(ClientVerifier::new(Arc::clone(verifier), client_auth)))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(svid.certified_key())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn alpn_list(alpn: &[u8]) -> Vec<Vec<u8>> {
    if alpn.is_empty() { Vec::new() } else { vec![alpn.to_vec()] }
}

#[cfg(test)]
mod tests;
