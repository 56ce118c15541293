//! Finds the binaries under test: beside this test's own, in `target/PROFILE/`.

use std::path::{Path, PathBuf};

/// The path of a binary of the project.
///
/// # Panics
/// When it was not built, with the command that does.
pub(crate) fn binary(name: &str) -> PathBuf {
    let profile = profile_directory();
    let path = profile.join(name);
    if !path.is_file() {
        let release = if profile.ends_with("release") { " --release" } else { "" };
        panic!("{} is not there; run `cargo build{release}` first", path.display());
    }
    path
}

fn profile_directory() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let deps = own.parent().unwrap_or(Path::new("."));
    if deps.ends_with("deps") { deps.parent().unwrap_or(deps).to_owned() } else { deps.to_owned() }
}
