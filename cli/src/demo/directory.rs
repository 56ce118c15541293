//! The demo's directory: sockets, keys, logs. One demo of a name runs at a time; what a killed one left is removed by
//! the next, and a demo that ends removes it all.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use byrnie_netlab::Privileges;

use super::Options;
use crate::failure::{Exit, Failure};
use crate::mesh_dir;

/// Name of the file whose lock says that a demo runs.
const LOCK: &str = "lock";

/// The directory; removed when this is dropped.
#[derive(Debug)]
pub(super) struct MeshDir {
    path: PathBuf,
    /// The directory above the one of all meshes, as it was before anything was mounted over it.
    above: File,
    _lock: File,
}

impl MeshDir {
    /// Makes it, empty.
    pub(super) fn create(options: &Options) -> Result<Self, Failure> {
        // Proxies with a UID of their own must get through to their own directory, and see nothing else.
        let mode = match options.privileges {
            Privileges::Root => 0o711,
            Privileges::SingleUid => 0o700,
        };
        let path = mesh_dir::create(&options.mesh, mode, outer_uid(options.privileges))?;
        let lock = lock(&path, &options.mesh)?;
        let above = above(&path).map_err(|error| {
            Failure::new(Exit::Refused, format!("cannot look above {}", path.display())).found(error)
        })?;
        let dir = Self { path, above, _lock: lock };
        dir.clear().map_err(|error| dir.failed("empty", &error))?;
        for name in ["source", "state", "logs", "pods"] {
            let mode = if name == "pods" { 0o711 } else { 0o700 };
            let made = fs::DirBuilder::new().mode(mode).create(dir.join(name));
            made.map_err(|error| dir.failed("write", &error))?;
        }
        Ok(dir)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Something in it.
    pub(super) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The control plane's socket.
    pub(super) fn control_socket(&self) -> PathBuf {
        self.join(mesh_dir::CONTROL_SOCKET)
    }

    /// A failure of something in it.
    pub(super) fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(Exit::Refused, format!("cannot {what} {}", self.path.display()))
            .found(error)
            .next("set XDG_RUNTIME_DIR to a directory of your own with some room")
    }

    /// The same directory by a way that no mount blocks.
    fn below(&self) -> PathBuf {
        let names = self.path.components().rev().take(2).collect::<Vec<_>>();
        let above = PathBuf::from(format!("/proc/self/fd/{}", self.above.as_raw_fd()));
        names.into_iter().rev().fold(above, |path, name| path.join(name))
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.below())? {
            let entry = entry?;
            if entry.file_name() == LOCK {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for MeshDir {
    fn drop(&mut self) {
        // The lock goes last; another demo of the same name may be waiting for it.
        let below = self.below();
        let cleared = self.clear().and_then(|()| fs::remove_file(below.join(LOCK)));
        if let Err(error) = cleared.and_then(|()| fs::remove_dir(&below)) {
            let _ = io::Write::write_all(
                &mut io::stderr(),
                format!("byrnie: left behind in {}: {error}\n", self.path.display()).as_bytes(),
            );
        }
        // Fails where another demo lives beside it.
        let _ = below.parent().map(fs::remove_dir);
    }
}

fn above(path: &Path) -> io::Result<File> {
    let above = path.ancestors().nth(2).unwrap_or(Path::new("/"));
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
    fs::OpenOptions::new().read(true).custom_flags(flags).open(above)
}

/// The user's UID outside of the user namespace that the demo made, by which the directory is named.
fn outer_uid(privileges: Privileges) -> u32 {
    let own = nix::unistd::geteuid().as_raw();
    match privileges {
        Privileges::Root => own,
        Privileges::SingleUid => {
            // `inside outside count`, user_namespaces(7).
            let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            map.split_whitespace().nth(1).and_then(|uid| uid.parse().ok()).unwrap_or(own)
        }
    }
}

fn lock(path: &Path, name: &str) -> Result<File, Failure> {
    let in_use = || {
        Failure::new(Exit::Usage, format!("a mesh named `{name}` runs already"))
            .expected(format!("nobody at {}", path.display()))
            .next(format!("byrnie --mesh {name}-2 demo   (or end the other one with Ctrl-C)"))
    };
    let file = File::options().create(true).truncate(false).write(true).open(path.join(LOCK));
    let file =
        file.map_err(|error| Failure::new(Exit::Refused, format!("cannot write {}", path.display())).found(error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use()),
        Err(TryLockError::Error(error)) => {
            return Err(Failure::new(Exit::Refused, format!("cannot lock {}", path.display())).found(error));
        }
    }
    // Somebody's own control plane may serve here without being a demo.
    match std::os::unix::net::UnixStream::connect(path.join(mesh_dir::CONTROL_SOCKET)) {
        Ok(_) => Err(in_use()),
        Err(_) => Ok(file),
    }
}
