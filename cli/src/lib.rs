//! The `byrnie` command: what an operator types, and the demo that shows the whole mesh on one machine.
//!
//! [`args`] is the command tree, `commands` does what it says against a running control plane (over its Unix socket,
//! [`mesh_dir`], [`client`]) or in a Kubernetes cluster ([`cluster`], [`install`]), `demo` starts a mesh of its own, and
//! `apps` are the small applications that the demo puts into its pods.

mod apps;
pub mod args;
pub mod client;
pub mod cluster;
mod commands;
mod demo;
pub mod failure;
pub mod install;
pub mod mesh_dir;
pub mod output;
pub mod view;

use std::process::ExitCode;

use clap::Parser;

pub use failure::{Exit, Failure};

/// Reads the command line, does what it says, and returns the exit code that `--help` documents.
pub fn run() -> ExitCode {
    // In a pod of the demo this program starts once more to become another; nothing may come before.
    byrnie_netlab::shim::maybe_run();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing sensible is left to do where even the usage can't be printed.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() };
        }
    };
    match commands::dispatch(args) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::print_failure(&failure);
            failure.exit.into()
        }
    }
}
