//! The proxy's own identity and whom it trusts: the X.509-SVID with its key, the trust bundles, and the TLS
//! configurations, which are built once per SVID.
//!
//! The key is made here and leaves the machine never. Who asks the control plane for a certificate, and when, is
//! [`maintain`]'s; this module holds what there is now, and fails closed: an SVID that is not valid at this moment is
//! not handed out.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use byrnie_identity::tls::{self, ALPN_TUNNEL, ClientAuth, TlsError};
use byrnie_identity::{
    BundleError, Clock, SharedBundles, SpiffeId, Svid, SvidError, SvidVerifier, TrustBundle, TrustBundles, TrustDomain,
};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::{Notify, watch};

mod backoff;
mod certify;
mod maintain;
mod state;
pub(crate) mod token;

pub(crate) use backoff::Backoff;
pub use maintain::maintain;

use crate::config::Config;
use crate::random;

/// The proxy's SVID and trust bundles. Cheap to clone; clones see the same.
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    clock: Clock,
    trust_domain: TrustDomain,
    directory: PathBuf,
    bundles: SharedBundles,
    verifier: Arc<SvidVerifier>,
    held: ArcSwapOption<Generation>,
    changed: watch::Sender<u64>,
    attempts: watch::Sender<Attempt>,
    renew: Notify,
    /// Held while an SVID or a bundle is taken, so that two takers do not overwrite each other.
    taking: Mutex<()>,
}

/// One SVID and the TLS configurations that prove it.
pub struct Generation {
    /// Rises by one with every SVID taken.
    pub number: u64,
    /// The SVID.
    pub svid: Svid,
    /// For dialling tunnels: ALPN `byrnie/1`.
    pub client: Arc<ClientConfig>,
    /// For accepting tunnels: ALPN `byrnie/1`, client certificate required.
    pub server: Arc<ServerConfig>,
    /// For clients outside of the mesh: TLS 1.2 and 1.3, client certificate required.
    pub ingress: Arc<ServerConfig>,
    /// When it is to be renewed: half of its life, give or take a tenth, by the wall clock.
    pub renew_at: SystemTime,
}

/// How the last attempt to get an SVID went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempt {
    /// Attempts so far.
    pub(crate) count: u64,
    /// `Ok`: the generation that came of it.
    pub(crate) result: Option<Result<u64, Arc<str>>>,
}

/// Why the proxy can't begin with what is in its files.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bundle file can't be read.
    #[error("--trust-bundle: expected a readable PEM file, found {path}: {source}")]
    BundleFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bundle file holds no trust bundle.
    #[error("{path}: expected the roots of the trust domain in PEM, found: {source}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BundleError,
    },
    /// The kept SVID can't be used.
    #[error("--state: {0}; move the file away to get a new certificate with a join token")]
    Svid(#[from] SvidError),
    /// The kept SVID belongs to another trust domain.
    #[error(
        "--trust-domain: expected {expected}, found {found} in the state directory {directory}; give this proxy a state \
         directory of its own"
    )]
    TrustDomain {
        /// What the options say.
        expected: TrustDomain,
        /// Whose SVID is there.
        found: SpiffeId,
        /// The state directory.
        directory: PathBuf,
    },
    /// TLS can't be configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Whether a state directory holds an SVID, usable or not.
pub(crate) fn has_state(directory: &Path) -> bool {
    directory.join("svid.pem").exists()
}

impl Certificates {
    /// Begins with what earlier runs left in the state directory, or with the mounted bundle alone.
    ///
    /// # Errors
    /// When a file is there and can't be used.
    pub fn open(config: &Config, clock: Clock) -> Result<Self, StateError> {
        let kept = state::load_bundle(&config.state, &config.trust_domain)?;
        let bundle = match kept {
            Some(bundle) => bundle,
            None => state::mounted_bundle(&config.trust_bundle, &config.trust_domain)?,
        };
        let certificates = Self::new(config.trust_domain.clone(), config.state.clone(), bundle.into(), clock);
        if has_state(&config.state) {
            let svid = Svid::load(&config.state)?;
            if svid.id().trust_domain() != &config.trust_domain {
                return Err(StateError::TrustDomain {
                    expected: config.trust_domain.clone(),
                    found: svid.id().clone(),
                    directory: config.state.clone(),
                });
            }
            let taken_at = state::taken_at(&config.state);
            certificates.hold(svid, taken_at)?;
        }
        Ok(certificates)
    }

    fn new(trust_domain: TrustDomain, directory: PathBuf, bundles: TrustBundles, clock: Clock) -> Self {
        let bundles: SharedBundles = Arc::new(ArcSwap::from_pointee(bundles));
        let verifier = SvidVerifier::new(Arc::clone(&bundles), clock.clone());
        Self(Arc::new(Inner {
            clock,
            trust_domain,
            directory,
            bundles,
            verifier,
            held: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            attempts: watch::Sender::new(Attempt::default()),
            renew: Notify::new(),
            taking: Mutex::new(()),
        }))
    }

    /// The SVID to use now; `None` where there is none, or where it is not valid at this moment.
    pub fn current(&self) -> Option<Arc<Generation>> {
        let now = self.0.clock.wall();
        self.held().filter(|held| held.is_valid(now))
    }

    /// The SVID that is held, valid or not: for saying what is wrong with it.
    pub fn held(&self) -> Option<Arc<Generation>> {
        self.0.held.load_full()
    }

    /// Verifies peers against the bundles of the moment.
    pub fn verifier(&self) -> &Arc<SvidVerifier> {
        &self.0.verifier
    }

    /// The trust bundles of the moment.
    pub fn bundles(&self) -> &SharedBundles {
        &self.0.bundles
    }

    /// Changes with every new SVID, every new bundle, and when the SVID expires.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Asks for a renewal now, whatever the SVID's age. It happens in the background.
    pub fn renew_now(&self) {
        self.0.renew.notify_one();
    }

    /// Asks for a renewal now and waits for the end of the next attempt: the number of the new generation.
    ///
    /// # Errors
    /// Why that attempt failed; it will be tried again.
    pub async fn renew_and_wait(&self) -> Result<u64, String> {
        let mut attempts = self.0.attempts.subscribe();
        let before = attempts.borrow_and_update().count;
        self.renew_now();
        let ended = attempts.wait_for(|attempt| attempt.count > before).await;
        match ended.map(|attempt| attempt.result.clone()) {
            Ok(Some(Ok(number))) => Ok(number),
            Ok(Some(Err(reason))) => Err(reason.to_string()),
            Ok(None) | Err(_) => Err("the proxy is ending".to_owned()),
        }
    }

    /// The error of the last attempt to get an SVID, where it failed.
    pub(crate) fn last_failure(&self) -> Option<Arc<str>> {
        match &self.0.attempts.borrow().result {
            Some(Err(reason)) => Some(Arc::clone(reason)),
            _ => None,
        }
    }

    /// Revision of the own trust domain's bundle; 0: there is none.
    pub fn bundle_revision(&self) -> u64 {
        self.0.bundles.load().get(&self.0.trust_domain).map_or(0, TrustBundle::revision)
    }

    /// Takes a bundle that the control plane sent over a channel on which it proved itself. Also for a proxy whose own
    /// SVID has expired: a long sleeper recovers by it.
    pub(crate) fn take_bundle(&self, bundle: TrustBundle) {
        let _taking = self.lock();
        let held = self.0.bundles.load();
        if held.get(bundle.trust_domain()) == Some(&bundle) {
            return;
        }
        tracing::info!(
            trust_domain = %bundle.trust_domain(), revision = bundle.revision(), roots = bundle.roots().len(),
            "new trust bundle"
        );
        if bundle.trust_domain() == &self.0.trust_domain
            && let Err(error) = state::save_bundle(&self.0.directory, &bundle)
        {
            tracing::error!(
                directory = %self.0.directory.display(), %error,
                "the new trust bundle is used, but could not be kept: a restart begins with the old one"
            );
        }
        let mut bundles = TrustBundles::clone(&held);
        bundles.insert(bundle);
        self.0.bundles.store(Arc::new(bundles));
        self.bump();
    }

    /// Takes an SVID that has just been verified.
    pub(crate) fn take(&self, svid: Svid) -> Result<Arc<Generation>, TlsError> {
        let generation = self.hold(svid, self.0.clock.wall())?;
        self.bump();
        Ok(generation)
    }

    fn hold(&self, svid: Svid, taken_at: SystemTime) -> Result<Arc<Generation>, TlsError> {
        let _taking = self.lock();
        let number = self.held().map_or(1, |held| held.number + 1);
        let generation = Arc::new(Generation::new(number, svid, &self.0.verifier, taken_at)?);
        self.0.held.store(Some(Arc::clone(&generation)));
        Ok(generation)
    }

    fn bump(&self) {
        self.0.changed.send_modify(|number| *number += 1);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generation {
    fn new(number: u64, svid: Svid, verifier: &Arc<SvidVerifier>, taken_at: SystemTime) -> Result<Self, TlsError> {
        Ok(Self {
            number,
            client: tls::client_config(Some(&svid), verifier, ALPN_TUNNEL)?,
            server: tls::server_config(&svid, verifier, ALPN_TUNNEL, ClientAuth::Required)?,
            ingress: tls::ingress_server_config(&svid, verifier)?,
            renew_at: renew_at(&svid, taken_at, random::fraction()),
            svid,
        })
    }

    /// Whether the SVID is valid at `now`: to the end of its last second, as its peers see it.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.svid.not_before() <= now && now < self.svid.not_after() + Duration::from_secs(1)
    }
}

/// Half of the life that was left when the SVID was taken, give or take a tenth, so that proxies that started together
/// do not renew together. `fraction` is from 0 to 1.
fn renew_at(svid: &Svid, taken_at: SystemTime, fraction: f64) -> SystemTime {
    let taken_at = taken_at.clamp(svid.not_before(), svid.not_after());
    let life = svid.not_after().duration_since(taken_at).unwrap_or(Duration::ZERO);
    taken_at + life.mul_f64(0.45 + 0.1 * fraction.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
