//! What the authority takes from a certificate signing request: the public key, and nothing else.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer;

use crate::key::P256_SPKI_PREFIX;

/// The public key (DER SubjectPublicKeyInfo) of a PKCS #10 request (RFC 2986) whose signature proves that the
/// requester holds the private one. Subject, extensions and attributes are not looked at.
///
/// # Errors
/// When the request can't be read, its key is not P-256, or its signature does not fit.
pub fn public_key(csr_der: &[u8]) -> Result<Vec<u8>, CsrError> {
    if csr_der.len() > MAX_REQUEST {
        return Err(CsrError::TooLong(csr_der.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr_der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let spki = request.certification_request_info.subject_pki.raw;
    let point = p256_point(spki).ok_or(CsrError::NotP256)?;
    if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 || request.signature_value.unused_bits != 0 {
        return Err(CsrError::SignatureAlgorithm);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(request.certification_request_info.raw, &request.signature_value.data)
        .map_err(|_| CsrError::Signature)?;
    Ok(spki.to_vec())
}

/// The uncompressed point of a P-256 SubjectPublicKeyInfo, if it is exactly that. Whether the point is on the curve
/// shows when a signature is checked with it.
pub(crate) fn p256_point(spki_der: &[u8]) -> Option<&[u8]> {
    let point = spki_der.strip_prefix(&P256_SPKI_PREFIX)?;
    (point.len() == 65 && point.first() == Some(&4)).then_some(point)
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// More bytes than any request for one key needs.
    #[error("the certificate signing request has {0} bytes: expected at most {MAX_REQUEST}")]
    TooLong(usize),
    /// No PKCS #10, or bytes after it.
    #[error("the certificate signing request can't be read: expected PKCS #10 in DER and nothing after it")]
    Malformed,
    /// Another kind of key.
    #[error("the public key of the certificate signing request is not ECDSA on P-256 (uncompressed)")]
    NotP256,
    /// Another kind of signature.
    #[error("the certificate signing request is not signed with ECDSA and SHA-256")]
    SignatureAlgorithm,
    /// The requester does not hold the key.
    #[error("the signature of the certificate signing request does not fit its public key")]
    Signature,
}

/// A request for a P-256 key without attributes has about 210 bytes; room for tools that add their own.
const MAX_REQUEST: usize = 8 * 1024;
