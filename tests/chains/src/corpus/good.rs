//! Chains within the standards, as Byrnie, SPIRE and others make them.

use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rcgen::{NameConstraints, SanType};

use super::{
    BASIC_CONSTRAINTS, Case, Presented, SUBJECT_ALT_NAME, UNHEARD_OF, accepted, changed, present, with, with_uri,
};
use crate::recipe::{DAY, Recipe, WEB, ca, extension, key, uri, valid};

pub(super) static CASES: &[Case] = &[
    accepted("as-byrnie-issues", || with(|_| {})),
    accepted("as-spire-issues", || {
        with(|r| r.leaf.key_usages.extend([KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement]))
    }),
    accepted("without-extended-key-usage", || with(|r| r.leaf.extended_key_usages.clear())),
    accepted("with-one-more-purpose", || {
        with(|r| r.leaf.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection))
    }),
    accepted("without-a-dns-name", || with(|r| r.leaf.subject_alt_names.truncate(1))),
    accepted("with-names-of-other-kinds", || {
        with(|r| {
            r.leaf.subject_alt_names.push(SanType::IpAddress("10.0.0.1".parse().unwrap()));
            r.leaf.subject_alt_names.push(SanType::Rfc822Name("a@example.org".try_into().unwrap()));
        })
    }),
    accepted("with-critical-names", critical_names),
    accepted("basic-constraints-not-critical", || {
        with(|r| {
            r.leaf.is_ca = IsCa::NoCa;
            r.leaf.custom_extensions.push(extension(BASIC_CONSTRAINTS, false, &[0x30, 0]));
        })
    }),
    accepted("unknown-extension-not-critical", || {
        with(|r| r.leaf.custom_extensions.push(extension(UNHEARD_OF, false, &[5, 0])))
    }),
    accepted("issuers-bear-the-trust-domain", || {
        with(|r| {
            r.root.subject_alt_names = vec![uri("spiffe://cluster.local")];
            r.intermediate.subject_alt_names = vec![uri("spiffe://cluster.local")];
        })
    }),
    accepted("path-lengths-just-enough", || {
        with(|r| {
            r.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
            r.intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        })
    }),
    accepted("name-permitted", || {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("shop.cluster.local".into())];
        let constraints = NameConstraints { permitted_subtrees, excluded_subtrees: vec![] };
        with(|r| r.intermediate.name_constraints = Some(constraints))
    }),
    accepted("root-in-the-chain", || {
        changed(|p| {
            let root = p.bundles[0].1[0].clone();
            p.chain.push(root);
        })
    }),
    accepted("signed-by-the-root", signed_by_the_root),
    accepted("three-issuers", three_issuers),
    accepted("an-issuer-too-many", || changed(|p| p.chain.push(Recipe::good().make().chain[1].clone()))),
    accepted("issuers-in-another-order", || {
        let mut presented = three_issuers();
        presented.chain[1..].reverse();
        presented
    }),
    accepted("two-roots-of-one-name", || changed(|p| p.bundles[0].1.insert(0, Recipe::good().make().root))),
    accepted("leaf-key-p384", || leaf_key(&rcgen::PKCS_ECDSA_P384_SHA384)),
    accepted("leaf-key-ed25519", || leaf_key(&rcgen::PKCS_ED25519)),
    accepted("first-second", || with(|r| valid(&mut r.leaf, 0, DAY))),
    accepted("last-second", || with(|r| valid(&mut r.leaf, -DAY, 0))),
    accepted("path-of-one-segment", || with_uri("spiffe://cluster.local/9eebccd2-12bf-40a6-b262-65fe0487d453")),
    accepted("path-with-every-character", || {
        with_uri("spiffe://cluster.local/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/0123456789.-_")
    }),
    accepted("path-with-three-dots", || with_uri("spiffe://cluster.local/.../a..b/.c")),
    accepted("spiffe-id-2048-bytes", || {
        let begin = "spiffe://cluster.local/";
        with_uri(&format!("{begin}{}", "p".repeat(2048 - begin.len())))
    }),
    accepted("trust-domain-with-every-character", || in_trust_domain("abcdefghijklmnopqrstuvwxyz.0123456789-_")),
    accepted("trust-domain-255-bytes", || in_trust_domain(&"a".repeat(255))),
];

fn in_trust_domain(name: &str) -> Presented {
    with(|recipe| {
        name.clone_into(&mut recipe.trust_domain);
        recipe.leaf.subject_alt_names = vec![uri(&format!("spiffe://{name}/ns/shop/sa/web"))];
    })
}

/// The same URI in an extension that is written by hand, because rcgen's is never critical.
fn critical_names() -> Presented {
    let length = u8::try_from(WEB.len()).unwrap();
    let value = [&[0x30, length + 2, 0x86, length], WEB.as_bytes()].concat();
    let mut presented = with(|recipe| {
        recipe.leaf.subject_alt_names.clear();
        recipe.leaf.custom_extensions.push(extension(SUBJECT_ALT_NAME, true, &value));
    });
    WEB.clone_into(&mut presented.id);
    presented
}

fn signed_by_the_root() -> Presented {
    let (recipe, root_key) = (Recipe::good(), key());
    let made = recipe.make_with_root_key(&root_key);
    let leaf = recipe.leaf.signed_by(&made.leaf_key, &Issuer::from_params(&recipe.root, &root_key)).unwrap();
    let mut presented = present(&recipe, made);
    presented.chain = vec![leaf.into()];
    presented
}

fn three_issuers() -> Presented {
    let recipe = Recipe::good();
    let made = recipe.make();
    let (second, second_key, third, third_key) = (ca("second intermediate"), key(), ca("third intermediate"), key());
    let second_der =
        second.signed_by(&second_key, &Issuer::from_params(&recipe.intermediate, &made.intermediate_key)).unwrap();
    let third_der = third.signed_by(&third_key, &Issuer::from_params(&second, &second_key)).unwrap();
    let leaf = recipe.leaf.signed_by(&made.leaf_key, &Issuer::from_params(&third, &third_key)).unwrap();
    let chain = vec![leaf.into(), third_der.into(), second_der.into(), made.chain[1].clone()];
    let mut presented = present(&recipe, made);
    presented.chain = chain;
    presented
}

fn leaf_key(algorithm: &'static rcgen::SignatureAlgorithm) -> Presented {
    let recipe = Recipe::good();
    let made = recipe.make();
    let leaf_key = KeyPair::generate_for(algorithm).unwrap();
    let by_intermediate = Issuer::from_params(&recipe.intermediate, &made.intermediate_key);
    let leaf = recipe.leaf.signed_by(&leaf_key, &by_intermediate).unwrap();
    let mut presented = present(&recipe, made);
    presented.chain[0] = leaf.into();
    presented.key = leaf_key;
    presented
}
