//! What the tests of this crate share: short ways to write rules, and generators of whole sets of policies.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use byrnie_identity::SpiffeId;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use crate::{
    Action, AuthorizationRule, Caller, DefaultAction, EgressRule, Enforcement, IngressRule, MtlsRule, MtlsScope,
    MtlsTerms, PeerMatch, Policies, Ports, parse_cidr,
};

pub(crate) const IDS: [&str; 5] = [
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/orders",
    "spiffe://cluster.local/ns/shopping/sa/web",
    "spiffe://elsewhere.example/ns/shop/sa/web",
    "spiffe://cluster.local/operator",
];
const PORTS: [u16; 3] = [80, 8080, 5432];

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(crate) fn ports(numbers: &[u16]) -> Ports {
    numbers.iter().map(|number| NonZeroU16::new(*number).unwrap()).collect()
}

pub(crate) fn from_id(text: &str) -> PeerMatch {
    PeerMatch { spiffe_id: Some(text.parse().unwrap()), ..PeerMatch::default() }
}

pub(crate) fn from_namespace(name: &str) -> PeerMatch {
    PeerMatch { namespace: Some(name.into()), ..PeerMatch::default() }
}

pub(crate) fn rule(name: &str, action: Action, from: Vec<PeerMatch>, ports: Ports) -> AuthorizationRule {
    AuthorizationRule { name: name.into(), action, enforcement: Enforcement::Enforce, from, ports }
}

pub(crate) fn in_audit(mut rule: AuthorizationRule) -> AuthorizationRule {
    rule.enforcement = Enforcement::Audit;
    rule
}

pub(crate) fn permissive(name: &str, scope: MtlsScope, until: Option<u64>) -> MtlsRule {
    MtlsRule { name: name.into(), scope, terms: MtlsTerms::Permissive { until: until.map(at) } }
}

pub(crate) fn strict(name: &str, scope: MtlsScope) -> MtlsRule {
    MtlsRule { name: name.into(), scope, terms: MtlsTerms::Strict }
}

/// A caller that owns its ID, so that a generator can make it.
#[derive(Clone, Debug)]
pub(crate) enum AnyCaller {
    Mesh(SpiffeId),
    Ingress(SpiffeId),
    Plaintext,
}

impl AnyCaller {
    pub(crate) fn as_caller(&self) -> Caller<'_> {
        match self {
            Self::Mesh(id) => Caller::Mesh(id),
            Self::Ingress(id) => Caller::Ingress(id),
            Self::Plaintext => Caller::Plaintext,
        }
    }
}

pub(crate) fn any_caller() -> impl Strategy<Value = AnyCaller> {
    prop_oneof![any_id().prop_map(AnyCaller::Mesh), any_id().prop_map(AnyCaller::Ingress), Just(AnyCaller::Plaintext),]
}

pub(crate) fn any_id() -> impl Strategy<Value = SpiffeId> {
    select(IDS.as_slice()).prop_map(id)
}

pub(crate) fn any_port() -> impl Strategy<Value = u16> {
    select(PORTS.as_slice())
}

pub(crate) fn any_time() -> impl Strategy<Value = SystemTime> {
    (1_u64..20).prop_map(at)
}

pub(crate) fn any_policies() -> impl Strategy<Value = Policies> {
    let rules = (
        vec(any_mtls_rule(), 0..4),
        vec(any_authorization_rule(), 0..5),
        vec(any_ingress_rule(), 0..3),
        vec(any_egress_rule(), 0..3),
    );
    (rules, any_default(), any_default()).prop_map(
        |((mtls, authorization, ingress, egress), authorization_default, egress_default)| Policies {
            mtls,
            authorization,
            ingress,
            egress,
            authorization_default,
            egress_default,
        },
    )
}

pub(crate) fn any_authorization_rule() -> impl Strategy<Value = AuthorizationRule> {
    let action = select(vec![Action::Allow, Action::Deny]);
    let enforcement = select(vec![Enforcement::Enforce, Enforcement::Audit]);
    (any_name(), action, enforcement, vec(any_peer_match(), 0..3), any_ports()).prop_map(
        |(name, action, enforcement, from, ports)| AuthorizationRule { name, action, enforcement, from, ports },
    )
}

fn any_name() -> impl Strategy<Value = Arc<str>> {
    (0_u8..100).prop_map(|number| format!("AuthorizationPolicy shop/rule-{number}[0]").into())
}

fn any_default() -> impl Strategy<Value = DefaultAction> {
    any::<bool>().prop_map(|allow| if allow { DefaultAction::Allow } else { DefaultAction::Deny })
}

fn any_ports() -> impl Strategy<Value = Ports> {
    vec(any_port(), 0..3).prop_map(|numbers| ports(&numbers))
}

fn any_mtls_rule() -> impl Strategy<Value = MtlsRule> {
    let scope = prop_oneof![
        Just(MtlsScope::Namespace),
        Just(MtlsScope::Workload),
        any_port().prop_map(|port| MtlsScope::Port(NonZeroU16::new(port).unwrap())),
    ];
    let terms =
        prop_oneof![Just(MtlsTerms::Strict), option::of(any_time()).prop_map(|until| MtlsTerms::Permissive { until })];
    (any_name(), scope, terms).prop_map(|(name, scope, terms)| MtlsRule { name, scope, terms })
}

fn any_peer_match() -> BoxedStrategy<PeerMatch> {
    let namespace = option::of(select(vec!["shop", "shopping"]));
    let account = option::of(select(vec!["web", "orders"]));
    let pattern =
        option::of(select(vec![IDS[0], IDS[3], "spiffe://cluster.local/ns/shop/*", "spiffe://cluster.local/*"]));
    let domain = option::of(select(vec!["cluster.local", "elsewhere.example"]));
    (namespace, account, pattern, domain)
        .prop_map(|(namespace, account, pattern, domain)| PeerMatch {
            namespace: namespace.map(Arc::from),
            service_account: account.map(Arc::from),
            spiffe_id: pattern.map(|text| text.parse().unwrap()),
            trust_domain: domain.map(|text| text.parse().unwrap()),
        })
        .prop_filter("a match asks for something", |from| *from != PeerMatch::default())
        .boxed()
}

fn any_ingress_rule() -> impl Strategy<Value = IngressRule> {
    (any_name(), vec(any_id(), 1..3), any_ports()).prop_map(|(name, principals, ports)| IngressRule {
        name,
        principals,
        ports,
    })
}

fn any_egress_rule() -> impl Strategy<Value = EgressRule> {
    let cidr = select(vec!["203.0.113.0/24", "198.51.100.7/32", "2001:db8::/32", "0.0.0.0/0", "::/0"]);
    let cidrs = vec(cidr.prop_map(|text| parse_cidr(text).unwrap()), 1..3);
    let accounts = vec(select(vec!["web", "orders"]).prop_map(Arc::from), 0..2);
    (any_name(), accounts, cidrs, any_ports()).prop_map(|(name, service_accounts, cidrs, ports)| EgressRule {
        name,
        service_accounts,
        cidrs,
        ports,
    })
}
