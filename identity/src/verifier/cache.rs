//! Chains that were verified, by the SHA-256 of all of their bytes.
//!
//! Two generations of half the bound each: what is used stays, what is not falls out with the older generation, and
//! neither a lookup nor an insertion ever walks the whole.

use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::CertificateDer;

use super::PeerIdentity;
use crate::x509::digest_array;

#[derive(Default)]
pub(super) struct Cache {
    young: HashMap<[u8; 32], Entry>,
    old: HashMap<[u8; 32], Entry>,
}

impl Cache {
    /// The identity of the chain with this digest, if it was verified with the bundle whose digest `current` tells
    /// now; else it is forgotten.
    pub(super) fn get(
        &mut self,
        chain: &[u8; 32],
        current: impl Fn(&PeerIdentity) -> Option<[u8; 32]>,
    ) -> Option<PeerIdentity> {
        let known = self.young.get(chain).or_else(|| self.old.get(chain))?;
        if current(&known.identity) != Some(known.bundle) {
            self.young.remove(chain);
            self.old.remove(chain);
            return None;
        }
        let identity = known.identity.clone();
        if let Some(entry) = self.old.remove(chain) {
            self.put(*chain, entry);
        }
        Some(identity)
    }

    /// Remembers that `chain` is `identity` under the bundle with this digest.
    pub(super) fn insert(&mut self, chain: [u8; 32], identity: PeerIdentity, bundle: [u8; 32]) {
        self.put(chain, Entry { identity, bundle });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn put(&mut self, chain: [u8; 32], entry: Entry) {
        if self.young.len() >= CAPACITY / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(chain, entry);
    }
}

/// Lengths are part of what is hashed, so that no two chains can be cut from the same bytes.
pub(super) fn chain_digest(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for certificate in chain {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    digest_array(&context.finish())
}

struct Entry {
    identity: PeerIdentity,
    bundle: [u8; 32],
}

/// A proxy talks to tens of peers, a busy one to hundreds; an entry is about 300 bytes.
pub(super) const CAPACITY: usize = 1024;
