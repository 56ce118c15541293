//! The cache itself: no waiting, no clock of its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{DiscoveryError, FIRST_WAIT};
use crate::model::Destination;

/// Addresses held. The control plane takes 4,096 subscriptions of one proxy; some are left for the proxy's own.
pub(super) const MAX_ADDRESSES: usize = 4000;
/// Let go of at once when the cache is full, so that looking for them is paid once per 250 new addresses.
const EVICTED: usize = MAX_ADDRESSES / 16;
/// An address that nobody dialled for this long is let go of.
const UNUSED: Duration = Duration::from_secs(600);
/// An answer is used for this long after the control plane went away.
const STALE: Duration = Duration::from_secs(3600);
/// A question that failed is not asked again before this.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The addresses that the application dialled.
pub(super) struct Cache {
    entries: HashMap<SocketAddr, Entry>,
    /// `Some` while a stream to the control plane is open: what it is still to be asked.
    questions: Option<Questions>,
    /// Boot time since which there has been no stream.
    away_since: Duration,
}

/// What the control plane is still to be asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Questions {
    pub(crate) subscribe: Vec<SocketAddr>,
    pub(crate) unsubscribe: Vec<SocketAddr>,
}

/// What is known of one address, for the administration.
pub(crate) struct Known {
    pub(crate) address: SocketAddr,
    pub(crate) destination: Option<Arc<Destination>>,
    pub(crate) failure: Option<Arc<str>>,
    /// For how long the control plane has not confirmed it.
    pub(crate) stale: Option<Duration>,
    pub(crate) unused: Duration,
}

/// What the cache says to a lookup.
pub(super) enum Consulted {
    Known(Arc<Destination>),
    /// Notified with the answer.
    Wait(Arc<Notify>),
}

struct Entry {
    answer: Option<Arc<Destination>>,
    failure: Option<(Arc<str>, Duration)>,
    stale_since: Option<Duration>,
    last_used: Duration,
    /// A connection was let through on the assumption that the address is external.
    guessed: bool,
    answered: Arc<Notify>,
}

impl Entry {
    fn new(now: Duration) -> Self {
        Self {
            answer: None,
            failure: None,
            stale_since: None,
            last_used: now,
            guessed: false,
            answered: Arc::new(Notify::new()),
        }
    }

    fn is_waited_for(&self) -> bool {
        Arc::strong_count(&self.answered) > 1
    }
}

impl Cache {
    pub(super) fn new(now: Duration) -> Self {
        Self { entries: HashMap::new(), questions: None, away_since: now }
    }

    /// The answer for `address`, or what to wait for; a question is noted where none was asked.
    pub(super) fn consult(
        &mut self,
        address: SocketAddr,
        now: Duration,
        outside: bool,
    ) -> Result<Consulted, DiscoveryError> {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.last_used = now;
            if let Some(answer) = &entry.answer {
                return match entry.stale_since {
                    Some(since) if now.saturating_sub(since) > STALE => Err(DiscoveryError::Stale(address)),
                    _ => Ok(Consulted::Known(Arc::clone(answer))),
                };
            }
            if let Some((reason, since)) = &entry.failure {
                if now.saturating_sub(*since) < ASK_AGAIN {
                    return Err(DiscoveryError::Unanswerable(address, Arc::clone(reason)));
                }
                entry.failure = None;
                if let Some(questions) = &mut self.questions {
                    questions.unsubscribe.push(address);
                    questions.subscribe.push(address);
                }
            }
        } else {
            self.insert(address, now, outside)?;
        }
        if self.questions.is_none() && outside && now.saturating_sub(self.away_since) >= FIRST_WAIT {
            return Ok(Consulted::Known(self.guess_external(address)));
        }
        match self.entries.get(&address) {
            Some(entry) => Ok(Consulted::Wait(Arc::clone(&entry.answered))),
            None => Err(DiscoveryError::Overloaded(address)),
        }
    }

    fn insert(&mut self, address: SocketAddr, now: Duration, outside: bool) -> Result<(), DiscoveryError> {
        if self.entries.len() >= MAX_ADDRESSES {
            match (&self.questions, outside) {
                (Some(_), _) => self.evict(),
                // What is known is worth more than a question that nobody can be asked.
                (None, false) => return Err(DiscoveryError::ControlPlaneAway(address)),
                (None, true) => return Err(DiscoveryError::Overloaded(address)),
            }
            if self.entries.len() >= MAX_ADDRESSES {
                return Err(DiscoveryError::Overloaded(address));
            }
        }
        self.entries.insert(address, Entry::new(now));
        if let Some(questions) = &mut self.questions {
            questions.subscribe.push(address);
        }
        Ok(())
    }

    fn evict(&mut self) {
        let idle = self.entries.iter().filter(|(_, entry)| !entry.is_waited_for());
        let mut oldest: Vec<_> = idle.map(|(address, entry)| (entry.last_used, *address)).collect();
        oldest.sort_unstable();
        for (_, address) in oldest.into_iter().take(EVICTED) {
            self.forget(address);
        }
    }

    fn forget(&mut self, address: SocketAddr) {
        self.entries.remove(&address);
        if let Some(questions) = &mut self.questions {
            // A question that was not sent yet need not be taken back.
            let waiting = questions.subscribe.len();
            questions.subscribe.retain(|other| *other != address);
            if questions.subscribe.len() == waiting {
                questions.unsubscribe.push(address);
            }
        }
    }

    /// Answers with nothing but the address, and remembers that it was a guess.
    pub(super) fn guess_external(&mut self, address: SocketAddr) -> Arc<Destination> {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.guessed = true;
        }
        Arc::new(Destination::external())
    }

    pub(super) fn peek(&mut self, address: SocketAddr, now: Duration) -> Option<Arc<Destination>> {
        let entry = self.entries.get_mut(&address)?;
        entry.last_used = now;
        entry.answer.clone()
    }

    /// Takes an answer; whether it changes one that was given before.
    pub(super) fn answered(&mut self, address: SocketAddr, destination: Destination) -> bool {
        // Let go of while the answer was under way.
        let Some(entry) = self.entries.get_mut(&address) else {
            return false;
        };
        entry.stale_since = None;
        entry.failure = None;
        let changed = match &entry.answer {
            Some(before) => **before != destination,
            None => std::mem::take(&mut entry.guessed),
        };
        entry.answer = Some(Arc::new(destination));
        entry.answered.notify_waiters();
        changed
    }

    /// Takes a failure; an answer that was given before stays.
    pub(super) fn failed(&mut self, address: SocketAddr, reason: &str, now: Duration) {
        let Some(entry) = self.entries.get_mut(&address) else {
            return;
        };
        if entry.answer.is_some() {
            entry.stale_since.get_or_insert(now);
        }
        entry.failure = Some((reason.chars().take(512).collect::<String>().into(), now));
        entry.answered.notify_waiters();
    }

    pub(super) fn attach(&mut self) -> Vec<SocketAddr> {
        self.questions = Some(Questions::default());
        for entry in self.entries.values_mut() {
            entry.failure = None;
        }
        self.entries.keys().copied().collect()
    }

    pub(super) fn detach(&mut self, now: Duration) {
        if self.questions.take().is_some() {
            self.away_since = now;
            for entry in self.entries.values_mut().filter(|entry| entry.answer.is_some()) {
                entry.stale_since.get_or_insert(now);
            }
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        self.questions.is_some()
    }

    pub(super) fn has_questions(&self) -> bool {
        self.questions.as_ref().is_some_and(|all| !all.subscribe.is_empty() || !all.unsubscribe.is_empty())
    }

    pub(super) fn questions(&mut self) -> Questions {
        self.questions.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Lets go of what nobody used for a while; never while the control plane is away.
    pub(super) fn sweep(&mut self, now: Duration) {
        if !self.is_attached() {
            return;
        }
        let unused = |entry: &Entry| now.saturating_sub(entry.last_used) > UNUSED && !entry.is_waited_for();
        let gone: Vec<_> =
            self.entries.iter().filter(|(_, entry)| unused(entry)).map(|(address, _)| *address).collect();
        for address in gone {
            self.forget(address);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn snapshot(&self, now: Duration) -> Vec<Known> {
        let known = |(address, entry): (&SocketAddr, &Entry)| Known {
            address: *address,
            destination: entry.answer.clone(),
            failure: entry.failure.as_ref().map(|(reason, _)| Arc::clone(reason)),
            stale: entry.stale_since.map(|since| now.saturating_sub(since)),
            unused: now.saturating_sub(entry.last_used),
        };
        let mut all: Vec<_> = self.entries.iter().map(known).collect();
        all.sort_unstable_by_key(|known| known.address);
        all
    }
}
