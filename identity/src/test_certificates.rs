//! Chains for tests: good by default, bad in exactly the way that a test asks for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::{Clock, KeyPair, ManualClock, SvidVerifier, TrustBundle, TrustBundles, TrustDomain};

/// 2026-01-01T00:00:00Z, where the clocks of tests stand.
pub(crate) const NOW: u64 = 1_767_225_600;
pub(crate) const DAY: i64 = 24 * 3600;
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

pub(crate) fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) fn trust_domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// A verifier that trusts `bundles`, and the hand of its clock, which stands at [`NOW`].
pub(crate) fn verifier(bundles: impl IntoIterator<Item = TrustBundle>) -> (Arc<SvidVerifier>, ManualClock) {
    let (clock, hand) = Clock::manual(start());
    (SvidVerifier::new(bundles.into_iter().collect::<TrustBundles>().shared(), clock), hand)
}

/// What a chain is made of. Change a part, then [`Recipe::make`].
pub(crate) struct Recipe {
    pub(crate) trust_domain: &'static str,
    pub(crate) root: CertificateParams,
    pub(crate) intermediate: CertificateParams,
    pub(crate) leaf: CertificateParams,
}

pub(crate) struct Made {
    /// Leaf, intermediate.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) leaf_key: KeyPair,
    pub(crate) intermediate_key: KeyPair,
}

impl Made {
    pub(crate) fn bundle(&self, name: &str) -> TrustBundle {
        TrustBundle::new(trust_domain(name), 1, vec![self.root.clone()]).unwrap()
    }
}

impl Recipe {
    pub(crate) fn good() -> Self {
        Self {
            trust_domain: TRUST_DOMAIN,
            root: ca("test root"),
            intermediate: ca("test intermediate"),
            leaf: leaf(&[WEB]),
        }
    }

    pub(crate) fn make(&self) -> Made {
        self.make_with_root_key(KeyPair::generate().unwrap())
    }

    pub(crate) fn make_with_root_key(&self, root_key: KeyPair) -> Made {
        let (intermediate_key, leaf_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = self.root.self_signed(&root_key).unwrap();
        let by_root = Issuer::from_params(&self.root, root_key);
        let intermediate = self.intermediate.signed_by(&intermediate_key, &by_root).unwrap();
        let by_intermediate = Issuer::from_params(&self.intermediate, &intermediate_key);
        let leaf = self.leaf.signed_by(&leaf_key, &by_intermediate).unwrap();
        Made { chain: vec![leaf.into(), intermediate.into()], root: root.into(), leaf_key, intermediate_key }
    }
}

pub(crate) fn ca(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, -DAY, 30 * DAY);
    params
}

pub(crate) fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = named("test leaf");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = uris.iter().map(|name| uri(name)).collect();
    params.subject_alt_names.push(SanType::DnsName("web.shop.cluster.local".try_into().unwrap()));
    valid(&mut params, -600, DAY);
    params
}

pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// Sets the validity, in seconds from [`NOW`].
pub(crate) fn valid(params: &mut CertificateParams, from: i64, until: i64) {
    let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(NOW as i64 + seconds).unwrap();
    (params.not_before, params.not_after) = (at(from), at(until));
}

pub(crate) fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
