//! Trust bundles: the roots of a trust domain, and the bundles of several trust domains held apart.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use byrnie_proto::mesh::v1 as proto;
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::spiffe_id::{SpiffeIdError, TrustDomain};
use crate::verifier::rules;
use crate::verifier::{VerifyCause, VerifyError};
use crate::x509::{self, Facts};

/// All bundles that a process trusts now, replaced as a whole when one changes.
pub type SharedBundles = Arc<ArcSwap<TrustBundles>>;

/// The authorities of one trust domain. Immutable; cheap to clone.
#[derive(Clone)]
pub struct TrustBundle(Arc<Inner>);

impl TrustBundle {
    /// A bundle of `roots` (DER). `revision` is whatever number the issuer of the bundle raises at each change.
    /// A root that occurs twice is kept once.
    ///
    /// # Errors
    /// When there is none, or too many, or one is not the certificate of an authority: no CA, no keyCertSign, the
    /// SPIFFE ID of a workload or of another trust domain. A root that has expired is no error: it vouches for nobody.
    pub fn new(
        trust_domain: TrustDomain,
        revision: u64,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut distinct: Vec<CertificateDer<'static>> = Vec::new();
        for root in roots {
            if !distinct.contains(&root) {
                distinct.push(root);
            }
        }
        match distinct.len() {
            0 => return Err(BundleError::Empty(trust_domain)),
            count if count > MAX_ROOTS => {
                return Err(BundleError::TooMany { trust_domain, count });
            }
            _ => {}
        }
        let mut anchors = Vec::with_capacity(distinct.len());
        let mut facts = Vec::with_capacity(distinct.len());
        for (index, root) in distinct.iter().enumerate() {
            let (anchor, fact) = read_root(root, &trust_domain).map_err(|source| BundleError::Root {
                trust_domain: trust_domain.clone(),
                number: index + 1,
                source,
            })?;
            anchors.push(anchor);
            facts.push(fact);
        }
        let digest = x509::sha256(&distinct.iter().flat_map(|root| x509::sha256(root)).collect::<Vec<u8>>());
        let authorities = facts.iter().map(Authority::of).collect();
        Ok(Self(Arc::new(Inner { trust_domain, revision, roots: distinct, anchors, facts, authorities, digest })))
    }

    /// Reads the certificates of a PEM text (RFC 7468); other sections are skipped.
    ///
    /// # Errors
    /// As [`TrustBundle::new`], and when the text is no PEM.
    pub fn from_pem(trust_domain: TrustDomain, revision: u64, pem: &[u8]) -> Result<Self, BundleError> {
        match x509::certificates_from_pem(pem) {
            Ok(roots) => Self::new(trust_domain, revision, roots),
            Err(error) => Err(BundleError::Pem { trust_domain, reason: error.to_string() }),
        }
    }

    /// The roots in PEM.
    pub fn to_pem(&self) -> String {
        x509::certificates_to_pem(self.roots())
    }

    /// Whose roots these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The number that its issuer gave it.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    /// DER, distinct, in the order in which they came.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.0.roots
    }

    /// The authorities of this bundle, one per root.
    pub fn authorities(&self) -> impl Iterator<Item = Authority> + '_ {
        self.0.authorities.iter().copied()
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.0.anchors
    }

    /// In the order of [`TrustBundle::anchors`].
    pub(crate) fn facts(&self) -> &[Facts] {
        &self.0.facts
    }

    /// Two bundles with the same digest verify alike.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.0.digest
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.0.trust_domain == other.0.trust_domain
            && self.0.revision == other.0.revision
            && self.0.roots == other.0.roots
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({}, revision {}, {} roots)", self.trust_domain(), self.revision(), self.roots().len())
    }
}

impl TryFrom<&proto::Bundle> for TrustBundle {
    type Error = BundleError;

    fn try_from(message: &proto::Bundle) -> Result<Self, BundleError> {
        let trust_domain = message.trust_domain.parse().map_err(|source| BundleError::TrustDomain {
            found: message.trust_domain.chars().take(256).collect(),
            source,
        })?;
        // Counted before anything is copied or parsed.
        if message.roots.len() > MAX_ROOTS {
            return Err(BundleError::TooMany { trust_domain, count: message.roots.len() });
        }
        let roots = message.roots.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Self::new(trust_domain, message.revision, roots)
    }
}

impl From<&TrustBundle> for proto::Bundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            revision: bundle.revision(),
            roots: bundle.roots().iter().map(|der| der.to_vec()).collect(),
        }
    }
}

/// One bundle per trust domain. A chain is only ever verified with the bundle of the trust domain that its SPIFFE ID
/// names, so that no trust domain can vouch for another's workloads.
#[derive(Clone, Debug, Default)]
pub struct TrustBundles(BTreeMap<TrustDomain, TrustBundle>);

impl TrustBundles {
    /// Puts `bundle` in the place of the one of the same trust domain.
    pub fn insert(&mut self, bundle: TrustBundle) {
        self.0.insert(bundle.trust_domain().clone(), bundle);
    }

    /// The bundle of `trust_domain`, where there is one.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&TrustBundle> {
        self.0.get(trust_domain)
    }

    /// Takes the bundle of `trust_domain` out: nobody of it is trusted any more.
    pub fn remove(&mut self, trust_domain: &TrustDomain) -> Option<TrustBundle> {
        self.0.remove(trust_domain)
    }

    /// All bundles, by name of the trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.0.values()
    }

    /// Ready to be shared with verifiers.
    pub fn shared(self) -> SharedBundles {
        Arc::new(ArcSwap::from_pointee(self))
    }
}

impl FromIterator<TrustBundle> for TrustBundles {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let mut all = Self::default();
        bundles.into_iter().for_each(|bundle| all.insert(bundle));
        all
    }
}

impl From<TrustBundle> for TrustBundles {
    fn from(bundle: TrustBundle) -> Self {
        std::iter::once(bundle).collect()
    }
}

/// Names a root: SHA-256 of its DER SubjectPublicKeyInfo. A root that is reissued for the same key is the same
/// authority.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority([u8; 32]);

impl Authority {
    /// The digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn of(root: &Facts) -> Self {
        Self(x509::sha256(&root.spki))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&x509::hex(&self.0))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({self})")
    }
}

/// Why something is no trust bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The message's trust domain is no name of one.
    #[error("trust bundle: {found:?} is no trust domain: {source}")]
    TrustDomain {
        /// What stood there, cut at 256 characters.
        found: String,
        /// Why not.
        source: SpiffeIdError,
    },
    /// No root.
    #[error("trust bundle of {0}: it holds no certificate: expected at least one root")]
    Empty(TrustDomain),
    /// More roots than any rotation needs.
    #[error("trust bundle of {trust_domain}: it holds {count} roots: expected at most {MAX_ROOTS}")]
    TooMany {
        /// Of which trust domain.
        trust_domain: TrustDomain,
        /// How many there are.
        count: usize,
    },
    /// The text is no PEM.
    #[error("trust bundle of {trust_domain}: not readable as PEM certificates: {reason}")]
    Pem {
        /// Of which trust domain.
        trust_domain: TrustDomain,
        /// What the parser said.
        reason: String,
    },
    /// A certificate that can't be a root.
    #[error("trust bundle of {trust_domain}: root {number}: {source}")]
    Root {
        /// Of which trust domain.
        trust_domain: TrustDomain,
        /// Counted from 1.
        number: usize,
        /// What is wrong with it.
        source: VerifyError,
    },
}

struct Inner {
    trust_domain: TrustDomain,
    revision: u64,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    facts: Vec<Facts>,
    authorities: Vec<Authority>,
    digest: [u8; 32],
}

/// A rotation has two or three roots at a time; a federation of signers perhaps a dozen.
const MAX_ROOTS: usize = 64;

fn read_root(
    root: &CertificateDer<'static>,
    trust_domain: &TrustDomain,
) -> Result<(TrustAnchor<'static>, Facts), VerifyError> {
    let facts = x509::parse(root)?;
    rules::check_issuer(&facts, "the root", trust_domain)?;
    let anchor = webpki::anchor_from_trusted_cert(root)
        .map_err(|error| VerifyError::new(VerifyCause::Malformed, format!("the root can't be read: {error}")))?;
    Ok((anchor.to_owned(), facts))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::KeyPair;
    use crate::test_certificates::{Recipe, TRUST_DOMAIN, ca, trust_domain, uri};

    #[test]
    fn a_bundle_takes_authorities_only() {
        let made = Recipe::good().make();
        let bundle = |roots| TrustBundle::new(trust_domain(TRUST_DOMAIN), 1, roots);
        assert!(matches!(bundle(vec![]), Err(BundleError::Empty(_))));
        let error = bundle(vec![made.root.clone(), made.chain[0].clone()]).unwrap_err().to_string();
        assert!(error.contains("cluster.local") && error.contains("root 2") && error.contains("CA:FALSE"), "{error}");
        assert!(bundle(vec![b"garbage".to_vec().into()]).is_err());
        let mut foreign = Recipe::good();
        foreign.root.subject_alt_names = vec![uri("spiffe://other.example")];
        assert!(bundle(vec![foreign.make().root]).is_err());
        let many: Vec<_> =
            (0..65).map(|_| ca("root").self_signed(&KeyPair::generate().unwrap()).unwrap().into()).collect();
        assert!(matches!(bundle(many), Err(BundleError::TooMany { count: 65, .. })));
        assert_eq!(bundle(vec![made.root.clone(), made.root.clone()]).unwrap().roots().len(), 1);
    }

    #[test]
    fn a_bundle_survives_pem_and_the_wire() {
        let roots = vec![Recipe::good().make().root, Recipe::good().make().root];
        let bundle = TrustBundle::new(trust_domain(TRUST_DOMAIN), 7, roots).unwrap();
        let read = TrustBundle::from_pem(trust_domain(TRUST_DOMAIN), 7, bundle.to_pem().as_bytes()).unwrap();
        assert_eq!(read, bundle);
        let message = proto::Bundle::from(&bundle);
        assert_eq!(TrustBundle::try_from(&message).unwrap(), bundle);

        let broken = proto::Bundle { trust_domain: "Not/One".into(), ..message.clone() };
        assert!(matches!(TrustBundle::try_from(&broken), Err(BundleError::TrustDomain { .. })));
        let flood = proto::Bundle { roots: vec![vec![]; 10_000], ..message };
        assert!(matches!(TrustBundle::try_from(&flood), Err(BundleError::TooMany { count: 10_000, .. })));
        assert!(TrustBundle::from_pem(trust_domain(TRUST_DOMAIN), 1, b"-----BEGIN CERTIFICATE-----\nAA").is_err());
        assert!(TrustBundle::from_pem(trust_domain(TRUST_DOMAIN), 1, b"no pem at all").is_err());
    }
}
