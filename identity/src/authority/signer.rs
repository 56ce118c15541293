//! A certificate that may sign others, with its key: the root or the issuing intermediate.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use std::time::Duration;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{AuthorityError, RootPem};
use crate::key::{KeyError, KeyPair};
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::time_format::rfc3339;
use crate::verifier::{VerifyCause, VerifyError};
use crate::x509::{self, Facts};

/// A CA certificate and its key.
pub(super) struct Signer {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    facts: Facts,
    subject: String,
}

impl Signer {
    /// A new self-signed root.
    pub(super) fn new_root(trust_domain: &TrustDomain, now: u64) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let not_before = now.saturating_sub(ISSUER_BACKDATING);
        let params = issuer_params("root", trust_domain, &key, 1, not_before, now + ROOT_LIFE)?;
        let certificate = params.self_signed(&key).map_err(certificate_error)?;
        Self::new(certificate.into(), key)
    }

    /// A new intermediate that lives `life` from now on, less where the root ends before.
    pub(super) fn new_intermediate(
        &self,
        trust_domain: &TrustDomain,
        now: u64,
        life: Duration,
    ) -> Result<Self, AuthorityError> {
        self.check_time(now)?;
        let key = KeyPair::generate()?;
        let not_before = now.saturating_sub(ISSUER_BACKDATING).max(self.not_before());
        let not_after = now.saturating_add(life.as_secs()).min(self.not_after());
        let mut params = issuer_params("issuer", trust_domain, &key, 0, not_before, not_after)?;
        params.use_authority_key_identifier_extension = true;
        let made = Self::new(params.signed_by(&key, &self.issuer).map_err(certificate_error)?.into(), key)?;
        made.check_issued_by(self)?;
        Ok(made)
    }

    /// That it is valid at `now`, as a root.
    pub(super) fn check_time(&self, now: u64) -> Result<(), AuthorityError> {
        if now < self.not_before() || now > self.not_after() {
            return Err(AuthorityError::RootNotValid {
                not_before: rfc3339(self.not_before()),
                not_after: rfc3339(self.not_after()),
                now: rfc3339(now),
            });
        }
        Ok(())
    }

    /// Reads what [`Signer::to_pem`] wrote.
    pub(super) fn from_pem(text: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(text)?;
        let certificates = x509::certificates_from_pem(x509::after_key(text))
            .map_err(|error| AuthorityError::Certificate(format!("not readable as PEM: {error}")))?;
        match <[CertificateDer<'static>; 1]>::try_from(certificates) {
            Ok([certificate]) => Self::new(certificate, key),
            Err(found) => Err(AuthorityError::Certificate(format!("{} certificates found: expected one", found.len()))),
        }
    }

    /// Key and certificate in one text, sized beforehand: one that grows leaves copies of the key behind. Secret.
    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        let RootPem { certificate, key } = self.to_root_pem();
        let mut text = Zeroizing::new(String::with_capacity(key.len() + certificate.len()));
        text.push_str(&key);
        text.push_str(&certificate);
        text
    }

    /// Key and certificate apart.
    pub(super) fn to_root_pem(&self) -> RootPem {
        RootPem { certificate: x509::certificates_to_pem([&self.certificate]), key: self.issuer.key().to_pem() }
    }

    /// Signs a certificate for the key of somebody else.
    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl rcgen::PublicKeyData,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        params.signed_by(key, &self.issuer).map(Into::into)
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Distinguished name.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }

    pub(super) fn spki(&self) -> &[u8] {
        &self.facts.spki
    }

    /// Unix seconds.
    pub(super) fn not_before(&self) -> u64 {
        self.facts.not_before
    }

    /// Unix seconds, inclusive.
    pub(super) fn not_after(&self) -> u64 {
        self.facts.not_after
    }

    /// That `self` bears the name and a good signature of `root`.
    pub(super) fn check_issued_by(&self, root: &Self) -> Result<(), VerifyError> {
        if self.facts.issuer != root.subject {
            let detail = format!("the intermediate was issued by {}, the root is {}", self.facts.issuer, root.subject);
            return Err(VerifyError::new(VerifyCause::UnknownAuthority, detail));
        }
        if !x509::is_signed_by(&self.certificate, &root.certificate) {
            return Err(VerifyError::new(VerifyCause::BadSignature, "the intermediate was not signed by the root"));
        }
        Ok(())
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AuthorityError> {
        let facts = x509::parse(&certificate)?;
        if facts.spki != key.spki_der() {
            return Err(AuthorityError::Certificate("the certificate belongs to another private key".to_owned()));
        }
        let subject = x509::subject(&certificate)?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key).map_err(certificate_error)?;
        Ok(Self { issuer, certificate, facts, subject })
    }
}

/// A serial number of 127 random bits: positive, never short, never the same twice (RFC 5280 section 4.1.2.2).
pub(crate) fn random_serial() -> Result<SerialNumber, KeyError> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::Generate)?;
    let [first, ..] = &mut bytes;
    *first = (*first & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// `seconds` since the epoch as rcgen wants it.
pub(crate) fn calendar(seconds: u64) -> Result<OffsetDateTime, AuthorityError> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| AuthorityError::Certificate(format!("no certificate can name {seconds} s after 1970")))
}

/// Issuers begin before they are made, so that a leaf that is backdated too does not begin before its issuer.
const ISSUER_BACKDATING: u64 = 3600;
/// Ten years: the root changes by rotation, not by its end.
const ROOT_LIFE: u64 = 10 * 365 * 24 * 3600;

/// No name constraints: webpki refuses every CA that constrains URIs.
fn issuer_params(
    kind: &str,
    trust_domain: &TrustDomain,
    key: &KeyPair,
    path_length: u8,
    not_before: u64,
    not_after: u64,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    // Names differ by key: two issuers of one name make a verifier try both, and tell a worse error.
    let fingerprint = x509::hex(&x509::sha256(&key.spki_der())).chars().take(16).collect::<String>();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    params.distinguished_name.push(DnType::CommonName, format!("Byrnie {kind} {fingerprint}"));
    params.serial_number = Some(random_serial()?);
    params.not_before = calendar(not_before)?;
    params.not_after = calendar(not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let id = SpiffeId::of_trust_domain(trust_domain);
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(certificate_error)?)];
    Ok(params)
}

pub(crate) const ORGANIZATION: &str = "Byrnie";

fn certificate_error(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Certificate(error.to_string())
}
