//! `byrnie-control-plane`: see `--help`.

use std::{pin::pin, process::ExitCode};

use byrnie_control_plane::{Arguments, ControlPlane, LogFormat};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(reason) = start_log(&arguments) {
        eprintln!("byrnie-control-plane: --log {:?}: {reason}", arguments.log);
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("byrnie-control-plane: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(serve(&arguments))
}

async fn serve(arguments: &Arguments) -> ExitCode {
    // Before the start: a signal that comes during it is not lost.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        eprintln!("byrnie-control-plane: signals can't be received");
        return ExitCode::FAILURE;
    };
    let mut end = pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let started = tokio::select! {
        started = ControlPlane::start(arguments.options()) => started,
        // It may be waiting for an API server.
        () = &mut end => return ExitCode::SUCCESS,
    };
    let plane = match started {
        Ok(plane) => plane,
        Err(problems) => {
            for problem in &problems.0 {
                eprintln!("byrnie-control-plane: {problem}");
            }
            return ExitCode::FAILURE;
        }
    };
    match plane.run(end).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("byrnie-control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(arguments: &Arguments) -> Result<(), String> {
    let filter: Targets = arguments.log.parse().map_err(|error| format!("{error}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(filter);
    match arguments.log_format {
        LogFormat::Text => log.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => log.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(|error| error.to_string())
}
