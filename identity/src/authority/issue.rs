//! One X.509-SVID: made, then verified as its peers will.

use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, DnsName};

use super::signer::{ORGANIZATION, Signer, calendar, random_serial};
use super::{AuthorityError, CertificateAuthority, Issued};
use crate::csr::p256_point;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::time_format::{rfc3339, system_time};
use crate::verifier::{VerifyCause, VerifyError, rules, verify_with_bundle};
use crate::x509::{self, KeyUsage};

/// Who is to hold a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bearer {
    Proxy,
    Outside,
}

/// Issues one.
pub(super) fn issue(
    authority: &CertificateAuthority,
    issuer: &Signer,
    bearer: Bearer,
    spki_der: &[u8],
    id: &SpiffeId,
    ttl: Duration,
) -> Result<Issued, IssueError> {
    let dns_name = check_id(authority, id)?;
    check_ttl(authority, ttl)?;
    let point = p256_point(spki_der).ok_or(IssueError::PublicKey)?;
    // Parsing checks that the point is on the curve.
    if ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).is_err() || spki_der == issuer.spki() {
        return Err(IssueError::PublicKey);
    }
    let public_key = SubjectPublicKeyInfo::from_der(spki_der).map_err(|_| IssueError::PublicKey)?;
    let now = authority.now();
    if now < issuer.not_before() || now >= issuer.not_after() {
        return Err(IssueError::IssuerNotValid {
            not_before: rfc3339(issuer.not_before()),
            not_after: rfc3339(issuer.not_after()),
            now: rfc3339(now),
        });
    }
    let not_before = now.saturating_sub(BACKDATING).max(issuer.not_before());
    let not_after = now.saturating_add(ttl.as_secs()).min(issuer.not_after());
    let mut params = leaf_params(id, &dns_name, not_before, not_after).map_err(Box::new)?;
    if bearer == Bearer::Outside {
        params.distinguished_name.push(DnType::OrganizationalUnitName, x509::OUTSIDE_MESH);
    }
    let leaf = issuer.sign(&params, &public_key).map_err(|error| IssueError::Certificate(error.to_string()))?;
    let chain = vec![leaf, issuer.certificate().clone()];
    let serial = check_own_output(authority, &chain, spki_der, id, &dns_name, bearer, now)?;
    Ok(Issued {
        chain,
        serial,
        not_before: system_time(not_before),
        not_after: system_time(not_after),
        issuer: issuer.subject().to_owned(),
    })
}

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// Not ours to issue.
    #[error("{id} is not in the trust domain of this authority, {trust_domain}")]
    ForeignTrustDomain {
        /// What was asked for.
        id: SpiffeId,
        /// Whose identities are issued here.
        trust_domain: TrustDomain,
    },
    /// No `/ns/<namespace>/sa/<service-account>`.
    #[error("{0} is no workload: expected spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
    NotAWorkload(SpiffeId),
    /// The names make no DNS name, which every SVID bears for peers that know no URIs.
    #[error("{id} can't be issued: {name:?} is no DNS name (253 characters at most, 63 per label)")]
    DnsName {
        /// What was asked for.
        id: SpiffeId,
        /// What it would be called in DNS.
        name: String,
    },
    /// A life that is not granted.
    #[error("a life of {asked:?} was asked for: expected {shortest:?} to {longest:?}")]
    Ttl {
        /// What was asked for.
        asked: Duration,
        /// The shortest that is granted.
        shortest: Duration,
        /// The longest that is granted.
        longest: Duration,
    },
    /// Another kind of key, a point that is not on the curve, or the issuer's own.
    #[error("the public key can't be certified: expected a P-256 key (uncompressed) that is not the issuer's own")]
    PublicKey,
    /// The intermediate has run out and could not be replaced.
    #[error("the issuer is valid from {not_before} to {not_after}, and it is {now}")]
    IssuerNotValid {
        /// RFC 3339.
        not_before: String,
        /// RFC 3339.
        not_after: String,
        /// RFC 3339.
        now: String,
    },
    /// The certificate could not be made.
    #[error("the certificate could not be made: {0}")]
    Certificate(String),
    /// The parts of the certificate could not be made.
    #[error(transparent)]
    Authority(#[from] Box<AuthorityError>),
    /// The certificate was made and does not pass; it was thrown away.
    #[error("the certificate made for {id} does not pass verification: {source}")]
    SelfCheck {
        /// For whom.
        id: SpiffeId,
        /// What is wrong with it.
        source: VerifyError,
    },
}

/// For peers whose clocks are slow.
const BACKDATING: u64 = 600;

/// That `id` is a workload of ours; its DNS name.
fn check_id(authority: &CertificateAuthority, id: &SpiffeId) -> Result<String, IssueError> {
    if id.trust_domain() != authority.trust_domain() {
        let trust_domain = authority.trust_domain().clone();
        return Err(IssueError::ForeignTrustDomain { id: id.clone(), trust_domain });
    }
    let (Some(namespace), Some(service_account)) = (id.namespace(), id.service_account()) else {
        return Err(IssueError::NotAWorkload(id.clone()));
    };
    let name = format!("{service_account}.{namespace}.{}", id.trust_domain());
    match DnsName::try_from(name.as_str()) {
        Ok(_) => Ok(name),
        Err(_) => Err(IssueError::DnsName { id: id.clone(), name }),
    }
}

fn check_ttl(authority: &CertificateAuthority, ttl: Duration) -> Result<(), IssueError> {
    let limits = authority.limits();
    // A life below a second would end before it is handed out: certificates know whole seconds.
    if ttl < limits.shortest.max(Duration::from_secs(1)) || ttl > limits.longest {
        return Err(IssueError::Ttl { asked: ttl, shortest: limits.shortest, longest: limits.longest });
    }
    Ok(())
}

fn leaf_params(
    id: &SpiffeId,
    dns_name: &str,
    not_before: u64,
    not_after: u64,
) -> Result<CertificateParams, AuthorityError> {
    let certificate = |error: rcgen::Error| AuthorityError::Certificate(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    params.serial_number = Some(random_serial()?);
    params.not_before = calendar(not_before)?;
    params.not_after = calendar(not_after)?;
    // `NoCa` would leave basicConstraints out.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![
        SanType::URI(id.as_str().try_into().map_err(certificate)?),
        SanType::DnsName(dns_name.try_into().map_err(certificate)?),
    ];
    Ok(params)
}

/// The chain as a stranger will see it: it verifies, it says what was asked for, and nothing more. Returns the serial.
fn check_own_output(
    authority: &CertificateAuthority,
    chain: &[CertificateDer<'static>],
    spki_der: &[u8],
    id: &SpiffeId,
    dns_name: &str,
    bearer: Bearer,
    now: u64,
) -> Result<String, IssueError> {
    let check = || -> Result<String, VerifyError> {
        let leaf = chain.first().map_or(&[][..], |der| der.as_ref());
        let facts = x509::parse(leaf)?;
        let found = rules::check_leaf(&facts)?;
        let as_asked = found == *id
            && facts.dns_names == [dns_name]
            && facts.spki == spki_der
            && facts.outside_mesh == (bearer == Bearer::Outside)
            && facts.key_usage.is_some_and(|usage| usage.only(KeyUsage::DIGITAL_SIGNATURE))
            && facts.extended_key_usage.is_some();
        if !as_asked {
            return Err(VerifyError::new(VerifyCause::WrongIdentity, "it does not say what was asked for"));
        }
        let serial = facts.serial.clone();
        verify_with_bundle(chain, facts, found, &authority.bundle, now)?;
        Ok(serial)
    };
    check().map_err(|source| IssueError::SelfCheck { id: id.clone(), source })
}
