//! What the chains of `byrnie_chains` need in this crate: a verifier, bundles and keys of ours.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use byrnie_chains::{
    Case, DAY, Judged, Made, NOW, Presented, Recipe, TRUST_DOMAIN, WEB, bad, ca, corpus, extension, leaf, uri, valid,
};

use crate::{Clock, KeyPair, ManualClock, SvidVerifier, TrustBundle, TrustBundles, TrustDomain};

pub(crate) fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) fn trust_domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// A verifier that trusts `bundles`, and the hand of its clock, which stands at [`NOW`].
pub(crate) fn verifier(bundles: impl IntoIterator<Item = TrustBundle>) -> (Arc<SvidVerifier>, ManualClock) {
    let (clock, hand) = Clock::manual(start());
    (SvidVerifier::new(bundles.into_iter().collect::<TrustBundles>().shared(), clock), hand)
}

/// A verifier that trusts what a case of the corpus is to be judged by.
pub(crate) fn judge_of(presented: &Presented) -> Arc<SvidVerifier> {
    let bundle = |(name, roots): &(String, Vec<_>)| TrustBundle::new(trust_domain(name), 1, roots.clone()).unwrap();
    verifier(presented.bundles.iter().map(bundle)).0
}

/// A chain of tests in the types of this crate.
pub(crate) trait Ours {
    /// The bundle of its root.
    fn bundle(&self, name: &str) -> TrustBundle;
    /// The leaf's key.
    fn key(&self) -> KeyPair;
}

impl Ours for Made {
    fn bundle(&self, name: &str) -> TrustBundle {
        TrustBundle::new(trust_domain(name), 1, vec![self.root.clone()]).unwrap()
    }

    fn key(&self) -> KeyPair {
        KeyPair::from_pem(&self.leaf_key.serialize_pem()).unwrap()
    }
}
