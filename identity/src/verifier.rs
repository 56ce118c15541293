//! Verification of X.509-SVIDs: the path by webpki, the rules of the SPIFFE standard by [`rules`], and the result as
//! a [`PeerIdentity`] that nothing else can make.
//!
//! Verification is a pure function of the chain, the bundle of its trust domain, and the time. So verified chains are
//! kept (a peer's next handshake costs one hash), while time and bundle are looked at every time.

mod cache;
mod error;
mod path;
pub(crate) mod rules;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::bundle::{Authority, SharedBundles, TrustBundle};
use crate::clock::Clock;
use crate::spiffe_id::SpiffeId;
use crate::time_format::{rfc3339, system_time, unix_seconds};
use crate::x509::Facts;
use cache::{Cache, chain_digest};
pub use error::{VerifyCause, VerifyError};

/// Verifies chains against the bundles that are trusted now, at the time that it is now.
pub struct SvidVerifier {
    bundles: SharedBundles,
    clock: Clock,
    cache: Mutex<Cache>,
}

impl SvidVerifier {
    /// A verifier that reads `bundles` anew at every call.
    pub fn new(bundles: SharedBundles, clock: Clock) -> Arc<Self> {
        Arc::new(Self { bundles, clock, cache: Mutex::default() })
    }

    /// Verifies a chain (DER, leaf first, with or without the root) as an X.509-SVID.
    ///
    /// # Errors
    /// The first rule that it breaks. The order of the checks is fixed: form, the leaf's rules, trust domain, the
    /// issuers' rules, path and validity.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, VerifyError> {
        path::check_size(chain)?;
        let now = unix_seconds(self.clock.wall());
        let digest = chain_digest(chain);
        if let Some(known) = self.recall(&digest)
            && known.check_time(now).is_ok()
        {
            return Ok(known);
        }
        let (leaf, id) = path::read_leaf(chain)?;
        let bundles = self.bundles.load();
        let bundle = bundles.get(id.trust_domain()).ok_or_else(|| unknown_trust_domain(&id))?;
        let identity = path::verify(chain, leaf, id, bundle, now)?;
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, identity.clone(), bundle.digest());
        Ok(identity)
    }

    /// Whether an identity that was verified before would be again: its time has not run out, and the authority that
    /// vouched for it is still trusted.
    ///
    /// # Errors
    /// `expired`, `not-yet-valid` (the clock was set back), `unknown-trust-domain` or `unknown-authority`.
    pub fn check_still_valid(&self, identity: &PeerIdentity) -> Result<(), VerifyError> {
        identity.check_time(unix_seconds(self.clock.wall()))?;
        let bundles = self.bundles.load();
        let id = identity.id();
        let bundle = bundles.get(id.trust_domain()).ok_or_else(|| unknown_trust_domain(id))?;
        if bundle.authorities().any(|authority| authority == identity.authority()) {
            return Ok(());
        }
        let detail = format!("the authority {} that vouched for {id} has left the trust bundle", identity.authority());
        Err(VerifyError::new(VerifyCause::UnknownAuthority, detail))
    }

    /// The bundles that this verifier reads.
    pub fn bundles(&self) -> &SharedBundles {
        &self.bundles
    }

    /// The clock that this verifier reads.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What the cache knows, if it was verified with the bundle that is trusted now.
    fn recall(&self, digest: &[u8; 32]) -> Option<PeerIdentity> {
        let bundles = self.bundles.load();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(digest, |identity| bundles.get(identity.id().trust_domain()).map(TrustBundle::digest))
    }
}

impl fmt::Debug for SvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidVerifier").field("bundles", &self.bundles.load()).finish_non_exhaustive()
    }
}

/// A peer whose X.509-SVID was verified. Only [`SvidVerifier::verify`] makes one. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerIdentity(Arc<Verified>);

impl PeerIdentity {
    /// The one SPIFFE ID of the leaf.
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// The leaf's serial number, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// From when on the whole chain is valid.
    pub fn not_before(&self) -> SystemTime {
        system_time(self.0.not_before)
    }

    /// Until when (inclusive) the whole chain, root included, is valid.
    pub fn not_after(&self) -> SystemTime {
        system_time(self.0.not_after)
    }

    /// The root that vouched for it.
    pub fn authority(&self) -> Authority {
        self.0.authority
    }

    /// SHA-256 of the leaf's DER.
    pub fn leaf_fingerprint(&self) -> [u8; 32] {
        self.0.leaf_fingerprint
    }

    /// Whether its certificate is for a client outside of the mesh
    /// ([`issue_outside`](crate::authority::CertificateAuthority::issue_outside)): it is no proxy, whatever it speaks.
    pub fn is_outside_mesh(&self) -> bool {
        self.0.outside_mesh
    }

    /// Whether this is who was expected here: that identity, and not a client outside of the mesh that bears it.
    ///
    /// # Errors
    /// `wrong-identity`, with both names.
    pub fn expect(&self, expected: &SpiffeId) -> Result<(), VerifyError> {
        if self.id() == expected && !self.is_outside_mesh() {
            return Ok(());
        }
        if self.is_outside_mesh() {
            let detail =
                format!("expected {expected}, found the certificate of a client outside of the mesh, {}", self.id());
            return Err(VerifyError::new(VerifyCause::WrongIdentity, detail));
        }
        let detail = format!("expected {expected}, found {}", self.id());
        Err(VerifyError::new(VerifyCause::WrongIdentity, detail))
    }

    fn check_time(&self, now: u64) -> Result<(), VerifyError> {
        check_window(self.0.not_before, self.0.not_after, now, "the chain")
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerIdentity({}, serial {})", self.id(), self.serial())
    }
}

/// Checks a signature made with the private key of `leaf` outside of a handshake.
///
/// `scheme` is a TLS 1.3 SignatureScheme (RFC 8446 section 4.2.3). The leaf itself is not verified here.
///
/// # Errors
/// `unsupported-algorithm` for a scheme that Byrnie does not take in a handshake either, `bad-signature`, and
/// `malformed` for something that is no certificate.
pub fn verify_signature(
    leaf: &CertificateDer<'_>,
    scheme: u16,
    message: &[u8],
    signature: &[u8],
) -> Result<(), VerifyError> {
    let scheme = SignatureScheme::from(scheme);
    let algorithm = path::HANDSHAKE_ALGORITHMS
        .mapping
        .iter()
        .find(|(known, _)| *known == scheme)
        .and_then(|(_, algorithms)| algorithms.first())
        .ok_or_else(|| {
            let detail = format!("signature scheme {scheme:?} is not among those allowed in TLS 1.3");
            VerifyError::new(VerifyCause::UnsupportedAlgorithm, detail)
        })?;
    let leaf = EndEntityCert::try_from(leaf)
        .map_err(|error| VerifyError::new(VerifyCause::Malformed, format!("no X.509 certificate: {error}")))?;
    leaf.verify_signature(*algorithm, message, signature).map_err(|error| {
        VerifyError::new(VerifyCause::BadSignature, format!("the signature does not fit the certificate: {error}"))
    })
}

pub(crate) use path::HANDSHAKE_ALGORITHMS;
pub(crate) use path::verify as verify_with_bundle;

#[derive(PartialEq, Eq)]
struct Verified {
    id: SpiffeId,
    serial: String,
    outside_mesh: bool,
    not_before: u64,
    not_after: u64,
    authority: Authority,
    leaf_fingerprint: [u8; 32],
}

fn check_window(not_before: u64, not_after: u64, now: u64, what: &str) -> Result<(), VerifyError> {
    if now > not_after {
        let detail = format!("{what} expired at {}; it is {}", rfc3339(not_after), rfc3339(now));
        return Err(VerifyError::new(VerifyCause::Expired, detail));
    }
    if now < not_before {
        let detail = format!("{what} is valid from {}; it is {}", rfc3339(not_before), rfc3339(now));
        return Err(VerifyError::new(VerifyCause::NotYetValid, detail));
    }
    Ok(())
}

fn check_facts_window(facts: &Facts, now: u64, what: &str) -> Result<(), VerifyError> {
    check_window(facts.not_before, facts.not_after, now, what)
}

fn unknown_trust_domain(id: &SpiffeId) -> VerifyError {
    let detail = format!("no trust bundle for the trust domain of {id}");
    VerifyError::new(VerifyCause::UnknownTrustDomain, detail)
}

#[cfg(test)]
mod tests;
