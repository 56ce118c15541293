//! A workload's own X.509-SVID: its chain and the private key that belongs to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::files;
use crate::key::{KeyError, KeyPair};
use crate::spiffe_id::SpiffeId;
use crate::time_format::system_time;
use crate::verifier::{VerifyCause, VerifyError, rules};
use crate::x509;

/// An X.509-SVID with its key. Immutable; cheap to clone; Debug shows no key.
///
/// That it obeys all rules of a leaf and fits its key is checked here; whether anybody trusts it, and until when, is
/// not, so that an expired one can still be loaded and named.
#[derive(Clone)]
pub struct Svid(Arc<Inner>);

impl Svid {
    /// Joins a chain (DER, leaf first) with the key that it was issued for.
    ///
    /// # Errors
    /// When the leaf breaks a rule of X.509-SVIDs, something above it is no issuer, or the key is not the leaf's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, SvidError> {
        let Some((leaf, issuers)) = chain.split_first() else {
            return Err(VerifyError::new(VerifyCause::NoCertificate, "the chain is empty").into());
        };
        let facts = x509::parse(leaf)?;
        let id = rules::check_leaf(&facts)?;
        for (index, issuer) in issuers.iter().enumerate() {
            let what = format!("certificate {} of the chain", index + 2);
            rules::check_issuer(&x509::parse(issuer)?, &what, id.trust_domain())?;
        }
        if facts.spki != key.spki_der() {
            return Err(SvidError::KeyMismatch(id));
        }
        let leaf_fingerprint = x509::sha256(leaf);
        let certified_key = Arc::new(CertifiedKey::new(chain.clone(), key.rustls_key()?));
        Ok(Self(Arc::new(Inner { id, facts, chain, key, leaf_fingerprint, certified_key })))
    }

    /// Reads what [`Svid::save`] wrote.
    ///
    /// # Errors
    /// When the file is missing, readable by others, damaged, or as [`Svid::new`]; with its path.
    pub fn load(dir: &Path) -> Result<Self, SvidError> {
        let path = dir.join(FILE);
        let text = files::read_private(dir, FILE).map_err(|source| SvidError::File { path: path.clone(), source })?;
        Self::from_pem(&text).map_err(|source| SvidError::Content { path, source: Box::new(source) })
    }

    /// Writes key and chain to one file, `svid.pem`, in `dir`: mode 0600, replaced in one step, on the disk when this
    /// returns. `dir` is made, mode 0700, where it is missing, and closed to others where it is open.
    ///
    /// # Errors
    /// What the system says, with the path.
    pub fn save(&self, dir: &Path) -> Result<(), SvidError> {
        let (key, chain) = (self.0.key.to_pem(), self.chain_pem());
        // A text that grows leaves copies of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(key.len() + chain.len()));
        text.push_str(&key);
        text.push_str(&chain);
        files::private_directory(dir)
            .and_then(|()| files::write_private(dir, FILE, text.as_bytes()))
            .map_err(|source| SvidError::File { path: dir.join(FILE), source })
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.0.id
    }

    /// DER, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// The chain in PEM, leaf first, without the key.
    pub fn chain_pem(&self) -> String {
        x509::certificates_to_pem(self.chain())
    }

    /// Lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.0.facts.serial
    }

    /// The distinguished name of who signed the leaf.
    pub fn issuer(&self) -> &str {
        &self.0.facts.issuer
    }

    /// From when on the leaf is valid.
    pub fn not_before(&self) -> SystemTime {
        system_time(self.0.facts.not_before)
    }

    /// Until when (inclusive) the leaf is valid.
    pub fn not_after(&self) -> SystemTime {
        system_time(self.0.facts.not_after)
    }

    /// SHA-256 of the leaf's DER.
    pub fn leaf_fingerprint(&self) -> [u8; 32] {
        self.0.leaf_fingerprint
    }

    /// Chain and key for a rustls configuration.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.certified_key)
    }

    /// Signs `message` with the SVID's key: the TLS 1.3 signature scheme and the signature.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn sign(&self, message: &[u8]) -> Result<(u16, Vec<u8>), KeyError> {
        Ok((KeyPair::SCHEME.into(), self.0.key.sign(message)?))
    }

    fn from_pem(text: &str) -> Result<Self, SvidError> {
        let key = KeyPair::from_pem(text)?;
        let chain = x509::certificates_from_pem(x509::after_key(text))
            .map_err(|error| VerifyError::new(VerifyCause::Malformed, format!("not readable as PEM: {error}")))?;
        Self::new(chain, key)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({}, serial {}, {} certificates)", self.id(), self.serial(), self.chain().len())
    }
}

/// Why there is no SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The chain breaks a rule.
    #[error("the SVID's chain: {0}")]
    Chain(#[from] VerifyError),
    /// The key can't be used.
    #[error("the SVID's key: {0}")]
    Key(#[from] KeyError),
    /// Chain and key do not belong together.
    #[error("the certificate of {0} was issued for another private key than this one")]
    KeyMismatch(SpiffeId),
    /// The file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file can be read and holds no SVID.
    #[error("{}: {source}; remove the file to have a new SVID issued", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<SvidError>,
    },
}

struct Inner {
    id: SpiffeId,
    facts: x509::Facts,
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    leaf_fingerprint: [u8; 32],
    certified_key: Arc<CertifiedKey>,
}

/// Key and chain are one file, so that a crash between two writes can't part them.
const FILE: &str = "svid.pem";

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::time::Duration;

    use super::*;
    use crate::test_certificates::{DAY, Ours, Recipe, WEB, start, uri};
    use crate::verify_signature;

    fn svid() -> Svid {
        let made = Recipe::good().make();
        Svid::new(made.chain.clone(), made.key()).unwrap()
    }

    #[test]
    fn an_svid_tells_what_its_leaf_says() {
        let svid = svid();
        assert_eq!(svid.id().as_str(), WEB);
        assert_eq!(svid.issuer(), "CN=test intermediate");
        assert_eq!(svid.not_before(), start() - Duration::from_secs(600));
        assert_eq!(svid.not_after(), start() + Duration::from_secs(DAY as u64));
        assert_eq!(svid.chain_pem().matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(svid.certified_key().cert, svid.chain());
        svid.certified_key().keys_match().unwrap();
    }

    #[test]
    fn a_key_that_is_not_the_leafs_is_refused() {
        let made = Recipe::good().make();
        let refused = Svid::new(made.chain, KeyPair::generate().unwrap());
        assert!(matches!(refused, Err(SvidError::KeyMismatch(id)) if id.as_str() == WEB));
    }

    #[test]
    fn a_chain_that_no_peer_would_take_is_refused() {
        let mut recipe = Recipe::good();
        recipe.leaf.subject_alt_names.push(uri("spiffe://cluster.local/ns/shop/sa/other"));
        let made = recipe.make();
        let refused = Svid::new(made.chain.clone(), made.key()).unwrap_err();
        assert!(matches!(refused, SvidError::Chain(error) if error.cause == VerifyCause::SeveralUriSans));
        assert!(Svid::new(Vec::new(), KeyPair::generate().unwrap()).is_err());
        let made = Recipe::good().make();
        let twice_the_leaf = vec![made.chain[0].clone(), made.chain[0].clone()];
        let refused = Svid::new(twice_the_leaf, made.key()).unwrap_err();
        assert!(matches!(refused, SvidError::Chain(error) if error.cause == VerifyCause::NotAnIssuer));
    }

    #[test]
    fn a_saved_svid_is_its_owners_alone_and_loads_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let (first, second) = (svid(), svid());
        first.save(&dir).unwrap();
        second.save(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(dir.join("svid.pem")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        let loaded = Svid::load(&dir).unwrap();
        assert_eq!(loaded.chain(), second.chain());
        let (scheme, signature) = loaded.sign(b"message").unwrap();
        verify_signature(&second.chain()[0], scheme, b"message", &signature).unwrap();
    }

    #[test]
    fn a_damaged_file_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("svid.pem");
        assert!(matches!(Svid::load(dir.path()), Err(SvidError::File { .. })));
        svid().save(dir.path()).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let key_ends = good.find("-----BEGIN CERTIFICATE").unwrap();
        let other_key = format!("{}{}", *KeyPair::generate().unwrap().to_pem(), &good[key_ends..]);
        let huge = "x".repeat(200_000);
        for bad in ["", "garbage", &good[..key_ends], &good[key_ends..], &good[..good.len() - 40], &other_key, &huge] {
            fs::write(&path, bad).unwrap();
            let error = Svid::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(Svid::load(dir.path()).is_err());
        fs::write(&path, good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Svid::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("0644"), "{error}");
    }

    #[test]
    fn no_key_shows_in_what_is_printed() {
        let made = Recipe::good().make();
        let (key, again) = (made.key(), made.key());
        let secret = key.to_pem();
        let shown_key = format!("{key:?}");
        let svid = Svid::new(made.chain, again).unwrap();
        let shown = format!("{shown_key} {svid:?} {:?}", svid.certified_key());
        for line in secret.lines().filter(|line| !line.starts_with("---")) {
            assert!(!shown.contains(line));
        }
        assert!(!shown.contains("PRIVATE"));
        assert!(format!("{svid:?}").contains(WEB) && shown_key == "KeyPair(P-256, private)");
    }
}
