//! The last refusals, and what left the mesh or was kept from leaving it. Both bounded.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use byrnie_proto::mesh::v1 as proto;

/// Refusals kept: enough to see what happens now; the access log has all of them.
const MAX_REFUSALS: usize = 64;

/// Egress rows kept; a full table counts the rest in a row whose address is empty, so that the counts stay true.
const MAX_EGRESS: usize = 1024;

/// Bytes of a refusal's reason: it holds what a peer's certificate said, which the peer chooses.
const MAX_REASON: usize = 512;

/// Refusals and egress of one proxy.
#[derive(Default)]
pub(crate) struct Records {
    refusals: Mutex<VecDeque<proto::Refusal>>,
    egress: Mutex<HashMap<EgressKey, u64>>,
}

/// What tells egress rows apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EgressKey {
    pub(crate) source: Arc<str>,
    pub(crate) dialled: String,
    pub(crate) allowed: bool,
    pub(crate) rule: Arc<str>,
}

impl Records {
    pub(crate) fn refused(&self, mut refusal: proto::Refusal) {
        truncate(&mut refusal.reason);
        let mut refusals = lock(&self.refusals);
        if refusals.len() >= MAX_REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back(refusal);
    }

    pub(crate) fn left(&self, key: EgressKey) {
        let mut egress = lock(&self.egress);
        if let Some(count) = egress.get_mut(&key) {
            *count += 1;
            return;
        }
        let key =
            if egress.len() < MAX_EGRESS { key } else { EgressKey { dialled: String::new(), rule: "".into(), ..key } };
        *egress.entry(key).or_default() += 1;
    }

    pub(crate) fn refusals(&self) -> Vec<proto::Refusal> {
        lock(&self.refusals).iter().cloned().collect()
    }

    pub(crate) fn egress(&self) -> Vec<proto::EgressRecord> {
        lock(&self.egress)
            .iter()
            .map(|(key, connections)| proto::EgressRecord {
                source: key.source.to_string(),
                dialled: key.dialled.clone(),
                allowed: key.allowed,
                rule: key.rule.to_string(),
                connections: *connections,
            })
            .collect()
    }
}

fn truncate(text: &mut String) {
    let end = (0..=MAX_REASON.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn the_last_64_refusals_are_kept() {
        let records = Records::default();
        for number in 0..100 {
            records.refused(proto::Refusal { at_ms: number, ..Default::default() });
        }
        let kept: Vec<_> = records.refusals().iter().map(|refusal| refusal.at_ms).collect();
        assert_eq!(kept, (36..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let records = Records::default();
        records.refused(proto::Refusal { reason: "ü".repeat(1000) + "x", ..Default::default() });
        records.refused(proto::Refusal { reason: "x".to_owned() + &"ü".repeat(1000), ..Default::default() });
        assert_eq!(records.refusals()[0].reason.len(), 512);
        assert_eq!(records.refusals()[1].reason.len(), 511);
    }

    #[test]
    fn egress_counts_stay_true_when_the_table_is_full() {
        let records = Records::default();
        for number in 0..2000 {
            let dialled = format!("192.0.2.1:{number}");
            records.left(EgressKey { source: "shop/web".into(), dialled, allowed: false, rule: "".into() });
        }
        let egress = records.egress();
        assert_eq!(egress.len(), MAX_EGRESS + 1);
        assert_eq!(egress.iter().map(|row| row.connections).sum::<u64>(), 2000);
    }
}
