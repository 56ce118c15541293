//! Decides when an SVID is asked for: at once where none is held or it has expired, at half of its life by the wall
//! clock otherwise, and when someone asks. A failed attempt keeps what is held and is repeated.
//!
//! The wall clock steps, and a machine sleeps without its timers running. So no timer is set for the moment of renewal:
//! the clock is looked at again every few seconds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::certify::{CertifyError, Credential, Issued, PendingKey, certify};
use super::{Attempt, Backoff, Certificates, Generation};
use crate::shared::Shared;
use crate::telemetry::ResultLabels;

/// How often the clocks are looked at. The design asks for at least every 30 s; looking is two system calls.
const LOOK: Duration = Duration::from_secs(5);

/// A pod waits for its first SVID, and the control plane may hear of the pod some milliseconds after its container runs; a
/// token that is wrong now may be right in a moment.
const FIRST_ISSUANCE: (Duration, Duration) = (Duration::from_millis(40), Duration::from_secs(10));

/// A renewal has half of the SVID's life for its attempts.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Wall and boot time may part by this much between two looks (NTP slews by 0.5 ms per second) before it is called a
/// step.
const STEP: Duration = Duration::from_secs(2);

/// Keeps the proxy in possession of a valid SVID, for as long as the process runs.
pub async fn maintain(shared: Arc<Shared>) {
    let certificates = shared.certificates.clone();
    let file = shared.config.credential.clone();
    let has_token = move || file.path().is_some_and(std::path::Path::exists);
    let asked = Arc::clone(&shared);
    let join_key = Arc::new(PendingKey::default());
    Keeper::new(certificates, has_token)
        .run(move |credential| {
            let (shared, join_key) = (Arc::clone(&asked), Arc::clone(&join_key));
            async move {
                let result = certify(&shared, credential, &join_key).await;
                let label = result.as_ref().map_or_else(CertifyError::as_str, |_| "ok");
                shared.telemetry.metrics().certify.get_or_create(&ResultLabels { result: label }).inc();
                shared.telemetry.touch();
                result
            }
        })
        .await;
}

/// The state of the loop.
pub(super) struct Keeper<H> {
    certificates: Certificates,
    has_token: H,
    /// Someone asked for a renewal that has not happened yet.
    asked: bool,
    backoff: Option<Backoff>,
    /// By boot time, which goes on while the machine sleeps.
    not_before: Duration,
    seen_wall: SystemTime,
    seen_boot: Duration,
    announced_expiry: bool,
}

impl<H: Fn() -> bool> Keeper<H> {
    pub(super) fn new(certificates: Certificates, has_token: H) -> Self {
        let clock = certificates.0.clock.clone();
        Self {
            certificates,
            has_token,
            asked: false,
            backoff: None,
            not_before: Duration::ZERO,
            seen_wall: clock.wall(),
            seen_boot: clock.boot(),
            announced_expiry: false,
        }
    }

    pub(super) async fn run<F>(mut self, mut ask: impl FnMut(Credential) -> F)
    where
        F: Future<Output = Result<Issued, CertifyError>>,
    {
        loop {
            self.look();
            let wait = match self.due() {
                Some(credential) if self.certificates.0.clock.boot() >= self.not_before => {
                    let result = ask(credential).await;
                    self.take(result).await;
                    continue;
                }
                Some(_) => self.not_before.saturating_sub(self.certificates.0.clock.boot()),
                None => self.until_renewal(),
            };
            // Never zero, or a clock that stands still would make this loop spin.
            let wait = wait.clamp(Duration::from_millis(10), LOOK);
            let inner = Arc::clone(&self.certificates.0);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = inner.renew.notified() => {
                    self.asked = true;
                    self.not_before = Duration::ZERO;
                }
            }
        }
    }

    /// Notices steps of the clock, and the moment at which the SVID expires.
    fn look(&mut self) {
        let clock = &self.certificates.0.clock;
        let (wall, boot) = (clock.wall(), clock.boot());
        let passed = boot.saturating_sub(self.seen_boot);
        let expected = self.seen_wall + passed;
        let apart = wall.duration_since(expected).unwrap_or_else(|error| error.duration());
        if apart > STEP {
            tracing::warn!(
                apart_s = apart.as_secs(),
                forward = wall > expected,
                "the wall clock was stepped; the validity of certificates is looked at anew"
            );
            // A wait that was reasonable by the old clock may not be by the new one.
            self.not_before = Duration::ZERO;
            self.certificates.bump();
        }
        (self.seen_wall, self.seen_boot) = (wall, boot);
        let Some(held) = self.certificates.held() else { return };
        if held.is_valid(wall) {
            self.announced_expiry = false;
        } else if !self.announced_expiry {
            self.announced_expiry = true;
            self.certificates.bump();
            tracing::error!(
                id = %held.svid.id(), not_before = %time(held.svid.not_before()), not_after = %time(held.svid.not_after()),
                "the SVID is not valid now: every connection of the mesh is refused until a new one is issued"
            );
        }
    }

    /// What to ask with, where it is time to ask.
    fn due(&self) -> Option<Credential> {
        let now = self.certificates.0.clock.wall();
        match self.certificates.held() {
            None => Some(Credential::Token),
            // The control plane takes no expired SVID; where there is no token either, its refusal says what to do.
            Some(held) if !held.is_valid(now) && now > held.svid.not_after() && (self.has_token)() => {
                Some(Credential::Token)
            }
            Some(held) if self.asked || !held.is_valid(now) || now >= held.renew_at => Some(Credential::Svid(held)),
            Some(_) => None,
        }
    }

    fn until_renewal(&self) -> Duration {
        let now = self.certificates.0.clock.wall();
        let held = self.certificates.held();
        held.and_then(|held| held.renew_at.duration_since(now).ok()).unwrap_or(LOOK)
    }

    async fn take(&mut self, result: Result<Issued, CertifyError>) {
        let result = match result {
            Ok(issued) => self.install(issued).await,
            Err(error) => Err(error.to_string()),
        };
        let result = match result {
            Ok(generation) => {
                self.asked = false;
                self.backoff = None;
                self.not_before = Duration::ZERO;
                Ok(generation.number)
            }
            Err(reason) => {
                let wait = self.wait_longer();
                self.not_before = self.certificates.0.clock.boot() + wait;
                self.announce(&reason, wait);
                Err(Arc::from(reason))
            }
        };
        let attempts = &self.certificates.0.attempts;
        attempts.send_modify(|attempt| *attempt = Attempt { count: attempt.count + 1, result: Some(result) });
    }

    async fn install(&self, issued: Issued) -> Result<Arc<Generation>, String> {
        let certificates = &self.certificates;
        if let Some(bundle) = issued.bundle {
            // An answer that was under way may be older than what the Watch has brought since.
            if bundle.revision() >= certificates.bundle_revision() {
                certificates.take_bundle(bundle);
            }
        }
        let generation = certificates.take(issued.svid.clone()).map_err(|error| error.to_string())?;
        let directory = certificates.0.directory.clone();
        // Writes to the disk and waits for it: not on the thread that carries connections.
        let saved = tokio::task::spawn_blocking(move || issued.svid.save(&directory)).await;
        if let Some(error) =
            saved.map_or_else(|error| Some(error.to_string()), |saved| saved.err().map(|e| e.to_string()))
        {
            tracing::error!(error, "the new SVID is used, but could not be kept: a restart begins with the old one");
        }
        let svid = &generation.svid;
        tracing::info!(
            id = %svid.id(), serial = svid.serial(), generation = generation.number,
            not_after = %time(svid.not_after()), renew_at = %time(generation.renew_at), "new SVID"
        );
        Ok(generation)
    }

    fn wait_longer(&mut self) -> Duration {
        let now = self.certificates.0.clock.wall();
        let valid = self.certificates.current();
        let (first, cap) = if valid.is_some() { RENEWAL } else { FIRST_ISSUANCE };
        let wait = self.backoff.get_or_insert_with(|| Backoff::new(first, cap)).next();
        match valid.and_then(|held| held.svid.not_after().duration_since(now).ok()) {
            // A short-lived SVID must not expire within one wait.
            Some(left) => wait.min((left / 10).max(first)),
            None => wait.min(FIRST_ISSUANCE.1),
        }
    }

    fn announce(&self, reason: &str, wait: Duration) {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let now = self.certificates.0.clock.wall();
        let Some(held) = self.certificates.held() else {
            tracing::error!(reason, wait_ms, "no SVID yet: the proxy is not ready");
            return;
        };
        match held.svid.not_after().duration_since(now) {
            Ok(left) if held.is_valid(now) => {
                let life = held.svid.not_after().duration_since(held.svid.not_before()).unwrap_or_default();
                let left_s = left.as_secs();
                if left < life / 5 {
                    tracing::error!(reason, wait_ms, left_s, "the SVID could not be renewed and will expire soon");
                } else {
                    tracing::warn!(reason, wait_ms, left_s, "the SVID could not be renewed; the held one stays in use");
                }
            }
            _ => tracing::error!(reason, wait_ms, "the SVID is not valid and could not be replaced"),
        }
    }
}

fn time(time: SystemTime) -> String {
    crate::telemetry::rfc3339(time)
}
