//! What scenarios do with an application's connection.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{DEADLINE, within};

/// How a connection ended, as an application sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// An orderly end: a `FIN` of TCP.
    Clean,
    /// A reset.
    Reset,
}

/// Says `words` and hears as many bytes back.
///
/// # Errors
/// The connection's end.
pub async fn exchange(stream: &mut TcpStream, words: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(words).await?;
    hear(stream, words.len()).await
}

/// Hears `count` bytes.
///
/// # Errors
/// The connection's end.
pub async fn hear(stream: &mut TcpStream, count: usize) -> io::Result<Vec<u8>> {
    let mut heard = vec![0; count];
    within("bytes from the other application", DEADLINE / 5, stream.read_exact(&mut heard)).await?;
    Ok(heard)
}

/// Ends its own direction and hears the rest.
///
/// # Errors
/// A reset.
pub async fn finish(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    stream.shutdown().await?;
    let mut rest = Vec::new();
    within("the other application's end", DEADLINE / 5, stream.read_to_end(&mut rest)).await?;
    Ok(rest)
}

/// Reads until the connection ends, and says how it did; what was read is dropped.
pub async fn ending(stream: &mut TcpStream) -> Ending {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return Ending::Clean,
            Ok(_) => {}
            Err(_) => return Ending::Reset,
        }
    }
}

/// Bytes in lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
