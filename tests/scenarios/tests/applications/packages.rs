//! Where the applications are, which this project neither builds nor ships.

use std::path::{Path, PathBuf};

use byrnie_scenarios::missing;

/// A program of Debian's.
///
/// # Errors
/// That it is missing, and the command that installs it.
pub(crate) fn program(name: &str, package: &str) -> Result<PathBuf, String> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from).into_iter().chain(postgresql());
    let found = places.map(|place| place.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| missing(&format!("{package} is missing (apt-get install {package})")))
}

/// The interpreter of Python that has the packages of `applications/requirements.txt`.
///
/// # Errors
/// As [`program`].
pub(crate) fn python() -> Result<PathBuf, String> {
    let place = std::env::var_os("BYRNIE_APPLICATIONS").map(PathBuf::from).or_else(|| {
        let own = std::env::current_exe().ok()?;
        // target/PROFILE/deps/PROGRAM
        Some(own.ancestors().nth(3)?.join("tools/applications"))
    });
    let found = place.map(|place| place.join("bin/python3")).filter(|path| path.is_file());
    found.ok_or_else(|| missing("target/tools/applications is missing (tests/run rigs makes it)"))
}

/// Debian puts each version's programs beside the others'; the newest of them.
fn postgresql() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions.map(|entry| entry.path()).max_by_key(|path| version(path))?;
    Some(newest.join("bin"))
}
