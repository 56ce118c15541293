//! Files that hold secrets: written so that a crash leaves the old content or the new, and read only by their owner.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// Makes `dir` (and its parents) for its owner alone, mode 0700; a directory that others may enter is closed to them.
pub(crate) fn private_directory(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mode = fs::metadata(dir)?.mode();
    // Such as /tmp: to close it would harm others, and would not undo what they have put there.
    if mode & 0o022 != 0 && fs::read_dir(dir)?.next().is_some() {
        let found = mode & 0o7777;
        let message = format!(
            "is to hold private keys, has mode {found:04o} and is not empty: expected a directory where nobody else \
             may have put anything (give one of its own, or look through it and `chmod 700` it)"
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    if mode & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Replaces `dir/name` by `content` in one step, mode 0600, and returns when it is on the disk.
pub(crate) fn write_private(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let new = dir.join(format!(".{name}.new"));
    // What a crash may have left; `create_new` then refuses to follow whatever somebody put in its place.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = write_new(&new, content).and_then(|()| fs::rename(&new, dir.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written?;
    File::open(dir)?.sync_all()
}

/// Reads `dir/name`.
///
/// # Errors
/// `PermissionDenied` where others than the owner may read it, `InvalidData` above [`MAX_FILE`] or where it is not
/// UTF-8, and what the system says.
pub(crate) fn read_private(dir: &Path, name: &str) -> io::Result<Zeroizing<String>> {
    let file = File::open(dir.join(name))?;
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        let found = metadata.mode() & 0o777;
        let message = format!("holds a private key and has mode {found:04o}: expected 0600 (`chmod 600`)");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    if metadata.len() > MAX_FILE {
        let message = format!("has {} bytes: expected at most {MAX_FILE}", metadata.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    // Sized beforehand: a buffer that grows leaves copies of the key behind.
    let mut content = Zeroizing::new(String::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE).read_to_string(&mut content)?;
    Ok(content)
}

/// A key and a chain of eight certificates of 8 KiB, in PEM.
const MAX_FILE: u64 = 128 * 1024;

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_is_for_its_owner_alone_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        private_directory(&state).unwrap();
        write_private(&state, "key.pem", b"old").unwrap();
        write_private(&state, "key.pem", b"new").unwrap();
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(state.join("key.pem")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_private(&state, "key.pem").unwrap().as_str(), "new");
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_does_not_stop_the_next_write() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".key.pem.new"), "half").unwrap();
        write_private(dir.path(), "key.pem", b"whole").unwrap();
        assert_eq!(read_private(dir.path(), "key.pem").unwrap().as_str(), "whole");
    }

    #[test]
    fn an_open_directory_is_closed_and_an_open_file_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        private_directory(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        fs::write(dir.path().join("key.pem"), "x").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let error = private_directory(dir.path()).unwrap_err();
        assert!(error.to_string().contains("1777"), "{error}");
        fs::set_permissions(dir.path().join("key.pem"), fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_private(dir.path(), "key.pem").unwrap_err();
        assert!(error.to_string().contains("0640") && error.to_string().contains("0600"), "{error}");
    }
}
