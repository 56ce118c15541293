//! Decisions about peers whose certificates were really verified.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::{Duration, SystemTime};

use byrnie_identity::authority::CertificateAuthority;
use byrnie_identity::{Clock, KeyPair, PeerIdentity, SvidVerifier, TrustBundles};

use crate::testing::{IDS, at, from_id, id, permissive, rule};
use crate::*;

const NOW: u64 = 1_800_000_000;
const TTL: Duration = Duration::from_secs(3_600);
const WEB: &str = IDS[0];

/// A peer whose certificate was issued at `NOW` for `TTL`, and verified then.
fn verified(caller: &str) -> PeerIdentity {
    let (clock, _) = Clock::manual(at(NOW));
    let caller = id(caller);
    let authority = CertificateAuthority::create(caller.trust_domain().clone(), &clock).unwrap();
    let issued = authority.issue(&KeyPair::generate().unwrap().spki_der(), &caller, TTL).unwrap();
    let mut bundles = TrustBundles::default();
    bundles.insert(authority.bundle());
    SvidVerifier::new(bundles.shared(), clock).verify(&issued.chain).unwrap()
}

/// The same certificate for a client outside of the mesh.
fn verified_outside(caller: &str) -> PeerIdentity {
    let (clock, _) = Clock::manual(at(NOW));
    let caller = id(caller);
    let authority = CertificateAuthority::create(caller.trust_domain().clone(), &clock).unwrap();
    let issued = authority.issue_outside(&KeyPair::generate().unwrap().spki_der(), &caller, TTL).unwrap();
    let mut bundles = TrustBundles::default();
    bundles.insert(authority.bundle());
    SvidVerifier::new(bundles.shared(), clock).verify(&issued.chain).unwrap()
}

fn request(peer: Peer<'_>, port: u16, now: SystemTime) -> Request<'_> {
    Request { peer, port, now }
}

#[test]
fn a_peer_that_is_allowed_gets_a_proof_for_that_port_only() {
    let peer = verified(WEB);
    let policies = Policies {
        authorization: vec![rule("allow[0]", Action::Allow, vec![from_id(WEB)], Ports::ANY)],
        ..Policies::default()
    };
    let proof = authorize(&policies, &request(Peer::Mesh(&peer), 8080, at(NOW))).unwrap();
    assert_eq!(proof.port(), 8080);
    assert_eq!(proof.decision().rule.as_deref(), Some("allow[0]"));
}

#[test]
fn a_peer_that_is_refused_gets_the_decision_and_no_proof() {
    let peer = verified(IDS[1]);
    let policies = Policies {
        authorization: vec![rule("allow[0]", Action::Allow, vec![from_id(WEB)], Ports::ANY)],
        ..Policies::default()
    };
    let request = request(Peer::Mesh(&peer), 8080, at(NOW));
    let decision = authorize(&policies, &request).unwrap_err();
    assert_eq!(decision.reason, Reason::NoAllowRule);
    assert_eq!(decision, evaluate(&policies, &request));
}

#[test]
fn a_peer_whose_certificate_has_ended_is_refused_whatever_the_rules_say() {
    let peer = verified(WEB);
    let policies = Policies {
        ingress: vec![IngressRule { name: "in".into(), principals: vec![id(WEB)], ports: Ports::ANY }],
        ..Policies::default()
    };
    for peer in [Peer::Mesh(&peer), Peer::Ingress(&peer)] {
        assert!(evaluate(&policies, &request(peer, 80, at(NOW))).allowed);
        let late = request(peer, 80, at(NOW) + TTL + Duration::from_secs(1));
        assert_eq!(authorize(&policies, &late).unwrap_err().reason, Reason::PeerExpired);
    }
}

#[test]
fn the_same_identity_is_in_the_mesh_only_through_a_tunnel() {
    let peer = verified(WEB);
    let policies = Policies::default();
    assert!(evaluate(&policies, &request(Peer::Mesh(&peer), 80, at(NOW))).allowed);
    assert_eq!(evaluate(&policies, &request(Peer::Ingress(&peer), 80, at(NOW))).reason, Reason::NoIngressRule);
}

#[test]
fn plaintext_is_judged_without_an_identity() {
    let open = Policies { mtls: vec![permissive("p", MtlsScope::Namespace, Some(NOW + 1))], ..Policies::default() };
    let peer = Peer::Plaintext("10.0.0.7".parse().unwrap());
    assert_eq!(evaluate(&open, &request(peer, 80, at(NOW))).reason, Reason::Permissive);
    assert_eq!(evaluate(&open, &request(peer, 80, at(NOW + 1))).reason, Reason::PlaintextRefused);
}

#[test]
fn a_client_outside_of_the_mesh_that_speaks_like_a_proxy_gets_what_ingress_policies_give() {
    let peer = verified_outside(WEB);
    let allow = rule("allow[0]", Action::Allow, vec![from_id(WEB)], Ports::ANY);
    let mut policies = Policies { authorization: vec![allow], ..Policies::default() };
    let request = request(Peer::Mesh(&peer), 8080, at(NOW));
    assert_eq!(authorize(&Policies::default(), &request).unwrap_err().reason, Reason::NoIngressRule);
    assert_eq!(authorize(&policies, &request).unwrap_err().reason, Reason::NoIngressRule);
    policies.ingress = vec![IngressRule { name: "in".into(), principals: vec![id(WEB)], ports: Ports::ANY }];
    assert_eq!(authorize(&policies, &request).unwrap().decision().reason, Reason::IngressRule);
}
