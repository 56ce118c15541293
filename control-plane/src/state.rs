//! The state directory: what survives a restart. It belongs to one control plane at a time, and only its user may
//! read it; the trust bundle inside is the one public file.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// A state directory that is ours until this value is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why a state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It can't be made, read or written.
    #[error(
        "state directory {path}: {action} failed: {source}; give a directory that this user may write with --state"
    )]
    Io {
        /// The directory or the file in it.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Another user's directory, with keys that the other user could read or replace.
    #[error(
        "state directory {path}: belongs to UID {owner}, and this process is UID {own}; give a directory of this user with --state"
    )]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// Others may write there, and there is something.
    #[error(
        "state directory {path}: has mode {mode:04o}, so that others may have put files there, and is not empty; \
         give a directory of its own with --state, or look through this one and `chmod 700` it"
    )]
    Shared {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another control plane holds it.
    #[error(
        "state directory {path}: in use by another control plane ({holder}); stop that one, or give another directory with --state"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
}

impl StateDir {
    /// Makes the directory (0700) where it is missing, and takes its lock.
    ///
    /// # Errors
    /// [`StateError`]: it can't be written, belongs to another user, or is in use.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |action| move |source| StateError::Io { path: path.to_owned(), action, source };
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("making it"))?;
        }
        let metadata = path.metadata().map_err(failed("reading it"))?;
        if !metadata.is_dir() {
            return Err(failed("opening it")(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let own = nix::unistd::geteuid().as_raw();
        if metadata.uid() != own {
            return Err(StateError::ForeignOwner { path: path.to_owned(), owner: metadata.uid(), own });
        }
        // Closing it would not undo what others have put there, such as links in the place of our files.
        let mut entries = path.read_dir().map_err(failed("listing it"))?;
        if metadata.mode() & 0o022 != 0 && entries.next().is_some() {
            return Err(StateError::Shared { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
        }
        if metadata.mode() & 0o077 != 0 {
            std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("making it private"))?;
        }
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Replaces a file whole: readers see the old or the new content, also after a crash.
///
/// # Errors
/// The file system's.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        // What a crash may have left. `create_new` follows no link that somebody put in its place.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
        return written;
    }
    File::open(directory)?.sync_all()
}

fn lock(directory: &Path) -> Result<File, StateError> {
    let path = directory.join("lock");
    let failed = |action| {
        let path = path.clone();
        move |source| StateError::Io { path, action, source }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed("opening the lock file"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.take(64).read_to_string(&mut holder);
            let holder = if holder.is_empty() { "its process is unknown".to_owned() } else { holder };
            return Err(StateError::InUse { path: directory.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(failed("locking it")(source)),
    }
    file.set_len(0).map_err(failed("writing the lock file"))?;
    write!(file, "process {}", std::process::id()).map_err(failed("writing the lock file"))?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_private_and_has_one_holder_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/state");
        let first = StateDir::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);

        let refused = StateDir::open(&path).unwrap_err();
        assert!(
            matches!(&refused, StateError::InUse { holder, .. } if holder == &format!("process {}", std::process::id()))
        );
        assert!(refused.to_string().contains("--state"), "{refused}");

        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_directory_where_others_may_have_put_something_is_refused_and_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("shared");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o1777)).unwrap();
        std::os::unix::fs::symlink("../victim", path.join("lock")).unwrap();
        let refused = StateDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains("1777") && refused.contains("--state"), "{refused}");
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o1777);
        std::fs::remove_file(path.join("lock")).unwrap();
        StateDir::open(&path).unwrap();
        assert!(!home.path().join("victim").exists());
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let victim = home.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let state = home.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(&victim, state.join(format!(".bundle.pem.{}", std::process::id()))).unwrap();
        write_atomically(&state.join("bundle.pem"), b"new", 0o644).unwrap();
        std::fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&victim, state.join("lock")).unwrap();
        assert!(StateDir::open(&state).is_err());
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_file_in_place_of_the_state_directory_is_refused_with_its_place() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        std::fs::write(&path, "x").unwrap();
        let refused = StateDir::open(&path).unwrap_err().to_string();
        assert!(refused.contains(path.to_str().unwrap()), "{refused}");
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_else_is_left() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("bundle.pem");
        write_atomically(&path, b"one", 0o644).unwrap();
        write_atomically(&path, b"two", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(home.path().read_dir().unwrap().count(), 1);
    }
}
