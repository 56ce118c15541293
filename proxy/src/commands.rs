//! What the binary does: run the proxy, or one of the small commands that a pod's containers and hooks need of the same
//! image.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{Command, CommandLine};
use crate::{readiness, run};

/// Does what the command line says; errors go to standard error.
pub fn main(line: CommandLine) -> ExitCode {
    let result = match line.command {
        None => run::run(line.options).map_err(|error| (error.exit_code(), error.to_string())),
        Some(Command::ProveCapture) => return prove_capture(),
        Some(Command::Drain(args)) => drain(&args.admin_socket),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, reason)) => {
            eprintln!("byrnie-proxy: {reason}");
            ExitCode::from(code)
        }
    }
}

/// An exit code, and what to say.
type Failed = (u8, String);

fn prove_capture() -> ExitCode {
    let proved = match run::runtime() {
        Ok(runtime) => runtime.block_on(readiness::prove_as_application()),
        Err(error) => Err(error.to_string()),
    };
    match proved {
        Ok(()) => {
            println!("captured");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("not captured: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// For the proxy to answer on its socket; it does so at once.
const ANSWER: Duration = Duration::from_secs(5);
/// More than the answer to a drain has.
const MAX_ANSWER: u64 = 64 * 1024;

/// A hook of the pod: where the proxy is gone there is nothing left to drain, and a failure would only be noise.
fn drain(socket: &Path) -> Result<(), Failed> {
    let failed = |reason: String| (1, format!("{}: {reason}", socket.display()));
    match ask_to_drain(socket) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => {
            println!("the proxy drains");
            Ok(())
        }
        Ok(answer) => {
            let found = answer.lines().next().unwrap_or_default();
            Err(failed(format!("expected a proxy that drains, found {found:?}; is it the proxy's --admin-socket?")))
        }
        Err(error) if is_gone(&error) => {
            println!("no proxy answers on {}: nothing to drain", socket.display());
            Ok(())
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

fn ask_to_drain(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(b"POST /drain HTTP/1.1\r\nhost: proxy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}
