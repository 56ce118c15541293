//! What a proxy keeps in its state directory besides `svid.pem`, and the mounted trust bundle.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use byrnie_identity::{TrustBundle, TrustDomain};

use super::StateError;

/// The last bundle that the control plane sent. The line before the PEM is explanatory text (RFC 7468 section 2).
const BUNDLE: &str = "bundle.pem";

/// Starts the line that holds the revision.
const REVISION: &str = "revision: ";

/// Far above any bundle: 64 roots of 8 KiB each, in PEM.
const MAX_BUNDLE: u64 = 1024 * 1024;

/// Reads the bundle that the operator mounted.
///
/// # Errors
/// When it can't be read, or holds no bundle.
pub(super) fn mounted_bundle(path: &Path, trust_domain: &TrustDomain) -> Result<TrustBundle, StateError> {
    let text = read(path).map_err(|source| StateError::BundleFile { path: path.to_owned(), source })?;
    // Whatever the control plane sends is newer.
    TrustBundle::from_pem(trust_domain.clone(), 0, &text)
        .map_err(|source| StateError::Bundle { path: path.to_owned(), source })
}

/// Reads what [`save_bundle`] wrote; `None` where there is nothing.
///
/// # Errors
/// When it is there and can't be read, or belongs to another trust domain.
pub(super) fn load_bundle(directory: &Path, trust_domain: &TrustDomain) -> Result<Option<TrustBundle>, StateError> {
    let path = directory.join(BUNDLE);
    let text = match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::BundleFile { path, source }),
        Ok(text) => text,
    };
    let first = text.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let revision = first.and_then(|line| line.strip_prefix(REVISION)).and_then(|number| number.parse().ok());
    TrustBundle::from_pem(trust_domain.clone(), revision.unwrap_or(0), &text)
        .map(Some)
        .map_err(|source| StateError::Bundle { path, source })
}

/// Replaces the kept bundle in one step.
pub(super) fn save_bundle(directory: &Path, bundle: &TrustBundle) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let new = directory.join(".bundle.pem.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(format!("{REVISION}{}\n{}", bundle.revision(), bundle.to_pem()).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, directory.join(BUNDLE))?;
    File::open(directory)?.sync_all()
}

/// When the kept SVID was taken: the time at which its file was written.
pub(super) fn taken_at(directory: &Path) -> SystemTime {
    let written = fs::metadata(directory.join("svid.pem")).and_then(|metadata| metadata.modified());
    written.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BUNDLE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BUNDLE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {MAX_BUNDLE} bytes")));
    }
    Ok(text)
}
