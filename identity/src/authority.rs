//! The mesh's own certificate authority: a root, an issuing intermediate that is replaced in time, and the X.509-SVIDs
//! that the intermediate signs.
//!
//! Who may have an identity is decided by the caller. What a certificate looks like is decided here alone: of the
//! requester only the public key is taken, and every chain is verified, by the code that peers use, before it is
//! handed out.

mod issue;
mod signer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::bundle::{BundleError, TrustBundle};
use crate::clock::Clock;
use crate::files;
use crate::key::KeyError;
use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::time_format::unix_seconds;
use crate::verifier::VerifyError;
pub use issue::IssueError;
use signer::Signer;
pub(crate) use signer::{ORGANIZATION, calendar, random_serial};

/// How long an X.509-SVID may live. Also fixes the life of the issuing intermediate: twice `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IssueLimits {
    /// The shortest life that may be asked for.
    pub shortest: Duration,
    /// The longest life that may be asked for.
    pub longest: Duration,
}

impl IssueLimits {
    /// As the default, but lives down to `shortest` are allowed: for tests and demonstrations that watch a renewal.
    pub fn allow_shorter(shortest: Duration) -> Self {
        Self { shortest, ..Self::default() }
    }
}

impl Default for IssueLimits {
    /// One hour to seven days.
    fn default() -> Self {
        Self { shortest: Duration::from_secs(3600), longest: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// A root and the intermediate that issues.
pub struct CertificateAuthority {
    trust_domain: TrustDomain,
    clock: Clock,
    limits: IssueLimits,
    directory: Option<PathBuf>,
    root: Signer,
    bundle: TrustBundle,
    issuing: ArcSwap<Signer>,
    /// Held while the intermediate is replaced, so that two callers do not both do it.
    replacing: Mutex<()>,
}

impl CertificateAuthority {
    /// A new authority that exists in memory only.
    ///
    /// # Errors
    /// When a key can't be made, or the trust domain makes no valid certificate.
    pub fn create(trust_domain: TrustDomain, clock: &Clock) -> Result<Self, AuthorityError> {
        Self::create_with(trust_domain, clock, IssueLimits::default())
    }

    /// [`CertificateAuthority::create`] with limits of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn create_with(trust_domain: TrustDomain, clock: &Clock, limits: IssueLimits) -> Result<Self, AuthorityError> {
        let root = Signer::new_root(&trust_domain, unix_seconds(clock.wall()))?;
        Self::with_root(trust_domain, clock, limits, root, None, None)
    }

    /// The authority whose keys are in `dir`; a new one where `dir` holds none. Keys are files of mode 0600 in a
    /// directory of mode 0700.
    ///
    /// # Errors
    /// When a file can't be read or written, is damaged, or belongs to another trust domain: with its path. What is
    /// there is never replaced by something new because it can't be read.
    pub fn open_or_create(dir: &Path, trust_domain: TrustDomain, clock: &Clock) -> Result<Self, AuthorityError> {
        Self::open_or_create_with(dir, trust_domain, clock, IssueLimits::default())
    }

    /// [`CertificateAuthority::open_or_create`] with limits of one's own.
    ///
    /// # Errors
    /// As there.
    pub fn open_or_create_with(
        dir: &Path,
        trust_domain: TrustDomain,
        clock: &Clock,
        limits: IssueLimits,
    ) -> Result<Self, AuthorityError> {
        files::private_directory(dir).map_err(|source| AuthorityError::file(dir, "", source))?;
        let issuing = read_signer(dir, ISSUING_FILE)?;
        let root = match read_signer(dir, ROOT_FILE)? {
            Some(root) => root,
            None if issuing.is_some() => {
                return Err(AuthorityError::RootMissing(dir.join(ROOT_FILE)));
            }
            None => {
                let root = Signer::new_root(&trust_domain, unix_seconds(clock.wall()))?;
                write_signer(dir, ROOT_FILE, &root)?;
                root
            }
        };
        Self::with_root(trust_domain, clock, limits, root, issuing, Some(dir.to_owned()))
    }

    /// The authority under a root that is kept elsewhere and shared: `dir` holds this instance's own intermediate alone,
    /// and an intermediate of another root there is replaced.
    ///
    /// # Errors
    /// When the root can't be read, belongs to another trust domain, or is not valid at this time; when a file can't be
    /// read or written.
    pub fn open_under_root(
        dir: &Path,
        trust_domain: TrustDomain,
        root: &RootPem,
        clock: &Clock,
        limits: IssueLimits,
    ) -> Result<Self, AuthorityError> {
        let root = Signer::from_pem(&root.text())?;
        root.check_time(unix_seconds(clock.wall()))?;
        files::private_directory(dir).map_err(|source| AuthorityError::file(dir, "", source))?;
        let issuing = read_signer(dir, ISSUING_FILE)?.filter(|issuing| match issuing.check_issued_by(&root) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the issuing intermediate of the state directory is replaced: its root is another");
                false
            }
        });
        Self::with_root(trust_domain, clock, limits, root, issuing, Some(dir.to_owned()))
    }

    /// What others need to verify what this authority issued.
    pub fn bundle(&self) -> TrustBundle {
        self.bundle.clone()
    }

    /// Whose identities it issues.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The lives that it grants.
    pub fn limits(&self) -> IssueLimits {
        self.limits
    }

    /// Issues an X.509-SVID for `id` to the holder of the P-256 key `spki_der` (DER SubjectPublicKeyInfo; take it
    /// from [`csr::public_key`](crate::csr::public_key)). It lives `ttl`, less where the issuer ends before.
    ///
    /// # Errors
    /// For an ID that is no workload of this trust domain, a life outside the limits, another kind of key, an
    /// authority that has expired, or a chain that does not pass our own verification.
    pub fn issue(&self, spki_der: &[u8], id: &SpiffeId, ttl: Duration) -> Result<Issued, IssueError> {
        self.issue_for(issue::Bearer::Proxy, spki_der, id, ttl)
    }

    /// [`CertificateAuthority::issue`] for a client outside of the mesh, such as an ingress controller. Peers see it in
    /// the certificate ([`PeerIdentity::is_outside_mesh`](crate::PeerIdentity::is_outside_mesh)): it opens what an
    /// IngressPolicy opens, and makes nobody a member of the mesh.
    ///
    /// # Errors
    /// As there.
    pub fn issue_outside(&self, spki_der: &[u8], id: &SpiffeId, ttl: Duration) -> Result<Issued, IssueError> {
        self.issue_for(issue::Bearer::Outside, spki_der, id, ttl)
    }

    fn issue_for(
        &self,
        bearer: issue::Bearer,
        spki_der: &[u8],
        id: &SpiffeId,
        ttl: Duration,
    ) -> Result<Issued, IssueError> {
        // A replacement that failed (a full disk) must not stop issuance while the present intermediate still can.
        if let Err(error) = self.maintain() {
            tracing::warn!(%error, "the issuing intermediate is due and could not be replaced");
        }
        issue::issue(self, &self.issuing.load(), bearer, spki_der, id, ttl)
    }

    /// Replaces the issuing intermediate if it is due: when it no longer outlives the longest SVID that might be
    /// asked for. Says whether it did. [`CertificateAuthority::issue`] does this by itself.
    ///
    /// # Errors
    /// When a key can't be made or the file can't be written; the present intermediate then stays.
    pub fn maintain(&self) -> Result<bool, AuthorityError> {
        if !self.is_due(&self.issuing.load()) {
            return Ok(false);
        }
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_due(&self.issuing.load()) {
            return Ok(false);
        }
        let issuing =
            self.root.new_intermediate(&self.trust_domain, self.now(), self.limits.longest.saturating_mul(2))?;
        if let Some(dir) = &self.directory {
            write_signer(dir, ISSUING_FILE, &issuing)?;
        }
        self.issuing.store(Arc::new(issuing));
        Ok(true)
    }

    fn with_root(
        trust_domain: TrustDomain,
        clock: &Clock,
        limits: IssueLimits,
        root: Signer,
        issuing: Option<Signer>,
        directory: Option<PathBuf>,
    ) -> Result<Self, AuthorityError> {
        let bundle = TrustBundle::new(trust_domain.clone(), BUNDLE_REVISION, vec![root.certificate().clone()])?;
        let now = unix_seconds(clock.wall());
        if let Some(issuing) = &issuing {
            issuing.check_issued_by(&root).map_err(|source| AuthorityError::Content {
                path: directory.clone().unwrap_or_default().join(ISSUING_FILE),
                reason: source.to_string(),
            })?;
        }
        let (issuing, is_new) = match issuing {
            Some(issuing) => (issuing, false),
            None => (root.new_intermediate(&trust_domain, now, limits.longest.saturating_mul(2))?, true),
        };
        if let (Some(dir), true) = (&directory, is_new) {
            write_signer(dir, ISSUING_FILE, &issuing)?;
        }
        Ok(Self {
            trust_domain,
            clock: clock.clone(),
            limits,
            directory,
            root,
            bundle,
            issuing: ArcSwap::from_pointee(issuing),
            replacing: Mutex::new(()),
        })
    }

    /// Due when it ends before an SVID issued now might, unless it ends with the root and a new one would too; and
    /// when the clock was set back before its begin.
    fn is_due(&self, issuing: &Signer) -> bool {
        let now = self.now();
        let too_short = issuing.not_after() < now.saturating_add(self.limits.longest.as_secs());
        (too_short && issuing.not_after() < self.root.not_after())
            || (now < issuing.not_before() && issuing.not_before() > self.root.not_before())
    }

    fn now(&self) -> u64 {
        unix_seconds(self.clock.wall())
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("trust_domain", &self.trust_domain)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// A root as text: what instances that share it hand to each other.
pub struct RootPem {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key (PKCS #8), PEM. Secret.
    pub key: Zeroizing<String>,
}

impl RootPem {
    /// A new self-signed root.
    ///
    /// # Errors
    /// When a key can't be made, or the trust domain makes no valid certificate.
    pub fn create(trust_domain: &TrustDomain, clock: &Clock) -> Result<Self, AuthorityError> {
        Ok(Signer::new_root(trust_domain, unix_seconds(clock.wall()))?.to_root_pem())
    }

    /// Sized beforehand: a text that grows leaves copies of the key behind.
    fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(self.key.len() + self.certificate.len() + 1));
        text.push_str(&self.key);
        text.push('\n');
        text.push_str(&self.certificate);
        text
    }
}

impl fmt::Debug for RootPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootPem(private)")
    }
}

/// What [`CertificateAuthority::issue`] hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// DER, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's, lower-case hexadecimal.
    pub serial: String,
    /// From when on the leaf is valid.
    pub not_before: SystemTime,
    /// Until when (inclusive) the leaf is valid.
    pub not_after: SystemTime,
    /// The distinguished name of the intermediate that signed it.
    pub issuer: String,
}

/// Why there is no authority, or it could not be kept up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file can't be read or written.
    #[error("certificate authority: {}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file can be read and is not what it should be.
    #[error("certificate authority: {}: {reason}; restore it from a backup", path.display())]
    Content {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An intermediate without its root.
    #[error(
        "certificate authority: {} is missing although an intermediate is there; restore it from a backup, or remove \
         the directory to begin anew (every workload then needs a new identity)",
        .0.display()
    )]
    RootMissing(PathBuf),
    /// The root makes no bundle: it belongs to another trust domain, or is no authority.
    #[error("certificate authority: {0}")]
    Bundle(#[from] BundleError),
    /// A key could not be made or used.
    #[error("certificate authority: {0}")]
    Key(#[from] KeyError),
    /// A certificate could not be made.
    #[error("certificate authority: a certificate could not be made: {0}")]
    Certificate(String),
    /// A certificate was made and does not pass.
    #[error("certificate authority: a certificate made here does not pass verification: {0}")]
    Verify(#[from] VerifyError),
    /// The root's time is over (or, by this clock, has not come).
    #[error("certificate authority: the root is valid from {not_before} to {not_after}, and it is {now}")]
    RootNotValid {
        /// RFC 3339.
        not_before: String,
        /// RFC 3339.
        not_after: String,
        /// RFC 3339.
        now: String,
    },
}

impl AuthorityError {
    fn file(dir: &Path, name: &str, source: io::Error) -> Self {
        let path = if name.is_empty() { dir.to_owned() } else { dir.join(name) };
        Self::File { path, source }
    }
}

const ROOT_FILE: &str = "root.pem";
const ISSUING_FILE: &str = "issuer.pem";
/// One root, for as long as it lives: the bundle does not change.
const BUNDLE_REVISION: u64 = 1;

fn read_signer(dir: &Path, name: &str) -> Result<Option<Signer>, AuthorityError> {
    let text = match files::read_private(dir, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| AuthorityError::file(dir, name, source))?,
    };
    let signer = Signer::from_pem(&text)
        .map_err(|reason| AuthorityError::Content { path: dir.join(name), reason: reason.to_string() })?;
    Ok(Some(signer))
}

fn write_signer(dir: &Path, name: &str, signer: &Signer) -> Result<(), AuthorityError> {
    files::write_private(dir, name, signer.to_pem().as_bytes())
        .map_err(|source| AuthorityError::file(dir, name, source))
}

#[cfg(test)]
mod tests;
