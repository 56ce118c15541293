#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use rstest::rstest;

use super::*;
use crate::test_certificates::{NOW, TRUST_DOMAIN, start, trust_domain};
use crate::time_format::system_time;
use crate::x509::{BasicConstraints, KeyUsage};
use crate::{KeyPair, ManualClock, Svid, SvidVerifier, TrustBundles, csr};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn authority() -> (CertificateAuthority, Clock, ManualClock) {
    let (clock, hand) = Clock::manual(start());
    (CertificateAuthority::create(trust_domain(TRUST_DOMAIN), &clock).unwrap(), clock, hand)
}

fn web() -> SpiffeId {
    SpiffeId::workload(&trust_domain(TRUST_DOMAIN), "shop", "web").unwrap()
}

fn issue(authority: &CertificateAuthority) -> Issued {
    authority.issue(&KeyPair::generate().unwrap().spki_der(), &web(), DAY).unwrap()
}

#[test]
fn a_certificate_for_a_client_outside_of_the_mesh_says_so_and_answers_for_no_workload() {
    let (authority, clock, _) = authority();
    let verifier = SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock);
    let spki = KeyPair::generate().unwrap().spki_der();
    let member = verifier.verify(&authority.issue(&spki, &web(), DAY).unwrap().chain).unwrap();
    let outside = verifier.verify(&authority.issue_outside(&spki, &web(), DAY).unwrap().chain).unwrap();
    assert!(!member.is_outside_mesh() && outside.is_outside_mesh());
    assert_eq!(member.id(), outside.id());
    member.expect(&web()).unwrap();
    let refused = outside.expect(&web()).unwrap_err();
    assert!(refused.detail.contains("outside of the mesh"), "{refused}");
}

#[test]
fn what_is_issued_verifies_and_says_exactly_what_an_svid_must() {
    let (authority, clock, _) = authority();
    let key = KeyPair::generate().unwrap();
    let spki = csr::public_key(&key.csr_der().unwrap()).unwrap();
    let issued = authority.issue(&spki, &web(), DAY).unwrap();
    let verifier = SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock);
    let peer = verifier.verify(&issued.chain).unwrap();
    assert_eq!((peer.id(), peer.serial()), (&web(), issued.serial.as_str()));
    assert_eq!((peer.not_before(), peer.not_after()), (issued.not_before, issued.not_after));
    assert_eq!(issued.not_before, start() - Duration::from_secs(600));
    assert_eq!(issued.not_after, start() + DAY);

    let leaf = crate::x509::parse(&issued.chain[0]).unwrap();
    assert_eq!(leaf.uris, [web().as_str()]);
    assert_eq!(leaf.dns_names, ["web.shop.cluster.local"]);
    assert_eq!(leaf.basic_constraints, Some(BasicConstraints { ca: false, path_length: None }));
    let usage = leaf.key_usage.unwrap();
    assert!(usage.critical && usage.has(KeyUsage::DIGITAL_SIGNATURE) && usage.only(KeyUsage::DIGITAL_SIGNATURE));
    assert!(leaf.extended_key_usage.is_some_and(|usage| usage.server && usage.client));
    assert_eq!(leaf.spki, spki);
    assert_eq!(leaf.issuer, issued.issuer);

    let svid = Svid::new(issued.chain, key).unwrap();
    assert_eq!((svid.serial(), svid.issuer()), (issued.serial.as_str(), issued.issuer.as_str()));
    assert_eq!((svid.not_before(), svid.not_after()), (issued.not_before, issued.not_after));
}

#[test]
fn every_certificate_has_a_serial_number_of_its_own() {
    let (authority, ..) = authority();
    let spki = KeyPair::generate().unwrap().spki_der();
    let serials: BTreeSet<_> = (0..50).map(|_| authority.issue(&spki, &web(), DAY).unwrap().serial).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.len() == 32));
}

#[rstest]
#[case("spiffe://other.example/ns/shop/sa/web")]
#[case("spiffe://cluster.local")]
#[case("spiffe://cluster.local/shop/web")]
#[case("spiffe://cluster.local/ns/shop/sa/web/admin")]
#[case("spiffe://cluster.local/ns/shop/sa/-")]
#[case("spiffe://cluster.local/ns/shop/sa/a..b")]
#[case("spiffe://cluster.local/ns/shop/sa/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")]
fn an_id_that_is_no_workload_of_ours_is_not_issued(#[case] id: &str) {
    let (authority, ..) = authority();
    let spki = KeyPair::generate().unwrap().spki_der();
    let error = authority.issue(&spki, &id.parse().unwrap(), DAY).unwrap_err();
    assert!(
        matches!(
            error,
            IssueError::ForeignTrustDomain { .. } | IssueError::NotAWorkload(_) | IssueError::DnsName { .. }
        ),
        "{error}"
    );
}

#[test]
fn lives_outside_the_limits_are_refused_unless_the_limits_allow_less() {
    let (authority, clock, _) = authority();
    let spki = KeyPair::generate().unwrap().spki_der();
    for seconds in [0, 3599, 7 * 24 * 3600 + 1, u64::MAX] {
        let refused = authority.issue(&spki, &web(), Duration::from_secs(seconds));
        assert!(matches!(refused, Err(IssueError::Ttl { .. })), "{seconds}");
    }
    for seconds in [3600, 7 * 24 * 3600] {
        authority.issue(&spki, &web(), Duration::from_secs(seconds)).unwrap();
    }
    let limits = IssueLimits::allow_shorter(Duration::from_secs(5));
    let short = CertificateAuthority::create_with(trust_domain(TRUST_DOMAIN), &clock, limits).unwrap();
    let issued = short.issue(&spki, &web(), Duration::from_secs(5)).unwrap();
    assert_eq!(issued.not_after, start() + Duration::from_secs(5));
    assert!(short.issue(&spki, &web(), Duration::from_secs(4)).is_err());
}

#[test]
fn only_a_p256_key_on_the_curve_that_is_not_the_issuers_is_certified() {
    let (authority, ..) = authority();
    let good = KeyPair::generate().unwrap().spki_der();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut off_curve = good.clone();
    off_curve[40] ^= 1;
    let issuers_own = authority.issuing.load().spki().to_vec();
    let trailing = [&good[..], &[0]].concat();
    for bad in [rcgen::PublicKeyData::subject_public_key_info(&p384), off_curve, issuers_own, trailing, Vec::new()] {
        assert!(matches!(authority.issue(&bad, &web(), DAY), Err(IssueError::PublicKey)));
    }
}

#[test]
fn the_intermediate_outlives_the_longest_leaf_twice_and_is_replaced_before_it_would_cut_one() {
    let (authority, clock, hand) = authority();
    let longest = authority.limits().longest;
    let first = issue(&authority);
    let intermediate = crate::x509::parse(&first.chain[1]).unwrap();
    assert_eq!(system_time(intermediate.not_after), start() + 2 * longest);
    assert!(system_time(intermediate.not_before) <= first.not_before);
    assert_eq!(intermediate.basic_constraints, Some(BasicConstraints { ca: true, path_length: Some(0) }));

    hand.advance(longest);
    assert!(!authority.maintain().unwrap());
    assert_eq!(issue(&authority).chain[1], first.chain[1]);
    hand.advance(Duration::from_secs(1));
    assert!(authority.maintain().unwrap());
    assert!(!authority.maintain().unwrap());
    let second = issue(&authority);
    assert_ne!(second.chain[1], first.chain[1]);
    assert_ne!(second.issuer, first.issuer);
    assert_eq!(second.not_before, clock.wall() - Duration::from_secs(600));
    // Who holds the first SVID is trusted until it ends.
    let verifier = SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock);
    verifier.verify(&second.chain).unwrap();
    hand.step_wall(-(longest.as_secs() as i64));
    verifier.verify(&first.chain).unwrap();
}

#[test]
fn issuing_replaces_an_intermediate_that_nobody_maintained() {
    let (authority, _, hand) = authority();
    let first = issue(&authority);
    hand.advance(authority.limits().longest * 5);
    let later = issue(&authority);
    assert_ne!(later.issuer, first.issuer);
}

#[test]
fn nothing_outlives_the_root_and_nothing_is_issued_after_it() {
    let (authority, _, hand) = authority();
    let root_end = system_time(authority.root.not_after());
    let to_end = root_end.duration_since(start()).unwrap();
    hand.advance(to_end - Duration::from_secs(3600));
    let last = issue(&authority);
    assert_eq!(last.not_after, root_end);
    assert_eq!(system_time(crate::x509::parse(&last.chain[1]).unwrap().not_after), root_end);
    // It ends with the root: making another would not help, and is not tried for every request.
    assert!(!authority.maintain().unwrap());
    hand.advance(Duration::from_secs(3601));
    let spki = KeyPair::generate().unwrap().spki_der();
    assert!(matches!(authority.issue(&spki, &web(), DAY), Err(IssueError::IssuerNotValid { .. })));
}

#[test]
fn a_clock_that_was_set_back_gets_an_intermediate_that_is_valid_then() {
    let (authority, clock, hand) = authority();
    hand.advance(authority.limits().longest * 2);
    issue(&authority);
    hand.step_wall(-(authority.limits().longest.as_secs() as i64));
    let issued = issue(&authority);
    let verifier = SvidVerifier::new(TrustBundles::from(authority.bundle()).shared(), clock);
    verifier.verify(&issued.chain).unwrap();
}

#[test]
fn no_leaf_begins_before_its_issuer() {
    let (authority, _, hand) = authority();
    let intermediate = crate::x509::parse(&issue(&authority).chain[1]).unwrap();
    hand.step_wall(-55 * 60);
    let issued = issue(&authority);
    assert_eq!(issued.not_before, system_time(intermediate.not_before));
    assert_eq!(issued.not_before, start() - Duration::from_secs(3600));
}

#[test]
fn an_authority_opened_again_is_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state/ca");
    let (clock, hand) = Clock::manual(start());
    let open = || CertificateAuthority::open_or_create(&dir, trust_domain(TRUST_DOMAIN), &clock).unwrap();
    let first = open();
    let issued = issue(&first);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
    let again = open();
    assert_eq!(again.bundle(), first.bundle());
    assert_eq!(issue(&again).chain[1], issued.chain[1]);
    let verifier = SvidVerifier::new(TrustBundles::from(again.bundle()).shared(), clock.clone());
    verifier.verify(&issue(&again).chain).unwrap();

    hand.advance(first.limits().longest + Duration::from_secs(1));
    assert!(again.maintain().unwrap());
    assert_eq!(issue(&open()).chain[1], issue(&again).chain[1]);
}

#[test]
fn longer_limits_at_the_next_start_bring_a_longer_intermediate() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::manual(start());
    let open = |limits| {
        CertificateAuthority::open_or_create_with(dir.path(), trust_domain(TRUST_DOMAIN), &clock, limits).unwrap()
    };
    let short = IssueLimits { shortest: Duration::from_secs(60), longest: Duration::from_secs(3600) };
    drop(open(short));
    let long = open(IssueLimits::default());
    let spki = KeyPair::generate().unwrap().spki_der();
    let issued = long.issue(&spki, &web(), 7 * DAY).unwrap();
    assert_eq!(issued.not_after, start() + 7 * DAY);
}

#[rstest]
#[case::garbage("root.pem", "garbage")]
#[case::empty("root.pem", "")]
#[case::garbage("issuer.pem", "garbage")]
#[case::a_key_without_its_certificate("issuer.pem", "key only")]
#[case::a_certificate_of_another_key("issuer.pem", "other key")]
#[case::an_intermediate_of_another_root("issuer.pem", "other authority")]
#[case::a_root_under_a_foreign_intermediate("root.pem", "other authority")]
fn a_damaged_file_is_named_and_never_replaced(#[case] name: &str, #[case] content: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::manual(start());
    let open = |dir: &Path| CertificateAuthority::open_or_create(dir, trust_domain(TRUST_DOMAIN), &clock);
    drop(open(dir.path()).unwrap());
    let good = fs::read_to_string(dir.path().join(name)).unwrap();
    let certificate = good.find("-----BEGIN CERTIFICATE").unwrap();
    let content = match content {
        "key only" => good[..certificate].to_owned(),
        "other key" => format!("{}{}", *KeyPair::generate().unwrap().to_pem(), &good[certificate..]),
        "other authority" => {
            let other = tempfile::tempdir().unwrap();
            drop(open(other.path()).unwrap());
            fs::read_to_string(other.path().join(name)).unwrap()
        }
        other => other.to_owned(),
    };
    // In place, so that the mode stays.
    fs::write(dir.path().join(name), &content).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(dir.path().to_str().unwrap()) && error.contains(".pem"), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), content);
}

#[test]
fn a_root_that_has_gone_is_not_replaced_under_its_intermediate() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::manual(start());
    let open = || CertificateAuthority::open_or_create(dir.path(), trust_domain(TRUST_DOMAIN), &clock);
    drop(open().unwrap());
    fs::remove_file(dir.path().join("root.pem")).unwrap();
    assert!(matches!(open(), Err(AuthorityError::RootMissing(_))));
    assert!(!dir.path().join("root.pem").exists());
}

#[test]
fn a_creation_that_was_cut_short_is_finished_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::manual(start());
    let open = || CertificateAuthority::open_or_create(dir.path(), trust_domain(TRUST_DOMAIN), &clock);
    let bundle = open().unwrap().bundle();
    fs::remove_file(dir.path().join("issuer.pem")).unwrap();
    let again = open().unwrap();
    assert_eq!(again.bundle(), bundle);
    issue(&again);
}

#[test]
fn the_directory_of_another_trust_domain_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::manual(start());
    drop(CertificateAuthority::open_or_create(dir.path(), trust_domain("other.example"), &clock).unwrap());
    let error = CertificateAuthority::open_or_create(dir.path(), trust_domain(TRUST_DOMAIN), &clock).unwrap_err();
    assert!(error.to_string().contains("spiffe://other.example"), "{error}");
}

#[test]
fn an_intermediate_that_can_not_be_written_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::manual(start());
    let state = dir.path().join("ca");
    let authority = CertificateAuthority::open_or_create(&state, trust_domain(TRUST_DOMAIN), &clock).unwrap();
    let first = issue(&authority);
    fs::remove_dir_all(&state).unwrap();
    hand.advance(authority.limits().longest + Duration::from_secs(1));
    assert!(matches!(authority.maintain(), Err(AuthorityError::File { .. })));
    assert_eq!(issue(&authority).issuer, first.issuer);
    // Until its own end, and not a second longer than it may vouch.
    hand.advance(authority.limits().longest - Duration::from_secs(100));
    assert_eq!(issue(&authority).not_after, start() + 2 * authority.limits().longest);
    hand.advance(Duration::from_secs(100));
    let spki = KeyPair::generate().unwrap().spki_der();
    assert!(matches!(authority.issue(&spki, &web(), DAY), Err(IssueError::IssuerNotValid { .. })));
}

#[test]
fn no_key_shows_in_what_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _hand) = Clock::manual(system_time(NOW));
    let authority = CertificateAuthority::open_or_create(dir.path(), trust_domain(TRUST_DOMAIN), &clock).unwrap();
    let shown = format!("{authority:?}");
    assert!(shown.contains("cluster.local") && !shown.contains("PRIVATE") && shown.len() < 300, "{shown}");
}

#[test]
fn instances_under_a_shared_root_have_intermediates_of_their_own_and_one_bundle() {
    let (clock, _) = Clock::manual(start());
    let root = RootPem::create(&trust_domain(TRUST_DOMAIN), &clock).unwrap();
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |dir: &tempfile::TempDir, root: &RootPem| {
        CertificateAuthority::open_under_root(
            &dir.path().join("ca"),
            trust_domain(TRUST_DOMAIN),
            root,
            &clock,
            IssueLimits::default(),
        )
    };
    let (first, second) = (open(&one, &root).unwrap(), open(&other, &root).unwrap());
    assert_eq!(first.bundle().to_pem(), second.bundle().to_pem());
    assert_ne!(issue(&first).issuer, issue(&second).issuer);
    let verifier = SvidVerifier::new(TrustBundles::from(first.bundle()).shared(), clock.clone());
    verifier.verify(&issue(&second).chain).unwrap();
    // The root's key is not in the directory, and the intermediate is found again.
    assert!(!one.path().join("ca").join(ROOT_FILE).exists());
    assert_eq!(issue(&open(&one, &root).unwrap()).issuer, issue(&first).issuer);
    // Another root: another intermediate.
    let next = RootPem::create(&trust_domain(TRUST_DOMAIN), &clock).unwrap();
    assert_ne!(issue(&open(&one, &next).unwrap()).issuer, issue(&first).issuer);
}

#[test]
fn a_shared_root_that_is_damaged_foreign_or_over_is_refused() {
    let (clock, hand) = Clock::manual(start());
    let root = RootPem::create(&trust_domain(TRUST_DOMAIN), &clock).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = |root: &RootPem, named: &str| {
        CertificateAuthority::open_under_root(dir.path(), trust_domain(named), root, &clock, IssueLimits::default())
    };
    let foreign = open(&root, "another.example").unwrap_err();
    assert!(matches!(foreign, AuthorityError::Bundle(_)), "{foreign}");
    let other = RootPem::create(&trust_domain(TRUST_DOMAIN), &clock).unwrap();
    let mixed = RootPem { certificate: other.certificate, key: root.key.clone() };
    assert!(open(&mixed, TRUST_DOMAIN).unwrap_err().to_string().contains("another private key"));
    let empty = RootPem { certificate: String::new(), key: root.key.clone() };
    assert!(open(&empty, TRUST_DOMAIN).is_err());
    hand.advance(DAY * 366 * 11);
    let over = open(&root, TRUST_DOMAIN).unwrap_err();
    assert!(matches!(over, AuthorityError::RootNotValid { .. }), "{over}");
}
