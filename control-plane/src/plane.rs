//! What the parts of a running control plane share.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use byrnie_identity::{Clock, SpiffeId, SvidVerifier, authority::CertificateAuthority};
use tokio::sync::watch;

use crate::{
    hub::Hub,
    journal::{Holder, Issuance, Journal, JournalError, unix},
    kubernetes::Reviewer,
    limits,
    model::{MeshView, Model},
    proxies::Proxies,
};

/// A running control plane. Its parts are handed this, and nothing global.
pub(crate) struct Plane {
    pub(crate) clock: Clock,
    pub(crate) authority: CertificateAuthority,
    pub(crate) verifier: Arc<SvidVerifier>,
    pub(crate) journal: Journal,
    pub(crate) model: ArcSwap<Model>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) allowances: Allowances,
    /// Checks ServiceAccount tokens; `None` where the source is a directory, and join tokens count.
    pub(crate) reviewer: Option<Reviewer>,
    /// The pods that the answers of this moment call meshed.
    pub(crate) published: watch::Sender<Arc<HashMap<Arc<str>, i64>>>,
    /// In place of MeshConfig's.
    pub(crate) ttl: Option<Duration>,
    /// True from the moment on at which the control plane ends.
    pub(crate) ending: watch::Sender<bool>,
}

/// A certificate that was made and written down.
pub(crate) struct Certificate {
    pub(crate) chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    pub(crate) issuance: Issuance,
}

/// Why none was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueFailure {
    #[error("{0}")]
    Authority(#[from] byrnie_identity::authority::IssueError),
    #[error("{0}")]
    Journal(#[from] JournalError),
}

impl Plane {
    /// How long a certificate lives.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl.unwrap_or_else(|| self.model.load().settings.svid_ttl)
    }

    /// Whether half of a certificate's life is over. Its `not_before` lies before its issuance, so that clocks that are
    /// behind take it, too; what counts is the time that it was issued for.
    pub(crate) fn is_due(&self, not_before: i64, not_after: i64) -> bool {
        let ttl = i64::try_from(self.ttl().as_secs()).unwrap_or(i64::MAX);
        let life = not_after.saturating_sub(not_before).min(ttl);
        unix(self.clock.wall()) >= not_after.saturating_sub(life / 2)
    }

    /// Issues for a public key, and returns when the journal has it.
    pub(crate) async fn issue(
        &self,
        spki_der: &[u8],
        id: &SpiffeId,
        holder: Holder,
        workload: &str,
    ) -> Result<Certificate, IssueFailure> {
        let issued = match holder {
            Holder::Ingress(_) => self.authority.issue_outside(spki_der, id, self.ttl())?,
            Holder::Pod(_) | Holder::ControlPlane => self.authority.issue(spki_der, id, self.ttl())?,
        };
        let issuance = Issuance {
            holder,
            workload: workload.to_owned(),
            spiffe_id: id.clone(),
            serial: issued.serial,
            issuer: issued.issuer,
            not_before: unix(issued.not_before),
            not_after: unix(issued.not_after),
            chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        };
        self.journal.record(issuance.clone()).await?;
        Ok(Certificate { chain: issued.chain, issuance })
    }

    /// The answers of this moment.
    pub(crate) fn view(&self) -> MeshView {
        MeshView {
            model: self.model.load_full(),
            meshed: Arc::new(self.journal.meshed_pods()),
            bundle: self.authority.bundle(),
            now: self.clock.wall(),
        }
    }
}

/// What each pod may still ask of us; grows again with time.
pub(crate) struct Allowances {
    clock: Clock,
    of: Mutex<HashMap<Arc<str>, Allowance>>,
    reviews: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Clone, Copy)]
struct Allowance {
    questions: Bucket,
    certificates: Bucket,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Duration,
    burst: f64,
    per_second: f64,
}

impl Allowances {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, of: Mutex::default(), reviews: Mutex::default() }
    }

    /// Takes one certificate; false: too many.
    pub(crate) fn certificate(&self, uid: &Arc<str>) -> bool {
        self.with(uid, |allowance, now| allowance.certificates.take(1.0, now).is_ok())
    }

    /// Takes questions; on refusal, the time to wait before asking again.
    pub(crate) fn questions(&self, uid: &Arc<str>, count: usize) -> Result<(), Duration> {
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(limits::QUESTIONS_BURST);
        self.with(uid, |allowance, now| allowance.questions.take(f64::from(count), now))
    }

    /// Takes one question to the API server about a token that came from this address; false: too many.
    pub(crate) fn review(&self, address: IpAddr) -> bool {
        let now = self.clock.monotonic();
        let mut reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        if reviews.len() >= limits::CONNECTIONS {
            reviews.retain(|_, bucket| !bucket.is_full(now));
        }
        let full = Bucket::full(limits::REVIEWS_BURST, limits::REVIEWS_PER_SECOND, now);
        reviews.entry(address.to_canonical()).or_insert(full).take(1.0, now).is_ok()
    }

    /// Forgets pods that are gone.
    pub(crate) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }

    fn with<R>(&self, uid: &Arc<str>, take: impl FnOnce(&mut Allowance, Duration) -> R) -> R {
        let now = self.clock.monotonic();
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Allowance {
            questions: Bucket::full(limits::QUESTIONS_BURST, limits::QUESTIONS_PER_SECOND, now),
            certificates: Bucket::full(limits::CERTIFICATES_BURST, limits::CERTIFICATES_PER_SECOND, now),
        };
        take(of.entry(uid.clone()).or_insert(full), now)
    }
}

impl Bucket {
    fn full(burst: u32, per_second: u32, at: Duration) -> Self {
        Self { left: f64::from(burst), at, burst: f64::from(burst), per_second: f64::from(per_second) }
    }

    fn is_full(&self, now: Duration) -> bool {
        self.left + now.saturating_sub(self.at).as_secs_f64() * self.per_second >= self.burst
    }

    fn take(&mut self, count: f64, now: Duration) -> Result<(), Duration> {
        let grown = now.saturating_sub(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + grown).min(self.burst);
        self.at = now;
        if self.left >= count {
            self.left -= count;
            return Ok(());
        }
        Err(Duration::from_secs_f64((count - self.left) / self.per_second))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn an_allowance_is_per_pod_and_grows_again() {
        let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        let allowances = Allowances::new(clock);
        let (one, two): (Arc<str>, Arc<str>) = ("u1".into(), "u2".into());
        for _ in 0..limits::CERTIFICATES_BURST {
            assert!(allowances.certificate(&one));
        }
        assert!(!allowances.certificate(&one));
        assert!(allowances.certificate(&two));
        time.advance(Duration::from_secs(1));
        assert!(allowances.certificate(&one));
        assert!(!allowances.certificate(&one));

        let (near, far) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..limits::REVIEWS_BURST {
            assert!(allowances.review(near));
        }
        assert!(!allowances.review(near) && allowances.review(far));

        allowances.questions(&one, limits::QUESTIONS_BURST as usize).unwrap();
        let wait = allowances.questions(&one, limits::QUESTIONS_PER_SECOND as usize).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        time.advance(wait);
        allowances.questions(&one, limits::QUESTIONS_PER_SECOND as usize).unwrap();
    }
}
