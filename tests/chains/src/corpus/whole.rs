//! The chain as a whole: its bytes, its signatures, its key and its time.

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

use super::{Case, Judged, Presented, changed, present, refused, with};
use crate::recipe::{DAY, Recipe, key, valid};

pub(super) static CASES: &[Case] = &[
    // Bytes.
    refused("no-certificate", "no-certificate", || changed(|p| p.chain.clear())),
    refused("certificate-of-no-bytes", "malformed", || changed(|p| replace(p, 0, &[]))),
    refused("garbage", "malformed", || changed(|p| replace(p, 0, b"garbage"))),
    refused("leaf-cut-short", "malformed", || {
        changed(|p| {
            let short = p.chain[0][..p.chain[0].len() - 1].to_vec();
            replace(p, 0, &short);
        })
    }),
    refused("leaf-with-a-trailing-byte", "malformed", || changed(|p| trail(p, 0))),
    refused("issuer-with-a-trailing-byte", "malformed", || changed(|p| trail(p, 1))),
    refused("an-issuer-is-garbage", "malformed", || changed(|p| p.chain.push(b"garbage".to_vec().into()))),
    refused("a-certificate-of-20000-bytes", "malformed", || changed(|p| p.chain.push(vec![0x30; 20_000].into()))),
    refused("nine-certificates", "chain-too-long", || changed(|p| p.chain.extend(vec![p.chain[1].clone(); 7]))),
    refused("two-signature-algorithms", "malformed", || changed(other_outer_algorithm)),
    // Order.
    refused("leaf-last", "no-uri-san", || changed(|p| p.chain.reverse())),
    refused("leaf-twice", "not-an-issuer", || changed(|p| p.chain.insert(1, p.chain[0].clone()))),
    // Signatures and keys.
    refused("leaf-signature-broken", "bad-signature", || changed(|p| flip(p, 0))),
    refused("issuer-signature-broken", "bad-signature", || changed(|p| flip(p, 1))),
    refused("leaf-signed-by-itself", "unknown-authority", || {
        changed(|p| p.chain = vec![Recipe::good().leaf.self_signed(&p.key).unwrap().into()])
    }),
    refused("signed-with-p521", "unsupported-algorithm", || {
        let recipe = Recipe::good();
        let (root_key, issuer_key) = (key(), KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap());
        let made = recipe.make_with_root_key(&root_key);
        let issuer = recipe.intermediate.signed_by(&issuer_key, &Issuer::from_params(&recipe.root, &root_key));
        let leaf = recipe.leaf.signed_by(&made.leaf_key, &Issuer::from_params(&recipe.intermediate, &issuer_key));
        let mut presented = present(&recipe, made);
        presented.chain = vec![leaf.unwrap().into(), issuer.unwrap().into()];
        presented
    }),
    Case {
        name: "key-of-another",
        judged: Judged::RefusedInHandshake("bad-signature"),
        make: || changed(|p| p.key = key()),
    },
    // Time.
    refused("leaf-expired", "expired", || with(|r| valid(&mut r.leaf, -DAY, -1))),
    refused("leaf-not-yet-valid", "not-yet-valid", || with(|r| valid(&mut r.leaf, 1, DAY))),
    refused("leaf-ends-before-it-begins", "expired", || with(|r| valid(&mut r.leaf, 600, -600))),
    refused("valid-only-under-a-root-that-has-expired", "expired", || {
        // The bundle has both: the expired one, which signed, and a valid one of the same name.
        let mut old = Recipe::good();
        valid(&mut old.root, -2 * DAY, -DAY);
        let mut presented = present(&old, old.make());
        presented.bundles[0].1.insert(0, Recipe::good().make().root);
        presented
    }),
];

fn replace(presented: &mut Presented, index: usize, bytes: &[u8]) {
    presented.chain[index] = bytes.to_vec().into();
}

fn trail(presented: &mut Presented, index: usize) {
    let bytes = [&presented.chain[index][..], &[0]].concat();
    replace(presented, index, &bytes);
}

fn flip(presented: &mut Presented, index: usize) {
    let mut bytes = presented.chain[index].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    presented.chain[index] = CertificateDer::from(bytes);
}

/// ecdsa-with-SHA384 outside, ecdsa-with-SHA256 inside: only what is inside is signed.
fn other_outer_algorithm(presented: &mut Presented) {
    const SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let mut bytes = presented.chain[0].to_vec();
    let outer = bytes.windows(SHA256.len()).rposition(|window| window == SHA256).unwrap();
    bytes[outer + SHA256.len() - 1] = 0x03;
    replace(presented, 0, &bytes);
}
