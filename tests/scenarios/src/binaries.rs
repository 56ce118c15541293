//! Finds the binaries under test: beside this test's own, in `target/PROFILE/`.

use std::path::{Path, PathBuf};

/// Whether everything that scenarios start is there.
///
/// # Errors
/// What is missing, and the command that makes it.
pub fn binaries_are_built() -> Result<(), String> {
    ["byrnie", "byrnie-proxy", "byrnie-control-plane"].into_iter().try_for_each(binary_is_built)
}

/// Whether a binary of the project is there.
///
/// # Errors
/// As [`binaries_are_built`].
pub fn binary_is_built(name: &str) -> Result<(), String> {
    find(name).map(|_| ())
}

/// The path of a binary of the project.
///
/// # Panics
/// When it was not built, with the command that does.
pub fn binary(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|advice| panic!("{advice}"))
}

fn find(name: &str) -> Result<PathBuf, String> {
    let profile = profile_directory();
    let path = profile.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let release = if profile.ends_with("release") { " --release" } else { "" };
    Err(format!("{} is not there; run `cargo build{release}` first", path.display()))
}

fn profile_directory() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let deps = own.parent().unwrap_or(Path::new("."));
    if deps.ends_with("deps") { deps.parent().unwrap_or(deps).to_owned() } else { deps.to_owned() }
}

/// That something is not there which this project neither builds nor ships.
///
/// # Panics
/// Where everything has to be there (`BYRNIE_REQUIRE_LAB`).
pub fn missing(what: &str) -> String {
    assert!(std::env::var_os("BYRNIE_REQUIRE_LAB").is_none(), "{what}");
    what.to_owned()
}
