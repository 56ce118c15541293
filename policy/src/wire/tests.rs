#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use byrnie_proto::mesh::v1 as proto;

use crate::{Policies, PolicyError};

/// One rule of each kind, all of them well formed.
fn good() -> proto::Policies {
    proto::Policies {
        mtls: vec![proto::MtlsRule {
            name: "MtlsPolicy shop/p".into(),
            rank: proto::MtlsRank::Port.into(),
            port: 80,
            mode: proto::MtlsMode::Permissive.into(),
            until: 1_900_000_000,
        }],
        authorization: vec![proto::AuthorizationRule {
            name: "AuthorizationPolicy shop/a[0]".into(),
            action: proto::Action::Allow.into(),
            enforcement: proto::Enforcement::Enforce.into(),
            from: vec![proto::PeerMatch {
                namespace: "shop".into(),
                service_account: "web".into(),
                spiffe_id: "spiffe://cluster.local/ns/shop/*".into(),
                trust_domain: "cluster.local".into(),
            }],
            ports: vec![1, 65_535],
        }],
        ingress: vec![proto::IngressRule {
            name: "IngressPolicy shop/i".into(),
            principals: vec!["spiffe://cluster.local/ns/ingress/sa/nginx".into()],
            ports: vec![],
        }],
        egress: vec![proto::EgressRule {
            name: "EgressPolicy shop/e[0]".into(),
            service_accounts: vec!["web".into()],
            cidrs: vec!["203.0.113.0/24".into()],
            ports: vec![443],
        }],
        authorization_default: proto::DefaultAction::Allow.into(),
        egress_default: proto::DefaultAction::Deny.into(),
    }
}

fn refusal(spoil: impl Fn(&mut proto::Policies)) -> PolicyError {
    let mut message = good();
    spoil(&mut message);
    Policies::try_from(message).unwrap_err()
}

#[test]
fn a_well_formed_set_is_taken_and_sent_unchanged() {
    let policies = Policies::try_from(good()).unwrap();
    assert_eq!(proto::Policies::from(policies), good());
}

#[test]
fn an_empty_message_is_refused_for_it_says_no_default() {
    assert_eq!(Policies::try_from(proto::Policies::default()).unwrap_err().place, "authorization_default");
}

#[test]
fn one_malformed_field_refuses_the_whole_and_is_named() {
    for (place, spoil) in SPOILT {
        assert_eq!(refusal(spoil).place, *place);
    }
}

#[test]
fn a_refusal_says_what_was_expected_and_what_was_found() {
    let error = refusal(|message| message.egress[0].cidrs[0] = "example.com".into());
    assert_eq!(
        error.to_string(),
        "egress[0] (EgressPolicy shop/e[0]).cidrs[0]: expected a network such as 203.0.113.0/24 or 2001:db8::/32, \
         found `example.com`; nothing of this set of policies is applied"
    );
}

#[test]
fn a_long_value_is_cut_in_the_message() {
    let error = refusal(|message| message.egress[0].cidrs[0] = "\u{7}x".repeat(100_000));
    assert!(error.to_string().len() < 1_000);
}

/// The place that a refusal names, and what brings it about.
type Spoil = (&'static str, fn(&mut proto::Policies));

const SPOILT: &[Spoil] = &[
    ("authorization_default", |m| m.authorization_default = 0),
    ("authorization_default", |m| m.authorization_default = 3),
    ("egress_default", |m| m.egress_default = 0),
    ("egress_default", |m| m.egress_default = -1),
    ("mtls[0].name", |m| m.mtls[0].name.clear()),
    ("mtls[0] (MtlsPolicy shop/p).rank", |m| m.mtls[0].rank = 0),
    ("mtls[0] (MtlsPolicy shop/p).rank", |m| m.mtls[0].rank = 9),
    ("mtls[0] (MtlsPolicy shop/p).port", |m| m.mtls[0].port = 0),
    ("mtls[0] (MtlsPolicy shop/p).port", |m| m.mtls[0].port = 65_536),
    ("mtls[0] (MtlsPolicy shop/p).port", |m| m.mtls[0].rank = 1),
    ("mtls[0] (MtlsPolicy shop/p).mode", |m| m.mtls[0].mode = 0),
    ("mtls[0] (MtlsPolicy shop/p).mode", |m| m.mtls[0].mode = 3),
    ("mtls[0] (MtlsPolicy shop/p).until", |m| m.mtls[0].until = -1),
    ("mtls[0] (MtlsPolicy shop/p).until", |m| m.mtls[0].mode = 1),
    ("authorization[0].name", |m| m.authorization[0].name.clear()),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).action", |m| m.authorization[0].action = 0),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).enforcement", |m| m.authorization[0].enforcement = 0),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).ports[1]", |m| m.authorization[0].ports[1] = 0),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).ports[0]", |m| m.authorization[0].ports[0] = u32::MAX),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).from[0]", |m| {
        m.authorization[0].from[0] = proto::PeerMatch::default()
    }),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).from[0].spiffe_id", |m| {
        m.authorization[0].from[0].spiffe_id = "*".into()
    }),
    ("authorization[0] (AuthorizationPolicy shop/a[0]).from[0].trust_domain", |m| {
        m.authorization[0].from[0].trust_domain = "A B".into()
    }),
    ("ingress[0].name", |m| m.ingress[0].name.clear()),
    ("ingress[0] (IngressPolicy shop/i).principals", |m| m.ingress[0].principals.clear()),
    ("ingress[0] (IngressPolicy shop/i).principals[0]", |m| {
        m.ingress[0].principals[0] = "spiffe://cluster.local/*".into()
    }),
    ("ingress[0] (IngressPolicy shop/i).ports[0]", |m| m.ingress[0].ports.push(0)),
    ("egress[0].name", |m| m.egress[0].name.clear()),
    ("egress[0] (EgressPolicy shop/e[0]).cidrs", |m| m.egress[0].cidrs.clear()),
    ("egress[0] (EgressPolicy shop/e[0]).cidrs[0]", |m| m.egress[0].cidrs[0] = "203.0.113.9/24".into()),
    ("egress[0] (EgressPolicy shop/e[0]).service_accounts[0]", |m| m.egress[0].service_accounts[0].clear()),
    ("egress[0] (EgressPolicy shop/e[0]).ports[0]", |m| m.egress[0].ports[0] = 70_000),
];
