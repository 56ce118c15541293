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
    if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(CsrError::SignatureAlgorithm);
    }
    if csr_der != encode(request.certification_request_info.raw, &request.signature_value.data) {
        return Err(CsrError::Malformed);
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

/// AlgorithmIdentifier of ECDSA with SHA-256, which has no parameters (RFC 5758 section 3.2).
const ECDSA_WITH_SHA256: [u8; 12] = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// The one DER encoding of a request with this signed part and signature. The parser does not look at the class of a
/// tag and at unused bits; comparing with this does.
fn encode(info: &[u8], signature: &[u8]) -> Vec<u8> {
    let bit_string = element(0x03, &[&[0], signature]);
    element(0x30, &[info, &ECDSA_WITH_SHA256, &bit_string])
}

/// A DER element. Nothing here is longer than [`MAX_REQUEST`], so two bytes hold every length.
fn element(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let header: &[u8] = match (high, low) {
        (0, 0..=0x7f) => &[tag, low],
        (0, _) => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [header, &content].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::KeyPair;

    #[test]
    fn the_public_key_is_taken_from_a_good_request() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(public_key(&key.csr_der().unwrap()).unwrap(), key.spki_der());
    }

    #[test]
    fn what_else_a_request_asks_for_is_not_looked_at() {
        let key = KeyPair::generate().unwrap();
        let mut params = crate::test_certificates::leaf(&["spiffe://cluster.local/ns/a/sa/b", "https://x.example"]);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).unwrap();
        assert_eq!(public_key(request.der()).unwrap(), key.spki_der());
    }

    #[test]
    fn a_request_is_refused_for_what_is_wrong_with_it() {
        let good = KeyPair::generate().unwrap().csr_der().unwrap();
        assert_eq!(public_key(&[&good[..], &[0]].concat()), Err(CsrError::Malformed));
        assert_eq!(public_key(&[]), Err(CsrError::Malformed));
        assert_eq!(public_key(b"garbage"), Err(CsrError::Malformed));
        assert_eq!(public_key(&vec![0x30; 9000]), Err(CsrError::TooLong(9000)));
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let other_curve = rcgen::CertificateParams::default().serialize_request(&p384).unwrap();
        assert_eq!(public_key(other_curve.der()), Err(CsrError::NotP256));
    }

    #[test]
    fn a_request_for_a_key_that_one_does_not_hold_is_refused() {
        let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut request = mine.csr_der().unwrap();
        let (mine, theirs) = (mine.spki_der(), theirs.spki_der());
        let place = request.windows(mine.len()).position(|window| window == mine).unwrap();
        request[place..place + theirs.len()].copy_from_slice(&theirs);
        assert_eq!(public_key(&request), Err(CsrError::Signature));
    }

    proptest! {
        #[test]
        fn a_request_with_one_changed_byte_is_refused_without_a_panic(place: prop::sample::Index, change in 1_u8..) {
            let mut request = KeyPair::generate().unwrap().csr_der().unwrap();
            let index = place.index(request.len());
            request[index] ^= change;
            prop_assert!(public_key(&request).is_err());
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(public_key(&bytes).is_err());
        }
    }
}
