//! What the control plane must not forget: which certificate it issued to which pod, and which join tokens exist.
//!
//! Reads come from memory. A write changes memory first, under a lock, and is answered when it is on the disk; one
//! writer thread commits what has gathered in one transaction, so that the disk's latency bounds no throughput.

mod records;
mod store;
mod tokens;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use byrnie_identity::Clock;
use tokio::sync::watch;

pub use self::{
    records::{Holder, Issuance},
    tokens::{NewToken, TokenBinding, TokenError},
};
use self::{
    store::{Store, Table, Write},
    tokens::Token,
};
use crate::limits;

/// The journal in `STATE/journal.redb`. Shared by reference.
#[derive(Debug)]
pub struct Journal {
    clock: Clock,
    ledger: Mutex<Ledger>,
    store: Store,
    meshed: watch::Sender<u64>,
}

/// Why the journal can't serve.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be opened, read or written.
    #[error(
        "journal {path}: {reason}; check the disk and its permissions, or move the file away: every proxy then needs a new join token"
    )]
    Store {
        /// The file.
        path: String,
        /// The store's reason.
        reason: String,
    },
    /// Too many tokens.
    #[error("{0} join tokens are on record, which is the bound; revoke unused ones or wait until they expire")]
    TooManyTokens(usize),
}

/// What becomes of the certificates of pods that the source does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// They may come back: a file that can't be read hides its pods.
    Remember,
    /// They never come back, as in Kubernetes; but a new one may not be shown yet.
    Forget,
}

impl Absent {
    fn is_remembered(self, issuance: &Issuance, now: i64) -> bool {
        let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        match self {
            Self::Remember => issuance.not_after.saturating_add(seconds(limits::ISSUANCE_MEMORY)) > now,
            // `not_before` lies ten minutes before the issuance.
            Self::Forget => issuance.not_before.saturating_add(seconds(limits::ISSUANCE_MEMORY_KUBERNETES)) > now,
        }
    }
}

#[derive(Debug, Default)]
struct Ledger {
    by_serial: HashMap<String, Arc<Issuance>>,
    newest: HashMap<Holder, Arc<Issuance>>,
    tokens: HashMap<String, Token>,
}

impl Journal {
    /// Opens the journal, or starts one.
    ///
    /// # Errors
    /// [`JournalError::Store`]: unreadable, or of another schema.
    pub fn open(path: &Path, clock: Clock) -> Result<Self, JournalError> {
        let (store, stored) = Store::open(path)?;
        let mut ledger = Ledger { tokens: stored.tokens, ..Ledger::default() };
        for issuance in stored.issuances {
            ledger.take(Arc::new(issuance));
        }
        Ok(Self { clock, ledger: Mutex::new(ledger), store, meshed: watch::Sender::new(0) })
    }

    /// Records a certificate; it may be handed out once this has returned.
    ///
    /// # Errors
    /// [`JournalError::Store`]: it is not on the disk, and must not be handed out.
    pub async fn record(&self, issuance: Issuance) -> Result<(), JournalError> {
        let write = Write::put(Table::Issuances, issuance.serial.clone(), issuance.encode());
        self.store.commit(vec![write]).await?;
        let newly_meshed = {
            let now = unix(self.clock.wall());
            let mut ledger = self.lock();
            let was = ledger.newest.get(&issuance.holder).is_some_and(|newest| newest.not_after > now);
            let issuance = Arc::new(issuance);
            // Whatever the clock says: it may have been set back since the one before.
            ledger.newest.insert(issuance.holder.clone(), issuance.clone());
            ledger.by_serial.insert(issuance.serial.clone(), issuance);
            !was
        };
        if newly_meshed {
            self.meshed.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }

    /// The issuance of a serial (lower-case hexadecimal) that has not expired.
    pub fn by_serial(&self, serial: &str) -> Option<Arc<Issuance>> {
        let now = unix(self.clock.wall());
        self.lock().by_serial.get(serial).filter(|issuance| issuance.not_after > now).cloned()
    }

    /// The newest unexpired certificate of a holder.
    pub fn newest(&self, holder: &Holder) -> Option<Arc<Issuance>> {
        let now = unix(self.clock.wall());
        self.lock().newest.get(holder).filter(|issuance| issuance.not_after > now).cloned()
    }

    /// The newest unexpired certificate of every holder.
    pub fn all_newest(&self) -> Vec<Arc<Issuance>> {
        let now = unix(self.clock.wall());
        self.lock().newest.values().filter(|issuance| issuance.not_after > now).cloned().collect()
    }

    /// Pods that a certificate was issued to: pod UID and the newest one's expiry, Unix seconds. Expired ones are among
    /// them: a proxy that could not renew is no reason to call its pod in plaintext.
    pub fn meshed_pods(&self) -> HashMap<Arc<str>, i64> {
        let ledger = self.lock();
        let pods = ledger.newest.values().filter_map(|issuance| match &issuance.holder {
            Holder::Pod(uid) => Some((uid.clone(), issuance.not_after)),
            Holder::Ingress(_) | Holder::ControlPlane => None,
        });
        pods.collect()
    }

    /// Rises whenever somebody got a certificate who held no unexpired one.
    pub fn meshed_changed(&self) -> watch::Receiver<u64> {
        self.meshed.subscribe()
    }

    /// Forgets what has expired; of a pod that still `exists` the newest certificate stays, and of others for a while:
    /// a source that was read in part, or a clock that was wrong for a moment, must not disown the mesh.
    ///
    /// # Errors
    /// [`JournalError::Store`]: it is still on the disk until the next start.
    pub async fn prune(&self, exists: impl Fn(&str) -> bool, absent: Absent) -> Result<(), JournalError> {
        let now = unix(self.clock.wall());
        let writes = {
            let mut ledger = self.lock();
            let Ledger { by_serial, newest, tokens } = &mut *ledger;
            let mut writes = Vec::new();
            newest.retain(|holder, issuance| match holder {
                Holder::Pod(uid) => exists(uid) || absent.is_remembered(issuance, now),
                Holder::Ingress(_) | Holder::ControlPlane => issuance.not_after > now,
            });
            by_serial.retain(|serial, issuance| {
                let holders = newest.get(&issuance.holder);
                let is_newest = holders.is_some_and(|newest| newest.serial == *serial);
                let forgotten = absent == Absent::Forget && holders.is_none();
                let keep = is_newest || (issuance.not_after > now && !forgotten);
                if !keep {
                    writes.push(Write::remove(Table::Issuances, serial.clone()));
                }
                keep
            });
            let memory = i64::try_from(limits::TOKEN_MEMORY.as_secs()).unwrap_or(i64::MAX);
            tokens.retain(|id, token| {
                let keep = token.expires.saturating_add(memory) > now;
                if !keep {
                    writes.push(Write::remove(Table::Tokens, id.clone()));
                }
                keep
            });
            writes
        };
        if writes.is_empty() { Ok(()) } else { self.store.commit(writes).await }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Every change below is one insertion or removal: a panic elsewhere can't leave it half done.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn take(&mut self, issuance: Arc<Issuance>) {
        let newest = self.newest.entry(issuance.holder.clone()).or_insert_with(|| issuance.clone());
        // The order in which they were made is not on the disk.
        if (newest.not_before, newest.not_after) <= (issuance.not_before, issuance.not_after) {
            *newest = issuance.clone();
        }
        self.by_serial.insert(issuance.serial.clone(), issuance);
    }
}

/// Unix seconds; times before 1970 count as 0.
pub(crate) fn unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
