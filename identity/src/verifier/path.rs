//! One chain against one bundle at one moment.

use std::sync::Arc;
use std::time::Duration;

use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, VerifiedPath};

use super::{PeerIdentity, Verified, VerifyCause, VerifyError, check_facts_window, rules};
use crate::bundle::{Authority, TrustBundle};
use crate::spiffe_id::SpiffeId;
use crate::time_format::rfc3339;
use crate::x509::{self, Facts};

/// What a handshake signature may be: the schemes of TLS 1.3 for P-256, P-384, Ed25519 and RSA-PSS. Our own keys are
/// P-256; the others are there for workloads whose SVIDs come from another issuer of the same trust domain.
pub(crate) static HANDSHAKE_ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: CHAIN_ALGORITHMS,
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[algorithms::ECDSA_P256_SHA256]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[algorithms::ECDSA_P384_SHA384]),
        (SignatureScheme::ED25519, &[algorithms::ED25519]),
        (SignatureScheme::RSA_PSS_SHA256, &[algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA512, &[algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
    ],
};

/// Refuses what no chain is, before anything is hashed or parsed.
pub(super) fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    if chain.is_empty() {
        return Err(VerifyError::new(VerifyCause::NoCertificate, "the peer sent no certificate"));
    }
    if chain.len() > MAX_CHAIN {
        let detail = format!("the chain has {} certificates: expected at most {MAX_CHAIN}", chain.len());
        return Err(VerifyError::new(VerifyCause::ChainTooLong, detail));
    }
    Ok(())
}

/// The leaf's facts and ID, all of its own rules kept.
pub(super) fn read_leaf(chain: &[CertificateDer<'_>]) -> Result<(Facts, SpiffeId), VerifyError> {
    check_size(chain)?;
    let leaf = chain.first().map_or(&[][..], |der| der.as_ref());
    let facts = x509::parse(leaf)?;
    let id = rules::check_leaf(&facts)?;
    Ok((facts, id))
}

/// Verifies `chain`, whose leaf has been read, with the bundle of its trust domain at `now` (Unix seconds).
pub(crate) fn verify(
    chain: &[CertificateDer<'_>],
    leaf: Facts,
    id: SpiffeId,
    bundle: &TrustBundle,
    now: u64,
) -> Result<PeerIdentity, VerifyError> {
    let [leaf_der, issuers_der @ ..] = chain else {
        return Err(VerifyError::new(VerifyCause::NoCertificate, "the peer sent no certificate"));
    };
    if bundle.trust_domain() != id.trust_domain() {
        let detail = format!("{id} can't be judged by the trust bundle of {}", bundle.trust_domain());
        return Err(VerifyError::new(VerifyCause::UnknownTrustDomain, detail));
    }
    let mut issuers = Vec::with_capacity(issuers_der.len());
    for (index, der) in issuers_der.iter().enumerate() {
        let facts = x509::parse(der)?;
        rules::check_issuer(&facts, &format!("certificate {} of the chain", index + 2), id.trust_domain())?;
        issuers.push(facts);
    }
    check_facts_window(&leaf, now, "the leaf")?;

    let end_entity = EndEntityCert::try_from(leaf_der).map_err(|error| from_webpki(&error))?;
    let (path, root) = find_path(&end_entity, issuers_der, bundle, now)?;
    let on_path: Vec<&Facts> = path
        .intermediate_certificates()
        .filter_map(|used| issuers_der.iter().position(|der| **der == *used.der()))
        .filter_map(|index| issuers.get(index))
        .chain([root])
        .collect();
    rules::check_path_lengths(on_path.iter().copied())?;
    let above = |all: fn(&Facts) -> u64| on_path.iter().map(move |facts| all(facts));
    Ok(PeerIdentity(Arc::new(Verified {
        not_before: above(|facts| facts.not_before).fold(leaf.not_before, u64::max),
        not_after: above(|facts| facts.not_after).fold(leaf.not_after, u64::min),
        id,
        serial: leaf.serial,
        outside_mesh: leaf.outside_mesh,
        authority: Authority::of(root),
        leaf_fingerprint: x509::sha256(leaf_der),
    })))
}

/// Leaf, two intermediates of ours at most, an external authority's own, and a root that need not be there.
const MAX_CHAIN: usize = 8;

/// What a certificate may be signed with: no SHA-1, no RSA below 2048 bits.
const CHAIN_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// A path to a root of the bundle that is valid now. webpki does not look at a root's dates, so every root is tried
/// by itself: a path that only an expired root would close is reported as expired.
fn find_path<'p>(
    end_entity: &'p EndEntityCert<'p>,
    issuers: &'p [CertificateDer<'p>],
    bundle: &'p TrustBundle,
    now: u64,
) -> Result<(VerifiedPath<'p>, &'p Facts), VerifyError> {
    let mut refusal = VerifyError::new(
        VerifyCause::UnknownAuthority,
        format!("the chain leads to no root in the trust bundle of {}", bundle.trust_domain()),
    );
    let roots = bundle.anchors().iter().zip(bundle.facts());
    for (anchor, root) in roots {
        match build(end_entity, issuers, std::slice::from_ref(anchor), now) {
            Ok(path) => match check_facts_window(root, now, "the root") {
                Ok(()) => return Ok((path, root)),
                Err(outside) => refusal = outside,
            },
            Err(webpki::Error::UnknownIssuer) => {}
            Err(error) => refusal = from_webpki(&error),
        }
    }
    Err(refusal)
}

fn build<'p>(
    end_entity: &'p EndEntityCert<'p>,
    issuers: &'p [CertificateDer<'p>],
    anchors: &'p [TrustAnchor<'static>],
    now: u64,
) -> Result<VerifiedPath<'p>, webpki::Error> {
    end_entity.verify_for_usage(
        CHAIN_ALGORITHMS,
        anchors,
        issuers,
        UnixTime::since_unix_epoch(Duration::from_secs(now)),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
}

fn from_webpki(error: &webpki::Error) -> VerifyError {
    use webpki::Error;
    let (cause, detail) = match error {
        Error::CertExpired { time, not_after } => (
            VerifyCause::Expired,
            format!("an issuer expired at {}; it is {}", rfc3339(not_after.as_secs()), rfc3339(time.as_secs())),
        ),
        Error::CertNotValidYet { time, not_before } => (
            VerifyCause::NotYetValid,
            format!("an issuer is valid from {}; it is {}", rfc3339(not_before.as_secs()), rfc3339(time.as_secs())),
        ),
        Error::UnknownIssuer => (VerifyCause::UnknownAuthority, "the chain leads to no root".to_owned()),
        Error::InvalidSignatureForPublicKey => {
            (VerifyCause::BadSignature, "a certificate was not signed by its issuer".to_owned())
        }
        Error::PathLenConstraintViolated => {
            (VerifyCause::PathLength, "more issuers than one of them allows below it".to_owned())
        }
        Error::CaUsedAsEndEntity => (VerifyCause::NotALeaf, "the leaf is a certificate authority".to_owned()),
        Error::EndEntityUsedAsCa => (VerifyCause::NotAnIssuer, "an issuer is no certificate authority".to_owned()),
        Error::NameConstraintViolation => {
            (VerifyCause::NameConstraints, "a name is outside of an issuer's name constraints".to_owned())
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            (VerifyCause::ExtendedKeyUsage, error.to_string())
        }
        Error::UnsupportedCriticalExtension => (VerifyCause::CriticalExtension, error.to_string()),
        Error::UnsupportedSignatureAlgorithmContext(_) | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            (VerifyCause::UnsupportedAlgorithm, "a certificate is signed in a way that is not taken here".to_owned())
        }
        _ => (VerifyCause::Malformed, error.to_string()),
    };
    VerifyError::new(cause, detail)
}
