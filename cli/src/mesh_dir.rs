//! Where a mesh on this machine keeps its sockets: `$XDG_RUNTIME_DIR/byrnie/NAME`, or `/tmp/byrnie-UID/NAME` where that
//! variable is not set. The latter stands in a directory that everyone may write to, so its owner and mode are checked
//! before anything in it is believed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::failure::{Exit, Failure};

/// Name of the control plane's socket in the mesh's directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Longest path of a Unix socket on Linux, in bytes, without its final zero (`unix(7)`).
const LONGEST_SOCKET_PATH: usize = 107;

/// Mode bits by which others could plant files.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The directory of the mesh `name`, whether it exists or not.
///
/// # Errors
/// A name that is not one path component of letters, digits, `-`, `_` and `.`, or a socket path too long for Linux.
pub fn of(name: &str) -> Result<PathBuf, Failure> {
    of_user(name, nix::unistd::geteuid().as_raw())
}

fn of_user(name: &str, uid: u32) -> Result<PathBuf, Failure> {
    check_name(name)?;
    let dir = base(uid).join(name);
    let socket = dir.join(CONTROL_SOCKET);
    if socket.as_os_str().len() > LONGEST_SOCKET_PATH {
        return Err(Failure::new(Exit::Usage, "the path of the mesh's socket is too long")
            .expected(format!("at most {LONGEST_SOCKET_PATH} bytes"))
            .found(socket.display())
            .next("choose a shorter --mesh NAME, or set XDG_RUNTIME_DIR to a shorter path"));
    }
    Ok(dir)
}

/// The control plane's socket of the mesh `name`, its directory's owner and mode checked.
///
/// # Errors
/// A bad name, or a directory that somebody else controls. A mesh that does not run is no error here.
pub fn control_socket(name: &str) -> Result<PathBuf, Failure> {
    let dir = of(name)?;
    for each in dir.parent().into_iter().chain([dir.as_path()]) {
        check_owner(each)?;
    }
    Ok(dir.join(CONTROL_SOCKET))
}

/// Makes the directory of the mesh `name` with the given mode, and the one above it if it is missing. `uid` is the
/// user's as it is outside of any user namespace that this process has made for itself.
///
/// # Errors
/// A bad name, a directory that somebody else controls, or what the kernel says.
pub fn create(name: &str, mode: u32, uid: u32) -> Result<PathBuf, Failure> {
    let dir = of_user(name, uid)?;
    for each in [base(uid), dir.clone()] {
        match fs::DirBuilder::new().mode(mode).create(&each) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(Failure::new(Exit::Refused, format!("cannot make {}", each.display()))
                    .found(error)
                    .next("set XDG_RUNTIME_DIR to a directory of your own"));
            }
        }
        check_owner(&each)?;
    }
    Ok(dir)
}

/// The directory of all meshes of a user.
fn base(uid: u32) -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(dir) => Path::new(&dir).join("byrnie"),
        None => Path::new("/tmp").join(format!("byrnie-{uid}")),
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 63 && !name.starts_with('.') && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "that is no name of a mesh")
        .expected("1 to 63 letters, digits, `-`, `_` or `.`, not beginning with `.`")
        .found(format!("{name:?}"))
        .next("byrnie --mesh demo …"))
}

fn check_owner(dir: &Path) -> Result<(), Failure> {
    let meta = match fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(Failure::new(Exit::Refused, format!("cannot look at {}", dir.display())).found(error));
        }
    };
    let me = nix::unistd::geteuid().as_raw();
    let mode = meta.mode() & 0o7777;
    if meta.is_dir() && meta.uid() == me && mode & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }
    Err(Failure::new(Exit::Refused, format!("{} can't be trusted", dir.display()))
        .expected(format!("a directory of UID {me} that nobody else may write to"))
        .found(format!(
            "{} of UID {}, mode {mode:04o}",
            if meta.is_dir() { "a directory" } else { "no directory" },
            meta.uid()
        ))
        .next("set XDG_RUNTIME_DIR to a directory of your own, or have that one removed"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_name_that_leaves_the_directory_is_a_usage_error() {
        for name in ["", "..", "a/b", "-\n", &"x".repeat(64)] {
            assert_eq!(of(name).unwrap_err().exit, Exit::Usage, "{name:?}");
        }
        assert!(of("demo-2").is_ok());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(check_owner(dir.path()).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert!(check_owner(dir.path()).is_ok());
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(check_owner(&link).is_err());
    }
}
