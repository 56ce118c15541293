//! `byrnie-capture`: the container that sets a pod's capture up, with NET_ADMIN alone, and ends. It is a program of its own,
//! so that the one that runs beside the application for the pod's whole life, and holds its key, has no code that changes
//! rules, and is half a megabyte smaller for it.

use std::process::ExitCode;

use byrnie_redirect::CaptureError;
use byrnie_redirect::command::{CaptureCommand, CommandError, Done, require_whole, run};
use clap::{Args, Parser};

/// The command line of `byrnie-capture`.
#[derive(Debug, Parser)]
#[command(
    name = "byrnie-capture",
    version,
    about = "Traffic capture for the Byrnie service mesh, in the network namespace that this runs in",
    long_about = "Traffic capture for the Byrnie service mesh, in the network namespace that this runs in.\n\n\
        Rules that send the TCP connections of a pod's applications to `byrnie-proxy`, which runs beside them. Needs \
        CAP_NET_ADMIN in that namespace. People have the same as `byrnie capture`.",
    after_long_help = "EXAMPLE\n  \
        What the injector's container does in a pod:\n\n    \
        byrnie-capture apply --prove --exempt uid:1500\n\n\
        EXIT CODES\n  \
        0  done\n  1  the rules could not be changed or read, are not whole, or were not seen to work\n  \
        2  the command line is wrong"
)]
struct CommandLine {
    #[command(subcommand)]
    command: CaptureCommand<NoOptions>,
}

/// `show` has no choices.
#[derive(Debug, Args)]
struct NoOptions {}

fn main() -> ExitCode {
    let Err(error) = done(CommandLine::parse().command) else { return ExitCode::SUCCESS };
    eprintln!("byrnie-capture: {error}");
    let usage = matches!(error, CommandError::Capture(CaptureError::Invalid(_)));
    ExitCode::from(if usage { 2 } else { 1 })
}

fn done(command: CaptureCommand<NoOptions>) -> Result<(), CommandError> {
    match run(command)? {
        Done::Said(text) => println!("{text}"),
        Done::Shown(NoOptions {}, states) => {
            states.iter().for_each(|state| print!("{state}"));
            require_whole(&states)?;
        }
    }
    Ok(())
}
