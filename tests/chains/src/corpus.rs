//! One chain for every rule. A case's name is also its row in `docs/certificates.md`.

mod good;
mod issuers;
mod leaf;
mod names;
mod whole;

use rcgen::KeyPair;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::recipe::{Made, Recipe};

/// A chain, and what has to be said of it at [`NOW`](crate::NOW).
pub struct Case {
    /// Words with dashes.
    pub name: &'static str,
    /// What must be said of it.
    pub judged: Judged,
    make: fn() -> Presented,
}

/// What must be said of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It proves the SPIFFE ID in its leaf.
    Good,
    /// The chain breaks a rule: the label of the cause.
    Refused(&'static str),
    /// The chain is good, and whoever shows it is not its owner: the cause that the handshake has.
    RefusedInHandshake(&'static str),
}

/// What a peer shows, and what it is to be judged by.
pub struct Presented {
    /// DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key that it signs handshakes with.
    pub key: KeyPair,
    /// Trust domains and their roots.
    pub bundles: Vec<(String, Vec<CertificateDer<'static>>)>,
    /// The SPIFFE ID of the leaf, where it has a good one.
    pub id: String,
}

impl Case {
    /// Makes the chain, with new keys.
    pub fn make(&self) -> Presented {
        (self.make)()
    }
}

impl Presented {
    /// The key as PKCS #8, DER.
    pub fn key_der(&self) -> PrivatePkcs8KeyDer<'static> {
        self.key.serialize_der().into()
    }
}

/// All chains.
pub fn corpus() -> impl Iterator<Item = &'static Case> {
    good().chain(bad())
}

/// Those that break no rule.
pub fn good() -> impl Iterator<Item = &'static Case> {
    good::CASES.iter()
}

/// Those that break exactly one rule.
pub fn bad() -> impl Iterator<Item = &'static Case> {
    names::CASES.iter().chain(leaf::CASES).chain(issuers::CASES).chain(whole::CASES)
}

pub(crate) const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
pub(crate) const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
pub(crate) const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
pub(crate) const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
pub(crate) const UNHEARD_OF: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];
/// BIT STRING: digitalSignature.
pub(crate) const DIGITAL_SIGNATURE: &[u8] = &[0x03, 0x02, 0x07, 0x80];

const fn accepted(name: &'static str, make: fn() -> Presented) -> Case {
    Case { name, judged: Judged::Good, make }
}

const fn refused(name: &'static str, cause: &'static str, make: fn() -> Presented) -> Case {
    Case { name, judged: Judged::Refused(cause), make }
}

/// The good recipe with one change.
fn with(change: impl FnOnce(&mut Recipe)) -> Presented {
    let mut recipe = Recipe::good();
    change(&mut recipe);
    present(&recipe, recipe.make())
}

/// The good chain with one change after it was signed.
fn changed(change: impl FnOnce(&mut Presented)) -> Presented {
    let mut presented = with(|_| {});
    change(&mut presented);
    presented
}

/// A leaf with this URI alone.
fn with_uri(name: &str) -> Presented {
    with(|recipe| recipe.leaf.subject_alt_names = vec![crate::uri(name)])
}

fn present(recipe: &Recipe, made: Made) -> Presented {
    let uri = recipe.leaf.subject_alt_names.iter().find_map(|name| match name {
        rcgen::SanType::URI(uri) => Some(uri.to_string()),
        _ => None,
    });
    Presented {
        chain: made.chain,
        key: made.leaf_key,
        bundles: vec![(recipe.trust_domain.clone(), vec![made.root])],
        id: uri.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_enough_chains_and_each_has_a_name_of_its_own() {
        let names: BTreeSet<_> = corpus().map(|case| case.name).collect();
        assert_eq!(names.len(), corpus().count());
        assert!(super::bad().count() >= 60 && super::good().count() >= 15, "{} names", names.len());
    }
}
