//! Makes the binaries and the demo's directory reachable for other UIDs.
//!
//! As root, proxies run with a UID of their own, and so do applications. Where the way to the binary or to a socket
//! leads through a directory that only root may enter (`/root`, `/run/user/0`), they could not follow it. Instead of
//! changing that directory, an empty one is mounted over it, in the mount namespace that the demo has for itself, with
//! nothing in it but the way. Paths stay what they are outside.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::directory::MeshDir;
use crate::failure::{Exit, Failure};

/// Others may go through.
const SEARCHABLE: u32 = 0o001;

/// Makes the way to the binaries and to `dir` passable, and keeps the way to `also` and to the working directory.
pub(super) fn make_reachable(dir: &MeshDir, also: Option<&Path>) -> Result<(), Failure> {
    reach(dir, also).map_err(|error| {
        Failure::new(Exit::KernelCannot, "cannot make the demo's files reachable for the proxies' UID")
            .expected("to mount an empty directory over a private one, in a mount namespace of our own")
            .found(error)
            .next("put the binaries and XDG_RUNTIME_DIR where every user may look, or run without root")
    })
}

fn reach(dir: &MeshDir, also: Option<&Path>) -> io::Result<()> {
    let exe = std::env::current_exe()?;
    let binaries = exe.parent().unwrap_or(Path::new("/")).to_owned();
    // The one above the mesh's own, so that the mesh's own can be removed in the end.
    let meshes = dir.path().parent().unwrap_or(Path::new("/"));
    let mut kept = vec![binaries, fs::canonicalize(meshes)?];
    kept.extend(also.and_then(|path| fs::canonicalize(path).ok()));
    kept.extend(std::env::current_dir().ok());
    let mut blocked: Vec<PathBuf> = kept.iter().take(2).filter_map(|path| first_blocked(path)).collect();
    blocked.sort();
    blocked.dedup();
    for ancestor in blocked {
        cover(&ancestor, &kept)?;
    }
    Ok(())
}

/// The first directory on the way that others may not enter.
fn first_blocked(path: &Path) -> Option<PathBuf> {
    let mut way: Vec<&Path> = path.ancestors().collect();
    way.reverse();
    let closed = |part: &&&Path| fs::metadata(part).is_ok_and(|meta| meta.mode() & SEARCHABLE == 0);
    way.iter().find(closed).map(|part| part.to_path_buf())
}

/// Mounts an empty directory over `ancestor`, and in it again those of `kept` that were below.
fn cover(ancestor: &Path, kept: &[PathBuf]) -> io::Result<()> {
    let below: Vec<(&PathBuf, fs::File)> = kept
        .iter()
        .filter(|path| path.starts_with(ancestor))
        .map(|path| {
            let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY;
            Ok((path, fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?))
        })
        .collect::<io::Result<_>>()?;
    mount(Some("byrnie"), ancestor, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("size=1m,mode=0755"))?;
    for (path, was) in below {
        fs::create_dir_all(path)?;
        let source = format!("/proc/self/fd/{}", was.as_raw_fd());
        mount(Some(source.as_str()), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    }
    // The working directory still points below the mount; going there again leads to the same files, by the new way.
    if let Ok(here) = std::env::current_dir() {
        let _ = std::env::set_current_dir(here);
    }
    Ok(())
}
