//! The loads. Each is one function: where from, where to, how long; what came out, or a failure that voids the sample.
//! Those of our own run on a thread in the client's namespace, on the same cores as everything else.

use std::path::PathBuf;
use std::process::Output;

use byrnie_netlab::{Host, RunAs};

use crate::failure::{Failure, Result, doing};

pub(crate) mod connections;
pub(crate) mod h2load;
pub(crate) mod idle;
pub(crate) mod iperf;
pub(crate) mod open_loop;
pub(crate) mod wrk;

/// What a load of requests came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Requests {
    /// How many were answered.
    pub(crate) count: f64,
    /// How many in a second.
    pub(crate) per_second: f64,
}

/// Runs a program in the client's namespace and returns what it printed.
fn printed(host: &Host, program: PathBuf, arguments: &[String]) -> Result<String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let command = host.command(program).user(RunAs::Application { uid: 1000 }).args(arguments);
    let Output { status, stdout, stderr } = command.output().map_err(doing(&name))?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&stderr).into_owned();
    let end = |text: &str| text.lines().rev().take(3).collect::<Vec<_>>().join(" / ");
    Err(Failure::new(format!("{name}: {status}: {} {}", end(&errors), end(&text))))
}

/// A runtime for a load of our own, on the calling thread.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(doing("a runtime"))
}
