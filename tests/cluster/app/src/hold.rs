//! One connection, kept busy.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an echo may take before the connection counts as dead.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// HOST:PORT of a TCP echo.
    to: String,
}

/// Says `open` after the first echo, and at the end `ended at UNIX-MILLISECONDS after MILLISECONDS`. Fails when there was no
/// echo at all.
pub(crate) async fn run(options: &Options) -> ExitCode {
    let begun = Instant::now();
    let mut stream = match TcpStream::connect(&options.to).await {
        Ok(stream) => stream,
        Err(error) => {
            println!("refused: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut opened = false;
    while echo(&mut stream).await {
        if !opened {
            println!("open");
            opened = true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    println!("ended at {} after {}", now.as_millis(), begun.elapsed().as_millis());
    if opened { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn echo(stream: &mut TcpStream) -> bool {
    let mut heard = [0; 5];
    let exchange = async {
        stream.write_all(b"echo\n").await?;
        stream.read_exact(&mut heard).await
    };
    matches!(tokio::time::timeout(PATIENCE, exchange).await, Ok(Ok(_))) && &heard == b"echo\n"
}
