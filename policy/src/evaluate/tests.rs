#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use rstest::rstest;

use crate::testing::{IDS, at, from_id, from_namespace, id, in_audit, permissive, ports, rule};
use crate::*;

const NOW: u64 = 1_000;
const WEB: &str = IDS[0];
const ORDERS: &str = IDS[1];

fn mesh(policies: &Policies, caller: &str, port: u16) -> Decision {
    what_if(policies, &Question { caller: Caller::Mesh(&id(caller)), port, now: at(NOW) })
}

fn ingress(policies: &Policies, caller: &str, port: u16) -> Decision {
    what_if(policies, &Question { caller: Caller::Ingress(&id(caller)), port, now: at(NOW) })
}

fn plaintext(policies: &Policies, port: u16) -> Decision {
    what_if(policies, &Question { caller: Caller::Plaintext, port, now: at(NOW) })
}

fn authorization(rules: Vec<AuthorizationRule>) -> Policies {
    Policies { authorization: rules, ..Policies::default() }
}

fn allow_web() -> AuthorizationRule {
    rule("allow-web[0]", Action::Allow, vec![from_id(WEB)], ports(&[8080]))
}

fn outcome(decision: &Decision) -> (Reason, Option<&str>) {
    (decision.reason, decision.rule.as_deref())
}

#[test]
fn without_policies_the_mesh_gets_in_and_nobody_else_does() {
    let none = Policies::default();
    assert_eq!(outcome(&mesh(&none, WEB, 80)), (Reason::DefaultAllow, None));
    assert_eq!(outcome(&ingress(&none, WEB, 80)), (Reason::NoIngressRule, None));
    assert_eq!(outcome(&plaintext(&none, 80)), (Reason::PlaintextRefused, None));
}

#[test]
fn without_policies_nothing_leaves() {
    let request = EgressRequest { source: &id(WEB), destination: "203.0.113.9".parse().unwrap(), port: 443 };
    let decision = evaluate_egress(&Policies::default(), &request);
    assert!(!decision.allowed);
    assert_eq!(outcome(&decision), (Reason::EgressDefaultDeny, None));
    assert_eq!(authorize_egress(&Policies::default(), &request).unwrap_err(), decision);
}

#[test]
fn one_allow_rule_makes_the_workload_default_deny_on_every_port() {
    let policies = authorization(vec![allow_web()]);
    assert_eq!(outcome(&mesh(&policies, WEB, 8080)), (Reason::AllowRule, Some("allow-web[0]")));
    assert_eq!(outcome(&mesh(&policies, ORDERS, 8080)), (Reason::NoAllowRule, None));
    assert_eq!(outcome(&mesh(&policies, WEB, 9090)), (Reason::NoAllowRule, None));
}

#[test]
fn deny_beats_allow() {
    let deny = rule("deny[0]", Action::Deny, vec![from_namespace("shop")], Ports::ANY);
    let policies = authorization(vec![allow_web(), deny]);
    assert_eq!(outcome(&mesh(&policies, WEB, 8080)), (Reason::DenyRule, Some("deny[0]")));
}

#[test]
fn a_deny_rule_alone_leaves_everyone_else_in() {
    let policies = authorization(vec![rule("deny[0]", Action::Deny, vec![from_id(WEB)], Ports::ANY)]);
    assert!(!mesh(&policies, WEB, 80).allowed);
    assert_eq!(outcome(&mesh(&policies, ORDERS, 80)), (Reason::DefaultAllow, None));
}

#[test]
fn an_allow_rule_in_audit_does_not_make_the_workload_default_deny() {
    let policies = authorization(vec![in_audit(allow_web())]);
    let decision = mesh(&policies, ORDERS, 8080);
    assert_eq!(outcome(&decision), (Reason::DefaultAllow, None));
    assert_eq!(decision.audited, ["allow-web[0]".into()]);
    assert!(mesh(&policies, WEB, 8080).audited.is_empty());
}

#[test]
fn a_deny_rule_in_audit_is_reported_and_lets_in() {
    let deny = in_audit(rule("deny[0]", Action::Deny, vec![from_id(WEB)], Ports::ANY));
    let decision = mesh(&authorization(vec![allow_web(), deny]), WEB, 8080);
    assert_eq!(outcome(&decision), (Reason::AllowRule, Some("allow-web[0]")));
    assert_eq!(decision.audited, ["deny[0]".into()]);
}

#[test]
fn an_allow_rule_in_audit_that_would_let_in_is_reported_and_refuses() {
    let more = in_audit(rule("allow-orders[0]", Action::Allow, vec![from_id(ORDERS)], Ports::ANY));
    let decision = mesh(&authorization(vec![allow_web(), more]), ORDERS, 8080);
    assert_eq!(outcome(&decision), (Reason::NoAllowRule, None));
    assert_eq!(decision.audited, ["allow-orders[0]".into()]);
}

#[test]
fn the_mesh_can_be_default_deny() {
    let policies = Policies { authorization_default: DefaultAction::Deny, ..authorization(vec![]) };
    assert_eq!(outcome(&mesh(&policies, WEB, 80)), (Reason::DefaultDeny, None));
    let policies = Policies { authorization_default: DefaultAction::Deny, ..authorization(vec![allow_web()]) };
    assert!(mesh(&policies, WEB, 8080).allowed);
}

#[test]
fn every_field_of_a_match_must_hold() {
    let from = PeerMatch { service_account: Some("web".into()), ..from_namespace("shop") };
    let policies = authorization(vec![rule("a[0]", Action::Allow, vec![from], Ports::ANY)]);
    assert!(mesh(&policies, WEB, 80).allowed);
    assert!(!mesh(&policies, ORDERS, 80).allowed, "another service account");
    assert!(!mesh(&policies, IDS[2], 80).allowed, "another namespace");
}

#[rstest]
#[case("spiffe://cluster.local/ns/shop/*", WEB, true)]
#[case("spiffe://cluster.local/ns/shop/*", IDS[2], false)]
#[case("spiffe://cluster.local/ns/shop/*", IDS[3], false)]
#[case("spiffe://cluster.local/*", IDS[4], true)]
#[case(WEB, WEB, true)]
#[case(WEB, ORDERS, false)]
fn a_pattern_ends_at_a_slash(#[case] pattern: &str, #[case] caller: &str, #[case] matches: bool) {
    let policies = authorization(vec![rule("a[0]", Action::Allow, vec![from_id(pattern)], Ports::ANY)]);
    assert_eq!(mesh(&policies, caller, 80).allowed, matches);
}

#[test]
fn a_trust_domain_is_matched_as_a_whole() {
    let from = PeerMatch { trust_domain: Some("cluster.local".parse().unwrap()), ..PeerMatch::default() };
    let policies = authorization(vec![rule("a[0]", Action::Allow, vec![from], Ports::ANY)]);
    assert!(mesh(&policies, WEB, 80).allowed);
    assert!(!mesh(&policies, IDS[3], 80).allowed);
}

#[test]
fn an_identity_without_a_namespace_meets_a_deny_by_namespace_and_no_allow() {
    let policies = |action| authorization(vec![rule("a[0]", action, vec![from_namespace("shop")], Ports::ANY)]);
    assert_eq!(mesh(&policies(Action::Deny), IDS[4], 80).reason, Reason::DenyRule);
    assert_eq!(mesh(&policies(Action::Allow), IDS[4], 80).reason, Reason::NoAllowRule);
}

#[test]
fn a_match_that_asks_nothing_matches_a_deny_and_no_allow() {
    let policies = |action| authorization(vec![rule("a[0]", action, vec![PeerMatch::default()], Ports::ANY)]);
    assert!(!mesh(&policies(Action::Deny), WEB, 80).allowed);
    assert!(!mesh(&policies(Action::Allow), WEB, 80).allowed);
}

#[test]
fn plaintext_meets_a_deny_that_needs_an_identity_and_no_allow() {
    let open = |rules| Policies { mtls: vec![permissive("p", MtlsScope::Namespace, None)], ..authorization(rules) };
    assert_eq!(outcome(&plaintext(&open(vec![]), 80)), (Reason::Permissive, Some("p")));
    let deny = rule("deny[0]", Action::Deny, vec![from_id(WEB)], ports(&[80]));
    assert_eq!(outcome(&plaintext(&open(vec![deny.clone()]), 80)), (Reason::DenyRule, Some("deny[0]")));
    assert!(plaintext(&open(vec![deny]), 81).allowed);
    let anyone = rule("allow[0]", Action::Allow, vec![], Ports::ANY);
    assert_eq!(outcome(&plaintext(&open(vec![anyone]), 80)), (Reason::NoAllowRule, None));
}

#[test]
fn plaintext_is_refused_by_a_mesh_that_is_default_deny() {
    let mtls = vec![permissive("p", MtlsScope::Namespace, None)];
    let policies = Policies { mtls, authorization_default: DefaultAction::Deny, ..Policies::default() };
    assert_eq!(outcome(&plaintext(&policies, 80)), (Reason::DefaultDeny, None));
}

#[test]
fn a_client_outside_of_the_mesh_needs_an_ingress_rule_for_its_port() {
    let named = IngressRule { name: "in".into(), principals: vec![id(WEB)], ports: ports(&[8443]) };
    let anyone = rule("allow[0]", Action::Allow, vec![], Ports::ANY);
    let policies = Policies { ingress: vec![named], ..authorization(vec![anyone]) };
    assert_eq!(outcome(&ingress(&policies, WEB, 8443)), (Reason::IngressRule, Some("in")));
    assert_eq!(outcome(&ingress(&policies, WEB, 80)), (Reason::NoIngressRule, None));
    assert_eq!(outcome(&ingress(&policies, ORDERS, 8443)), (Reason::NoIngressRule, None));
}

#[test]
fn permissive_mode_and_audit_let_no_tls_client_in() {
    let anyone = in_audit(rule("allow[0]", Action::Allow, vec![], Ports::ANY));
    let policies = Policies { mtls: vec![permissive("p", MtlsScope::Namespace, None)], ..authorization(vec![anyone]) };
    let decision = ingress(&policies, WEB, 80);
    assert_eq!(outcome(&decision), (Reason::NoIngressRule, None));
    assert!(decision.audited.is_empty());
}

#[test]
fn deny_beats_an_ingress_rule() {
    let named = IngressRule { name: "in".into(), principals: vec![id(WEB)], ports: Ports::ANY };
    let deny = rule("deny[0]", Action::Deny, vec![from_id(WEB)], Ports::ANY);
    let policies = Policies { ingress: vec![named], ..authorization(vec![deny]) };
    assert_eq!(outcome(&ingress(&policies, WEB, 80)), (Reason::DenyRule, Some("deny[0]")));
}

#[test]
fn an_ingress_rule_is_nothing_to_a_mesh_peer() {
    let named = IngressRule { name: "in".into(), principals: vec![id(ORDERS)], ports: Ports::ANY };
    let policies = Policies { ingress: vec![named], ..authorization(vec![allow_web()]) };
    assert_eq!(outcome(&mesh(&policies, ORDERS, 8080)), (Reason::NoAllowRule, None));
}

#[rstest]
#[case::address_and_port_are_named("203.0.113.9", 443, IDS[0], true)]
#[case::another_address("203.0.114.9", 443, IDS[0], false)]
#[case::another_port("203.0.113.9", 80, IDS[0], false)]
#[case::another_service_account("203.0.113.9", 443, IDS[1], false)]
#[case::the_same_address_as_mapped_ipv6("::ffff:203.0.113.9", 443, IDS[0], true)]
#[case::an_ipv6_address_of_the_same_bits("::203.0.113.9", 443, IDS[0], false)]
#[case::a_named_ipv6_network("2001:db8::1", 443, IDS[0], true)]
#[case::a_workload_without_a_service_account("203.0.113.9", 443, IDS[4], false)]
fn what_leaves_is_what_an_egress_rule_names(
    #[case] destination: &str,
    #[case] port: u16,
    #[case] source: &str,
    #[case] allowed: bool,
) {
    let rule = EgressRule {
        name: "out[0]".into(),
        service_accounts: vec!["web".into()],
        cidrs: vec![parse_cidr("203.0.113.0/24").unwrap(), parse_cidr("2001:db8::/32").unwrap()],
        ports: ports(&[443]),
    };
    let policies = Policies { egress: vec![rule], ..Policies::default() };
    let request = EgressRequest { source: &id(source), destination: destination.parse().unwrap(), port };
    let decision = evaluate_egress(&policies, &request);
    assert_eq!(decision.allowed, allowed);
    assert_eq!(decision.rule.as_deref(), allowed.then_some("out[0]"));
}

#[test]
fn what_no_rule_names_leaves_where_the_mesh_lets_it() {
    let policies = Policies { egress_default: DefaultAction::Allow, ..Policies::default() };
    let request = EgressRequest { source: &id(WEB), destination: "203.0.113.9".parse().unwrap(), port: 443 };
    let proof = authorize_egress(&policies, &request).unwrap();
    assert_eq!(outcome(proof.decision()), (Reason::EgressDefaultAllow, None));
    assert_eq!((proof.destination(), proof.port()), (request.destination, 443));
}
