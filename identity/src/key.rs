//! The private key of a workload or an issuer: ECDSA on P-256, made here, zeroized, and never shown.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::SignatureScheme;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// A P-256 key pair.
pub struct KeyPair {
    signer: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl KeyPair {
    /// A new key from the system's random source.
    ///
    /// # Errors
    /// When that source fails.
    pub fn generate() -> Result<Self, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads a PKCS #8 key from PEM (RFC 7468, `PRIVATE KEY`). What else the text holds is not looked at.
    ///
    /// # Errors
    /// When there is no such section, or it is no P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let begin = pem.find(PEM_BEGIN).ok_or(KeyError::NoKey)?;
        let end = pem.find(PEM_END).ok_or(KeyError::NoKey)? + PEM_END.len();
        let section = pem.get(begin..end).ok_or(KeyError::NoKey)?;
        // No library's buffers: what they held would stay in memory.
        let mut decoder = pem_rfc7468::Decoder::new_detect_wrap(section.as_bytes()).map_err(|_| KeyError::NoKey)?;
        let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
        Self::from_pkcs8(decoder.decode(&mut der).map_err(|_| KeyError::NoKey)?)
    }

    /// The key as PKCS #8 in PEM. Secret.
    pub fn to_pem(&self) -> Zeroizing<String> {
        // One buffer of the right size. It fails only for lengths that no key has.
        let text = pem_rfc7468::encode_string(PEM_LABEL, pem_rfc7468::LineEnding::LF, &self.pkcs8);
        Zeroizing::new(text.unwrap_or_default())
    }

    /// A certificate signing request (PKCS #10, DER) that asks for nothing: the authority takes the public key from
    /// it and decides everything else.
    ///
    /// # Errors
    /// When signing fails.
    pub fn csr_der(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(self).map_err(|_| KeyError::Sign)?;
        Ok(request.der().to_vec())
    }

    /// The public key as a DER SubjectPublicKeyInfo (RFC 5480), 91 bytes.
    pub fn spki_der(&self) -> Vec<u8> {
        let mut der = P256_SPKI_PREFIX.to_vec();
        der.extend_from_slice(self.signer.public_key().as_ref());
        der
    }

    /// An ECDSA signature over SHA-256 of `message`, DER encoded as in TLS; its scheme is [`KeyPair::SCHEME`].
    ///
    /// # Errors
    /// When the random source fails.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signature = self.signer.sign(&SystemRandom::new(), message).map_err(|_| KeyError::Sign)?;
        Ok(signature.as_ref().to_vec())
    }

    /// The TLS 1.3 signature scheme of [`KeyPair::sign`]: `ecdsa_secp256r1_sha256` (RFC 8446 section 4.2.3).
    pub const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

    /// The same key as rustls wants it.
    pub(crate) fn rustls_key(&self) -> Result<std::sync::Arc<dyn rustls::sign::SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| KeyError::NotP256)
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map_err(|_| KeyError::NotP256)?;
        Ok(Self { signer, pkcs8: Zeroizing::new(der.to_vec()) })
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(P-256, private)")
    }
}

impl rcgen::PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.signer.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign(message).map_err(|_| rcgen::Error::RingUnspecified)
    }
}

/// What can go wrong with a key. Never holds any of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The random source failed.
    #[error("no private key could be made: the system's random source failed")]
    Generate,
    /// Signing failed.
    #[error("signing failed: the system's random source failed")]
    Sign,
    /// No readable `PRIVATE KEY` section.
    #[error("no private key found: expected a PEM section `PRIVATE KEY` (PKCS #8)")]
    NoKey,
    /// A key, but another kind, or damaged.
    #[error("the private key is damaged or not ECDSA on P-256, the only kind that Byrnie uses")]
    NotP256,
}

const PEM_LABEL: &str = "PRIVATE KEY";
const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";

/// Unix line ends; the default of the library is CRLF.
pub(crate) const PEM_STYLE: pem::EncodeConfig = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);

/// Everything of a P-256 SubjectPublicKeyInfo before the uncompressed point: SEQUENCE, id-ecPublicKey, prime256v1,
/// BIT STRING of 66 bytes with no unused bits (RFC 5480 section 2).
pub(crate) const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_pem() {
        let key = KeyPair::generate().unwrap();
        let read = KeyPair::from_pem(&key.to_pem()).unwrap();
        assert_eq!(read.spki_der(), key.spki_der());
        assert!(key.to_pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    }

    #[test]
    fn a_key_is_read_as_others_write_it() {
        let key = KeyPair::generate().unwrap();
        let pem = key.to_pem();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let lines = |width: usize| {
            let lines: Vec<&str> =
                body.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
            format!("{PEM_BEGIN}\n{}\n{PEM_END}\n", lines.join("\n"))
        };
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in [
            pem.replace('\n', "\r\n"),
            format!("Key Attributes: <No Attributes>\n{}", *pem),
            format!("{certificate}{}{certificate}", *pem),
            lines(76),
            lines(1024),
            pem.trim_end().to_owned(),
        ] {
            assert_eq!(KeyPair::from_pem(&text).unwrap().spki_der(), key.spki_der(), "{text}");
        }
    }

    #[test]
    fn two_keys_are_never_the_same() {
        assert_ne!(KeyPair::generate().unwrap().spki_der(), KeyPair::generate().unwrap().spki_der());
    }

    #[test]
    fn what_is_no_p256_key_is_refused() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(KeyPair::from_pem(&p384.serialize_pem()).unwrap_err(), KeyError::NotP256);
        assert_eq!(KeyPair::from_pem("nothing").unwrap_err(), KeyError::NoKey);
        let empty = "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n";
        assert_eq!(KeyPair::from_pem(empty).unwrap_err(), KeyError::NoKey);
    }

    #[test]
    fn the_public_key_is_what_openssl_would_write() {
        let spki = KeyPair::generate().unwrap().spki_der();
        assert_eq!(spki.len(), 91);
        assert_eq!(rcgen::SubjectPublicKeyInfo::from_der(&spki).map(|_| ()), Ok(()));
    }
}
