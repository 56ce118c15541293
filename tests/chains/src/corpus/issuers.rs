//! Who may issue: X.509-SVID sections 3.2, 4.1 and 4.3, RFC 5280 section 4.2.1.

use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints,
};

use super::{BASIC_CONSTRAINTS, Case, KEY_USAGE, Presented, UNHEARD_OF, changed, present, refused, with};
use crate::recipe::{DAY, Recipe, WEB, ca, extension, key, leaf, uri, valid};

pub(super) static CASES: &[Case] = &[
    refused("issuer-is-no-authority", "not-an-issuer", || with(|r| r.intermediate.is_ca = IsCa::ExplicitNoCa)),
    refused("issuer-without-basic-constraints", "not-an-issuer", || with(|r| r.intermediate.is_ca = IsCa::NoCa)),
    refused("issuer-basic-constraints-malformed", "malformed", || {
        with(|r| {
            r.intermediate.is_ca = IsCa::NoCa;
            r.intermediate.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, &[0x30, 0x03, 0x01, 0x01]));
        })
    }),
    refused("issuer-without-key-usage", "not-an-issuer", || with(|r| r.intermediate.key_usages.clear())),
    refused("issuer-may-sign-revocations-only", "not-an-issuer", || {
        with(|r| r.intermediate.key_usages = vec![KeyUsagePurpose::CrlSign])
    }),
    refused("issuer-key-usage-not-critical", "key-usage", || {
        with(|r| {
            r.intermediate.key_usages.clear();
            r.intermediate.custom_extensions.push(extension(KEY_USAGE, false, &[0x03, 0x02, 0x01, 0x06]));
        })
    }),
    refused("issuer-for-servers-only", "extended-key-usage", || {
        with(|r| r.intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }),
    refused("issuer-with-a-path", "issuer-spiffe-id", || with(|r| r.intermediate.subject_alt_names = vec![uri(WEB)])),
    refused("issuer-of-another-trust-domain", "issuer-spiffe-id", || {
        with(|r| r.intermediate.subject_alt_names = vec![uri("spiffe://other.example")])
    }),
    refused("issuer-with-two-uris", "issuer-spiffe-id", || {
        with(|r| r.intermediate.subject_alt_names = vec![uri("spiffe://cluster.local"), uri("spiffe://cluster.local")])
    }),
    refused("issuer-with-a-web-address", "issuer-spiffe-id", || {
        with(|r| r.intermediate.subject_alt_names = vec![uri("https://cluster.local")])
    }),
    refused("issuer-unknown-extension-critical", "critical-extension", || {
        with(|r| r.intermediate.custom_extensions.push(extension(UNHEARD_OF, true, &[5, 0])))
    }),
    refused("issuer-extension-twice", "duplicate-extension", || {
        let again = extension(BASIC_CONSTRAINTS, true, &[0x30, 0x03, 0x01, 0x01, 0xff]);
        with(|r| r.intermediate.custom_extensions.push(again))
    }),
    refused("root-allows-no-issuer-below-it", "path-length", || {
        with(|r| r.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)))
    }),
    refused("issuer-allows-no-issuer-below-it", "path-length", below_an_issuer_of_length_0),
    refused("name-excluded", "name-constraints", || {
        constrained(vec![], vec![GeneralSubtree::DnsName("shop.cluster.local".into())])
    }),
    refused("name-not-permitted", "name-constraints", || {
        constrained(vec![GeneralSubtree::DnsName("other.example".into())], vec![])
    }),
    refused("a-leaf-issues-a-leaf", "not-an-issuer", a_leaf_issues_a_leaf),
    refused("issuer-expired", "expired", || with(|r| valid(&mut r.intermediate, -DAY, -1))),
    refused("issuer-not-yet-valid", "not-yet-valid", || with(|r| valid(&mut r.intermediate, 1, DAY))),
    refused("issuer-ends-before-it-begins", "malformed", || with(|r| valid(&mut r.intermediate, DAY, -DAY))),
    refused("root-expired", "expired", || with(|r| valid(&mut r.root, -DAY, -1))),
    refused("root-not-yet-valid", "not-yet-valid", || with(|r| valid(&mut r.root, 1, DAY))),
    refused("issuer-missing", "unknown-authority", || changed(|p| p.chain.truncate(1))),
    refused("issuer-is-another", "unknown-authority", || {
        let mut other = Recipe::good();
        other.intermediate = ca("another intermediate");
        changed(|p| p.chain[1] = other.make().chain[1].clone())
    }),
];

fn constrained(permitted_subtrees: Vec<GeneralSubtree>, excluded_subtrees: Vec<GeneralSubtree>) -> Presented {
    with(|recipe| {
        recipe.intermediate.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees })
    })
}

fn below_an_issuer_of_length_0() -> Presented {
    let mut recipe = Recipe::good();
    recipe.intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let made = recipe.make();
    let (second, second_key) = (ca("second intermediate"), key());
    let below = second.signed_by(&second_key, &Issuer::from_params(&recipe.intermediate, &made.intermediate_key));
    let leaf = recipe.leaf.signed_by(&made.leaf_key, &Issuer::from_params(&second, &second_key));
    let chain = vec![leaf.unwrap().into(), below.unwrap().into(), made.chain[1].clone()];
    let mut presented = present(&recipe, made);
    presented.chain = chain;
    presented
}

/// A workload that signs a certificate for another one with the key of its own.
fn a_leaf_issues_a_leaf() -> Presented {
    let recipe = Recipe::good();
    let made = recipe.make();
    let victim = leaf(&["spiffe://cluster.local/ns/bank/sa/vault"]);
    let victim_key = key();
    let forged = victim.signed_by(&victim_key, &Issuer::from_params(&recipe.leaf, &made.leaf_key)).unwrap();
    let mut presented = present(&recipe, made);
    presented.chain.insert(0, forged.into());
    presented.key = victim_key;
    presented.id = "spiffe://cluster.local/ns/bank/sa/vault".to_owned();
    presented
}
