//! What a certificate says, for those who keep or show it. Reading is not verifying: whoever decides by what stands
//! here must know already whose certificate it is.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::authority::{AuthorityError, ORGANIZATION, calendar, random_serial};
use crate::key::KeyPair;
use crate::time_format::{system_time, unix_seconds};
use crate::verifier::{VerifyCause, VerifyError};
use crate::x509;

/// The facts of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Lower-case hexadecimal.
    pub serial: String,
    /// Distinguished name.
    pub issuer: String,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when (inclusive) it is valid.
    pub not_after: SystemTime,
    /// URIs of the subject alternative name.
    pub uris: Vec<String>,
    /// DNS names of the subject alternative name.
    pub dns_names: Vec<String>,
    /// DER SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
}

impl CertificateFacts {
    /// Reads a certificate, DER.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(der: &[u8]) -> Result<Self, VerifyError> {
        let facts = x509::parse(der)?;
        Ok(Self {
            serial: facts.serial,
            issuer: facts.issuer,
            not_before: system_time(facts.not_before),
            not_after: system_time(facts.not_after),
            uris: facts.uris,
            dns_names: facts.dns_names,
            spki: facts.spki,
        })
    }

    /// Whether it is valid at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// The certificates of a PEM text, DER, in order.
///
/// # Errors
/// When the text is not PEM.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, VerifyError> {
    x509::certificates_from_pem(text)
        .map_err(|error| VerifyError::new(VerifyCause::Malformed, format!("not readable as PEM: {error}")))
}

/// A certificate as PEM.
pub fn certificate_to_pem(certificate: &CertificateDer<'static>) -> String {
    x509::certificates_to_pem([certificate])
}

/// A certificate that vouches for itself, and its key.
pub struct SelfSigned {
    /// PEM.
    pub certificate: String,
    /// PKCS #8, PEM. Secret.
    pub key: Zeroizing<String>,
}

impl SelfSigned {
    /// A server's certificate for one DNS name: no authority (it signs nothing else), valid from ten minutes before `now`
    /// for `life` after it.
    ///
    /// # Errors
    /// When a key can't be made, or the name is none.
    pub fn server(dns_name: &str, now: SystemTime, life: Duration) -> Result<Self, AuthorityError> {
        let failed = |error: rcgen::Error| AuthorityError::Certificate(error.to_string());
        let key = KeyPair::generate()?;
        let now = unix_seconds(now);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        params.distinguished_name.push(DnType::CommonName, "Byrnie server");
        params.serial_number = Some(random_serial()?);
        params.not_before = calendar(now.saturating_sub(BACKDATING))?;
        params.not_after = calendar(now.saturating_add(life.as_secs()))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName(dns_name.try_into().map_err(failed)?)];
        let certificate = params.self_signed(&key).map_err(failed)?.into();
        Ok(Self { certificate: x509::certificates_to_pem([&certificate]), key: key.to_pem() })
    }
}

/// Clocks that are behind take it, too.
const BACKDATING: u64 = 600;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::test_certificates::start;

    const NAME: &str = "byrnie-injector.byrnie-system.svc";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_servers_own_certificate_names_the_server_and_is_no_authority() {
        let made = SelfSigned::server(NAME, start(), DAY).unwrap();
        let certificates = certificates_from_pem(made.certificate.as_bytes()).unwrap();
        let facts = CertificateFacts::read(&certificates[0]).unwrap();
        assert_eq!(facts.dns_names, [NAME]);
        assert_eq!(facts.spki, KeyPair::from_pem(&made.key).unwrap().spki_der());
        assert!(facts.is_valid(start()) && facts.is_valid(start() + DAY) && !facts.is_valid(start() + 2 * DAY));
        let constraints = x509::parse(&certificates[0]).unwrap().basic_constraints.unwrap();
        assert!(!constraints.ca);
        assert!(x509::is_signed_by(&certificates[0], &certificates[0]));
        assert_eq!(certificate_to_pem(&certificates[0]), made.certificate);
    }

    #[test]
    fn a_name_that_is_none_makes_no_certificate() {
        assert!(SelfSigned::server("bücher", start(), DAY).is_err());
        assert!(CertificateFacts::read(b"no certificate").is_err());
    }
}
