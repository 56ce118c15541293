//! `byrnie-injector`: see `--help`.

use std::process::ExitCode;

use byrnie_injector::{Arguments, LogFormat, run};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(reason) = start_log(&arguments) {
        eprintln!("byrnie-injector: --log {:?}: {reason}", arguments.log);
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("byrnie-injector: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(serve(&arguments))
}

async fn serve(arguments: &Arguments) -> ExitCode {
    // Before the start: a signal that comes during it is not lost.
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        eprintln!("byrnie-injector: signals can't be received");
        return ExitCode::FAILURE;
    };
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    match run(arguments.options(), end).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("byrnie-injector: {error}");
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
