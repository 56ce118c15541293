//! [`SvidVerifier`] in the two shapes that rustls asks for.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::EndEntityCert;

use super::ClientAuth;
use crate::verifier::{HANDSHAKE_ALGORITHMS, PeerIdentity, SvidVerifier, VerifyCause, VerifyError};

/// What the name that a connection is made with means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameRule {
    /// Nothing: in the mesh a peer is its SPIFFE ID, which the caller checks.
    Ignored,
    /// The certificate must bear it: the rule of clients that know DNS names only.
    MustMatch,
}

/// Judges a server's chain.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    verifier: Arc<SvidVerifier>,
    name_rule: NameRule,
}

impl ServerVerifier {
    pub(super) fn new(verifier: Arc<SvidVerifier>, name_rule: NameRule) -> Self {
        Self { verifier, name_rule }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify(&self.verifier, end_entity, intermediates)?;
        if self.name_rule == NameRule::MustMatch {
            check_name(end_entity, server_name).map_err(refused)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &HANDSHAKE_ALGORITHMS)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &HANDSHAKE_ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        HANDSHAKE_ALGORITHMS.supported_schemes()
    }
}

/// Judges a client's chain.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    verifier: Arc<SvidVerifier>,
    client_auth: ClientAuth,
}

impl ClientVerifier {
    pub(super) fn new(verifier: Arc<SvidVerifier>, client_auth: ClientAuth) -> Self {
        Self { verifier, client_auth }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Required
    }

    // No hints: the names of our roots are nobody's business before the handshake is through, and a client of the
    // mesh has one certificate to choose from.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(&self.verifier, end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &HANDSHAKE_ALGORITHMS)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &HANDSHAKE_ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        HANDSHAKE_ALGORITHMS.supported_schemes()
    }
}

fn verify(
    verifier: &SvidVerifier,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<PeerIdentity, Error> {
    let chain: Vec<CertificateDer<'_>> =
        std::iter::once(end_entity).chain(intermediates).map(|der| CertificateDer::from(der.as_ref())).collect();
    verifier.verify(&chain).map_err(refused)
}

fn check_name(end_entity: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<(), VerifyError> {
    EndEntityCert::try_from(end_entity).and_then(|leaf| leaf.verify_is_valid_for_subject_name(server_name)).map_err(
        |_| {
            let detail = format!("the server's certificate does not bear the name {}", server_name.to_str());
            VerifyError::new(VerifyCause::WrongName, detail)
        },
    )
}

fn refused(error: VerifyError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
