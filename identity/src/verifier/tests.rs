#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::cache::CAPACITY;
use super::*;
use crate::test_certificates::*;
use crate::{KeyPair, SpiffeId, TrustBundle, TrustBundles};

fn judge(recipe: &Recipe) -> Result<PeerIdentity, VerifyError> {
    let made = recipe.make();
    let (verifier, _) = verifier([made.bundle(&recipe.trust_domain)]);
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

#[test]
fn every_chain_of_the_corpus_is_judged_by_its_rule() {
    let wrong: Vec<String> = corpus().filter_map(misjudged).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn misjudged(case: &Case) -> Option<String> {
    let presented = case.make();
    let found = match judge_of(&presented).verify(&presented.chain) {
        Ok(peer) => peer.id().to_string(),
        Err(error) => error.cause.to_string(),
    };
    let expected = match case.judged {
        Judged::Good | Judged::RefusedInHandshake(_) => presented.id.as_str(),
        Judged::Refused(cause) => cause,
    };
    (found != expected).then(|| format!("{}: expected {expected}, found {found}", case.name))
}

#[test]
fn the_corpus_has_a_chain_for_every_cause_that_a_chain_can_have() {
    let seen: std::collections::BTreeSet<_> = bad()
        .filter_map(|case| match case.judged {
            Judged::Refused(cause) | Judged::RefusedInHandshake(cause) => Some(cause),
            Judged::Good => None,
        })
        .collect();
    let missing: Vec<_> =
        VerifyCause::ALL.into_iter().map(VerifyCause::as_str).filter(|cause| !seen.contains(cause)).collect();
    // Those two are about who was expected, and not about the chain.
    assert_eq!(missing, ["wrong-identity", "wrong-name"]);
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
    let key = rcgen::KeyPair::generate().unwrap();
    let (old, new) = (expired.make_with_root_key(&key), Recipe::good().make_with_root_key(&key));
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
    let signature = made.key().sign(b"message").unwrap();
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
