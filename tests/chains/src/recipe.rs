//! Root, intermediate and leaf, and what a test may change of them before they are signed.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

/// 2026-01-01T00:00:00Z in Unix seconds, where the clocks of tests stand.
pub const NOW: u64 = 1_767_225_600;
/// Seconds.
pub const DAY: i64 = 24 * 3600;
/// The trust domain of tests.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The SPIFFE ID of a good leaf.
pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// What a chain is made of. Change a part, then [`Recipe::make`].
pub struct Recipe {
    /// Whose bundle the root is in.
    pub trust_domain: String,
    /// The root.
    pub root: CertificateParams,
    /// The issuer below it.
    pub intermediate: CertificateParams,
    /// The certificate of the workload.
    pub leaf: CertificateParams,
}

/// A signed chain and its keys.
pub struct Made {
    /// Leaf, intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root.
    pub root: CertificateDer<'static>,
    /// The leaf's key.
    pub leaf_key: KeyPair,
    /// The intermediate's key.
    pub intermediate_key: KeyPair,
}

impl Recipe {
    /// A chain that breaks no rule.
    pub fn good() -> Self {
        Self {
            trust_domain: TRUST_DOMAIN.to_owned(),
            root: ca("test root"),
            intermediate: ca("test intermediate"),
            leaf: leaf(&[WEB]),
        }
    }

    /// Signs it, with new keys.
    pub fn make(&self) -> Made {
        self.make_with_root_key(&key())
    }

    /// Signs it, with a root key that is there.
    pub fn make_with_root_key(&self, root_key: &KeyPair) -> Made {
        let (intermediate_key, leaf_key) = (key(), key());
        let root = self.root.self_signed(root_key).unwrap();
        let intermediate =
            self.intermediate.signed_by(&intermediate_key, &Issuer::from_params(&self.root, root_key)).unwrap();
        let by_intermediate = Issuer::from_params(&self.intermediate, &intermediate_key);
        let leaf = self.leaf.signed_by(&leaf_key, &by_intermediate).unwrap();
        Made { chain: vec![leaf.into(), intermediate.into()], root: root.into(), leaf_key, intermediate_key }
    }
}

/// An authority without limits.
pub fn ca(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, -DAY, 30 * DAY);
    params
}

/// A workload's certificate as Byrnie issues it, with these URIs.
pub fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = named("test leaf");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = uris.iter().map(|name| uri(name)).collect();
    params.subject_alt_names.push(SanType::DnsName("web.shop.cluster.local".try_into().unwrap()));
    valid(&mut params, -600, DAY);
    params
}

/// A URI among the names.
pub fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

/// Sets the validity, in seconds from [`NOW`].
pub fn valid(params: &mut CertificateParams, from: i64, until: i64) {
    let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(NOW as i64 + seconds).unwrap();
    (params.not_before, params.not_after) = (at(from), at(until));
}

/// An extension with this value, whatever it is worth.
pub fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
