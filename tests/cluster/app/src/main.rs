//! The application that the cluster tests run in their pods. It knows nothing of a mesh.
//!
//! `serve` answers HTTP, HTTPS, TCP and gRPC's health protocol; the file `/tmp/unhealthy` makes it unhealthy. `load` asks
//! at a constant rate and counts; `hold` keeps one connection open and says when it ended.
#![allow(clippy::print_stdout)]

use std::process::ExitCode;

use clap::Parser;

mod hold;
mod load;
mod serve;

#[derive(Debug, Parser)]
enum Command {
    /// Serve until SIGTERM.
    Serve(serve::Options),
    /// Ask again and again, each time on a new connection, and count.
    Load(load::Options),
    /// Keep a connection to a TCP echo open.
    Hold(hold::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Command::parse() {
        Command::Serve(options) => serve::run(options).await,
        Command::Load(options) => load::run(&options).await,
        Command::Hold(options) => hold::run(&options).await,
    }
}
