//! One plain HTTP request.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status; 0 when it makes no sense.
    pub status: u16,
    /// Head and body.
    pub text: String,
}

/// `GET`, on a connection of its own.
///
/// # Errors
/// What the connection says.
pub async fn get(at: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or_default();
    Ok(Answer { status, text })
}
