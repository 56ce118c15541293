#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use proptest::prelude::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, NameConstraints, SanType};
use rstest::rstest;
use rustls_pki_types::CertificateDer;

use super::cache::CAPACITY;
use super::*;
use crate::test_certificates::*;
use crate::{KeyPair, SpiffeId, TrustBundle, TrustBundles};

const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
const UNHEARD_OF: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];
const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x07, 0x80];

fn judge(recipe: &Recipe) -> Result<PeerIdentity, VerifyError> {
    let made = recipe.make();
    let (verifier, _) = verifier([made.bundle(recipe.trust_domain)]);
    verifier.verify(&made.chain)
}

fn cause(result: Result<PeerIdentity, VerifyError>) -> &'static str {
    result.unwrap_err().cause.as_str()
}

#[test]
fn a_good_chain_tells_who_the_peer_is_and_until_when() {
    let made = Recipe::good().make();
    let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
    let peer = verifier.verify(&made.chain).unwrap();
    assert_eq!(peer.id().as_str(), WEB);
    assert_eq!(peer.not_before(), start() - Duration::from_secs(600));
    assert_eq!(peer.not_after(), start() + Duration::from_secs(DAY as u64));
    assert_eq!(peer.leaf_fingerprint(), crate::x509::sha256(&made.chain[0]));
    assert_eq!(made.bundle(TRUST_DOMAIN).authorities().collect::<Vec<_>>(), [peer.authority()]);
    assert_eq!(peer.serial(), crate::x509::parse(&made.chain[0]).unwrap().serial);
    assert!(!peer.serial().is_empty() && peer.serial().chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')));
}

#[rstest]
#[case::as_spire_makes_it(|r: &mut Recipe| r.leaf.key_usages.extend([KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement]))]
#[case::without_extended_key_usage(|r: &mut Recipe| r.leaf.extended_key_usages.clear())]
#[case::without_a_dns_name(|r: &mut Recipe| r.leaf.subject_alt_names.truncate(1))]
#[case::with_issuers_that_bear_the_trust_domain(|r: &mut Recipe| {
    r.root.subject_alt_names = vec![uri("spiffe://cluster.local")];
    r.intermediate.subject_alt_names = vec![uri("spiffe://cluster.local")];
})]
#[case::with_tight_path_lengths(|r: &mut Recipe| {
    r.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    r.intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
})]
#[case::with_an_unknown_extension_that_is_not_critical(|r: &mut Recipe| r.leaf.custom_extensions.push(extension(UNHEARD_OF, false, &[5, 0])))]
fn a_chain_within_the_standard_is_accepted(#[case] change: fn(&mut Recipe)) {
    let mut recipe = Recipe::good();
    change(&mut recipe);
    judge(&recipe).unwrap();
}

#[rstest]
// The leaf's names.
#[case("no-uri-san", |r: &mut Recipe| { r.leaf.subject_alt_names.remove(0); })]
#[case("no-uri-san", |r: &mut Recipe| r.leaf.subject_alt_names.clear())]
#[case("several-uri-sans", |r: &mut Recipe| r.leaf.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/orders")))]
#[case("several-uri-sans", |r: &mut Recipe| r.leaf.subject_alt_names.push(uri("https://example.org")))]
#[case("bad-spiffe-id", |r: &mut Recipe| r.leaf.subject_alt_names[0] = uri("https://cluster.local/ns/shop/sa/web"))]
#[case("bad-spiffe-id", |r: &mut Recipe| r.leaf.subject_alt_names[0] = uri("spiffe://cluster.local/ns/shop/../sa/web"))]
#[case("bad-spiffe-id", |r: &mut Recipe| r.leaf.subject_alt_names[0] = uri("spiffe://Cluster.local/ns/shop/sa/web"))]
#[case("bad-spiffe-id", |r: &mut Recipe| r.leaf.subject_alt_names[0] = uri("spiffe://cluster.local"))]
#[case("malformed", |r: &mut Recipe| {
    r.leaf.subject_alt_names.clear();
    r.leaf.custom_extensions.push(extension(SUBJECT_ALT_NAME, false, &[0x30, 0x03, 0x86, 0x01, 0xff]));
})]
// The leaf's constraints.
#[case("not-a-leaf", |r: &mut Recipe| r.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))]
#[case("basic-constraints", |r: &mut Recipe| r.leaf.is_ca = IsCa::NoCa)]
#[case("malformed", |r: &mut Recipe| {
    r.leaf.is_ca = IsCa::NoCa;
    r.leaf.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0x03, 0x01, 0x01]));
})]
#[case("malformed", |r: &mut Recipe| {
    r.leaf.is_ca = IsCa::NoCa;
    r.leaf.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0x00, 0x05, 0x00]));
})]
#[case("malformed", |r: &mut Recipe| {
    r.leaf.is_ca = IsCa::NoCa;
    r.leaf.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0x03, 0x02, 0x01, 0x00]));
})]
#[case("key-usage", |r: &mut Recipe| r.leaf.key_usages.clear())]
#[case("key-usage", |r: &mut Recipe| {
    r.leaf.key_usages.clear();
    r.leaf.custom_extensions.push(extension(KEY_USAGE, false, DIGITAL_SIGNATURE));
})]
#[case("key-usage", |r: &mut Recipe| r.leaf.key_usages.push(KeyUsagePurpose::KeyCertSign))]
#[case("key-usage", |r: &mut Recipe| r.leaf.key_usages.push(KeyUsagePurpose::CrlSign))]
#[case("key-usage", |r: &mut Recipe| r.leaf.key_usages.push(KeyUsagePurpose::DecipherOnly))]
#[case("key-usage", |r: &mut Recipe| r.leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement])]
#[case("extended-key-usage", |r: &mut Recipe| r.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])]
#[case("extended-key-usage", |r: &mut Recipe| r.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])]
#[case("extended-key-usage", |r: &mut Recipe| r.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any])]
#[case("critical-extension", |r: &mut Recipe| r.leaf.custom_extensions.push(extension(UNHEARD_OF, true, &[5, 0])))]
#[case("duplicate-extension", |r: &mut Recipe| r.leaf.custom_extensions.push(extension(KEY_USAGE, true, DIGITAL_SIGNATURE)))]
#[case("duplicate-extension", |r: &mut Recipe| {
    r.leaf.custom_extensions.extend([extension(UNHEARD_OF, false, &[5, 0]), extension(UNHEARD_OF, false, &[5, 0])]);
})]
// The issuers.
#[case("not-an-issuer", |r: &mut Recipe| r.intermediate.is_ca = IsCa::ExplicitNoCa)]
#[case("not-an-issuer", |r: &mut Recipe| r.intermediate.is_ca = IsCa::NoCa)]
#[case("not-an-issuer", |r: &mut Recipe| r.intermediate.key_usages.clear())]
#[case("not-an-issuer", |r: &mut Recipe| r.intermediate.key_usages = vec![KeyUsagePurpose::CrlSign])]
#[case("key-usage", |r: &mut Recipe| {
    r.intermediate.key_usages.clear();
    r.intermediate.custom_extensions.push(extension(KEY_USAGE, false, &[0x03, 0x02, 0x01, 0x06]));
})]
#[case("issuer-spiffe-id", |r: &mut Recipe| r.intermediate.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/web")])]
#[case("issuer-spiffe-id", |r: &mut Recipe| r.intermediate.subject_alt_names = vec![uri("spiffe://other.example")])]
#[case("issuer-spiffe-id", |r: &mut Recipe| {
    r.intermediate.subject_alt_names = vec![uri("spiffe://cluster.local"), uri("spiffe://cluster.local")];
})]
#[case("extended-key-usage", |r: &mut Recipe| r.intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])]
#[case("critical-extension", |r: &mut Recipe| r.intermediate.custom_extensions.push(extension(UNHEARD_OF, true, &[5, 0])))]
#[case("duplicate-extension", |r: &mut Recipe| {
    r.intermediate.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0x03, 0x01, 0x01, 0xff]));
})]
#[case("path-length", |r: &mut Recipe| r.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))]
#[case("name-constraints", |r: &mut Recipe| {
    let excluded = vec![rcgen::GeneralSubtree::DnsName("shop.cluster.local".into())];
    r.intermediate.name_constraints = Some(NameConstraints { permitted_subtrees: vec![], excluded_subtrees: excluded });
})]
// Time.
#[case("expired", |r: &mut Recipe| valid(&mut r.leaf, -DAY, -1))]
#[case("not-yet-valid", |r: &mut Recipe| valid(&mut r.leaf, 1, DAY))]
#[case("expired", |r: &mut Recipe| valid(&mut r.intermediate, -DAY, -1))]
#[case("not-yet-valid", |r: &mut Recipe| valid(&mut r.intermediate, 1, DAY))]
#[case("expired", |r: &mut Recipe| valid(&mut r.root, -DAY, -1))]
#[case("not-yet-valid", |r: &mut Recipe| valid(&mut r.root, 1, DAY))]
#[case("malformed", |r: &mut Recipe| valid(&mut r.intermediate, DAY, -DAY))]
fn a_chain_that_breaks_one_rule_is_refused_for_it(#[case] label: &str, #[case] change: fn(&mut Recipe)) {
    let mut recipe = Recipe::good();
    change(&mut recipe);
    assert_eq!(cause(judge(&recipe)), label);
}

#[rstest]
#[case("no-certificate", |c: &mut Vec<CertificateDer<'static>>| c.clear())]
#[case("malformed", |c: &mut Vec<CertificateDer<'static>>| c[0] = b"garbage".to_vec().into())]
#[case("malformed", |c: &mut Vec<CertificateDer<'static>>| c[0] = Vec::new().into())]
#[case("malformed", |c: &mut Vec<CertificateDer<'static>>| c[0] = [&c[0][..], &[0]].concat().into())]
#[case("malformed", |c: &mut Vec<CertificateDer<'static>>| c[1] = [&c[1][..], &[0]].concat().into())]
#[case("malformed", |c: &mut Vec<CertificateDer<'static>>| c.push(vec![0x30; 20_000].into()))]
#[case("chain-too-long", |c: &mut Vec<CertificateDer<'static>>| c.extend(vec![c[1].clone(); 7]))]
#[case("unknown-authority", |c: &mut Vec<CertificateDer<'static>>| c.truncate(1))]
#[case("not-an-issuer", |c: &mut Vec<CertificateDer<'static>>| c[1] = c[0].clone())]
#[case("not-an-issuer", |c: &mut Vec<CertificateDer<'static>>| c.push(c[0].clone()))]
#[case("no-uri-san", |c: &mut Vec<CertificateDer<'static>>| c.reverse())]
#[case("bad-signature", |c: &mut Vec<CertificateDer<'static>>| flip_last_bit(&mut c[0]))]
#[case("bad-signature", |c: &mut Vec<CertificateDer<'static>>| flip_last_bit(&mut c[1]))]
fn a_chain_that_was_tampered_with_is_refused(
    #[case] label: &str,
    #[case] change: fn(&mut Vec<CertificateDer<'static>>),
) {
    let mut made = Recipe::good().make();
    let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
    change(&mut made.chain);
    assert_eq!(cause(verifier.verify(&made.chain)), label);
}

fn flip_last_bit(der: &mut CertificateDer<'static>) {
    let mut bytes = der.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    *der = bytes.into();
}

#[test]
fn a_chain_may_bring_its_root_and_may_be_signed_by_the_root_itself() {
    let mut made = Recipe::good().make();
    let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
    made.chain.push(made.root.clone());
    verifier.verify(&made.chain).unwrap();

    let (recipe, root_key, leaf_key) = (Recipe::good(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = recipe.root.self_signed(&root_key).unwrap();
    let leaf = recipe.leaf.signed_by(&leaf_key, &Issuer::from_params(&recipe.root, &root_key)).unwrap();
    let bundle = TrustBundle::new(trust_domain(TRUST_DOMAIN), 1, vec![root.into()]).unwrap();
    crate::test_certificates::verifier([bundle]).0.verify(&[leaf.into()]).unwrap();
}

#[test]
fn a_second_intermediate_below_one_that_allows_none_is_refused() {
    let mut recipe = Recipe::good();
    recipe.intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let made = recipe.make();
    let (second, key) = (ca("second"), KeyPair::generate().unwrap());
    let by_first = Issuer::from_params(&recipe.intermediate, &made.intermediate_key);
    let second_der = second.signed_by(&key, &by_first).unwrap();
    let leaf = recipe.leaf.signed_by(&made.leaf_key, &Issuer::from_params(&second, &key)).unwrap();
    let chain = [leaf.into(), second_der.into(), made.chain[1].clone()];
    let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
    assert_eq!(cause(verifier.verify(&chain)), "path-length");
}

#[test]
fn a_trust_domain_without_a_bundle_is_unknown() {
    let mut recipe = Recipe::good();
    recipe.leaf = leaf(&["spiffe://other.example/ns/shop/sa/web"]);
    assert_eq!(cause(judge(&recipe)), "unknown-trust-domain");
}

#[test]
fn no_trust_domain_vouches_for_another_even_if_both_are_trusted() {
    let (ours, theirs) = (Recipe::good().make(), Recipe::good().make());
    let mut named_apart = Recipe::good();
    named_apart.root = ca("their root");
    let foreign = named_apart.make();
    let (same_name, _) = verifier([ours.bundle(TRUST_DOMAIN), theirs.bundle("other.example")]);
    same_name.verify(&ours.chain).unwrap();
    // `theirs` says it is cluster.local/ns/shop/sa/web, but only other.example trusts its root.
    assert_eq!(cause(same_name.verify(&theirs.chain)), "bad-signature");
    let (other_name, _) = verifier([ours.bundle(TRUST_DOMAIN), foreign.bundle("other.example")]);
    assert_eq!(cause(other_name.verify(&foreign.chain)), "unknown-authority");
}

#[test]
fn of_two_roots_with_one_name_the_right_one_is_found() {
    let (old, new) = (Recipe::good().make(), Recipe::good().make());
    let roots = vec![old.root.clone(), new.root.clone()];
    let (verifier, _) = verifier([TrustBundle::new(trust_domain(TRUST_DOMAIN), 2, roots).unwrap()]);
    let (first, second) = (verifier.verify(&old.chain).unwrap(), verifier.verify(&new.chain).unwrap());
    assert_ne!(first.authority(), second.authority());
}

#[test]
fn an_expired_root_beside_its_reissue_for_the_same_key_does_no_harm() {
    let mut expired = Recipe::good();
    valid(&mut expired.root, -2 * DAY, -DAY);
    let key = KeyPair::generate().unwrap();
    let again = KeyPair::from_pem(&key.to_pem()).unwrap();
    let (old, new) = (expired.make_with_root_key(key), Recipe::good().make_with_root_key(again));
    let bundle = |roots| TrustBundle::new(trust_domain(TRUST_DOMAIN), 1, roots).unwrap();
    let (both, _) = verifier([bundle(vec![old.root.clone(), new.root.clone()])]);
    let peer = both.verify(&old.chain).unwrap();
    assert_eq!(peer.authority(), both.verify(&new.chain).unwrap().authority());
    let (alone, _) = verifier([bundle(vec![old.root.clone()])]);
    assert_eq!(cause(alone.verify(&old.chain)), "expired");
}

#[test]
fn validity_ends_with_its_last_second_also_for_a_chain_that_is_known() {
    let made = Recipe::good().make();
    let (verifier, hand) = verifier([made.bundle(TRUST_DOMAIN)]);
    let peer = verifier.verify(&made.chain).unwrap();
    hand.advance(Duration::from_secs(DAY as u64));
    verifier.verify(&made.chain).unwrap();
    verifier.check_still_valid(&peer).unwrap();
    hand.advance(Duration::from_secs(1));
    assert_eq!(cause(verifier.verify(&made.chain)), "expired");
    assert_eq!(verifier.check_still_valid(&peer).unwrap_err().cause, VerifyCause::Expired);
    hand.step_wall(-3 * DAY);
    assert_eq!(cause(verifier.verify(&made.chain)), "not-yet-valid");
    assert_eq!(verifier.check_still_valid(&peer).unwrap_err().cause, VerifyCause::NotYetValid);
}

#[test]
fn a_known_chain_is_judged_anew_when_its_bundle_changes() {
    let (made, other) = (Recipe::good().make(), Recipe::good().make());
    let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
    let peer = verifier.verify(&made.chain).unwrap();
    let replace = |bundles: TrustBundles| verifier.bundles().store(Arc::new(bundles));

    let both = vec![other.root.clone(), made.root.clone()];
    replace(TrustBundle::new(trust_domain(TRUST_DOMAIN), 2, both).unwrap().into());
    assert_eq!(verifier.verify(&made.chain).unwrap(), peer);
    verifier.check_still_valid(&peer).unwrap();

    replace(other.bundle(TRUST_DOMAIN).into());
    assert_eq!(cause(verifier.verify(&made.chain)), "bad-signature");
    assert_eq!(verifier.check_still_valid(&peer).unwrap_err().cause, VerifyCause::UnknownAuthority);

    replace(TrustBundles::default());
    assert_eq!(cause(verifier.verify(&made.chain)), "unknown-trust-domain");
    assert_eq!(verifier.check_still_valid(&peer).unwrap_err().cause, VerifyCause::UnknownTrustDomain);
}

#[test]
fn the_cache_is_bounded_and_keeps_what_is_used() {
    let made = Recipe::good().make();
    let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
    let peer = verifier.verify(&made.chain).unwrap();
    let bundle = made.bundle(TRUST_DOMAIN).digest();
    let mut cache = cache::Cache::default();
    cache.insert([0xff; 32], peer.clone(), bundle);
    for number in 0..3 * CAPACITY {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        cache.insert(digest, peer.clone(), bundle);
        assert!(cache.len() <= CAPACITY);
        assert!(cache.get(&[0xff; 32], |_| Some(bundle)).is_some());
    }
    assert!(cache.get(&[0; 32], |_| Some(bundle)).is_none());
    assert!(cache.get(&[0xff; 32], |_| Some([1; 32])).is_none());
    assert!(cache.get(&[0xff; 32], |_| Some(bundle)).is_none());
}

#[test]
fn a_peer_is_checked_against_who_was_expected() {
    let peer = judge(&Recipe::good()).unwrap();
    peer.expect(&WEB.parse().unwrap()).unwrap();
    let orders: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    let error = peer.expect(&orders).unwrap_err();
    assert_eq!(error.cause, VerifyCause::WrongIdentity);
    assert!(error.detail.contains("sa/orders") && error.detail.contains("sa/web"), "{error}");
}

#[test]
fn a_signature_outside_of_a_handshake_is_checked_with_the_leaf() {
    let made = Recipe::good().make();
    let leaf = &made.chain[0];
    let signature = made.leaf_key.sign(b"message").unwrap();
    let scheme = u16::from(KeyPair::SCHEME);
    verify_signature(leaf, scheme, b"message", &signature).unwrap();
    let cause = |result: Result<(), VerifyError>| result.unwrap_err().cause.as_str();
    assert_eq!(cause(verify_signature(leaf, scheme, b"messagf", &signature)), "bad-signature");
    assert_eq!(cause(verify_signature(leaf, scheme, b"message", &[])), "bad-signature");
    assert_eq!(cause(verify_signature(&made.chain[1], scheme, b"message", &signature)), "bad-signature");
    assert_eq!(cause(verify_signature(leaf, 0x0503, b"message", &signature)), "bad-signature");
    // RSA PKCS #1, SHA-1 and a number that means nothing: not in TLS 1.3.
    for refused in [0x0401, 0x0203, 0xffff] {
        assert_eq!(cause(verify_signature(leaf, refused, b"message", &signature)), "unsupported-algorithm");
    }
    assert_eq!(cause(verify_signature(&b"x".to_vec().into(), scheme, b"message", &signature)), "malformed");
}

#[test]
fn every_cause_has_a_label_of_its_own() {
    let labels: std::collections::BTreeSet<_> = VerifyCause::ALL.iter().map(|cause| cause.as_str()).collect();
    assert_eq!(labels.len(), VerifyCause::ALL.len());
    assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
}

#[test]
fn names_of_other_kinds_in_a_leaf_are_no_concern_of_ours() {
    let mut recipe = Recipe::good();
    recipe.leaf.subject_alt_names.push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
    recipe.leaf.subject_alt_names.push(SanType::Rfc822Name("a@example.org".try_into().unwrap()));
    judge(&recipe).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn one_changed_byte_anywhere_is_refused_without_a_panic(which in 0_usize..2, place: prop::sample::Index, change in 1_u8..) {
        thread_local! {
            static MADE: Made = Recipe::good().make();
        }
        MADE.with(|made| {
            let (verifier, _) = verifier([made.bundle(TRUST_DOMAIN)]);
            let mut chain = made.chain.clone();
            let mut bytes = chain[which].to_vec();
            let index = place.index(bytes.len());
            bytes[index] ^= change;
            chain[which] = bytes.into();
            prop_assert!(verifier.verify(&chain).is_err());
            Ok(())
        })?;
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(chain in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4)) {
        let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(Into::into).collect();
        prop_assert!(verifier([]).0.verify(&chain).is_err());
    }
}
