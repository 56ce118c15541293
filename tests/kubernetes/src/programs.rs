//! Finds etcd, kube-apiserver and kubectl: in `KUBEBUILDER_ASSETS`, in the target directory, or by building them there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a test of the API server starts.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// The path of one of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The programs. Those that are missing are built first, which takes minutes once and shows its progress on standard
/// error.
///
/// # Errors
/// What is missing, and what would mend it.
pub fn programs() -> Result<Programs, String> {
    const NEEDED: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];
    let has_all = |directory: &Path| NEEDED.iter().all(|name| directory.join(name).is_file());
    if let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
        && has_all(&assets)
    {
        return Ok(Programs { directory: assets });
    }
    // A run as another user finds what was built before beside its own binaries.
    let target = target_directory()?;
    let built = target.join("kubernetes/bin");
    if !has_all(&built) {
        build(&target)?;
    }
    if has_all(&built) { Ok(Programs { directory: built }) } else { Err(advice("the build left something out")) }
}

fn build(target: &Path) -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
    let status = Command::new(&script)
        .arg("api-server")
        .env("CARGO_TARGET_DIR", target)
        .stdout(Stdio::null())
        .status()
        .map_err(|error| advice(&format!("{}: {error}", script.display())))?;
    if status.success() { Ok(()) } else { Err(advice(&format!("{} ended with {status}", script.display()))) }
}

fn advice(found: &str) -> String {
    format!(
        "expected etcd, kube-apiserver and kubectl; found: {found}; run tests/kubernetes/build, or set KUBEBUILDER_ASSETS"
    )
}

/// `target`, seen from `target/PROFILE/deps/` or `target/PROFILE/`, where this program is.
fn target_directory() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| advice(&format!("no path of this program: {error}")))?;
    let directory = own.parent().unwrap_or(Path::new("/"));
    let profile = if directory.ends_with("deps") { directory.parent().unwrap_or(Path::new("/")) } else { directory };
    Ok(profile.parent().unwrap_or(profile).to_owned())
}
