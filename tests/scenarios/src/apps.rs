//! Applications that know nothing of the mesh: handlers for [`crate::Pod::serve`].

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What [`greet`] says first.
pub const GREETING: &[u8] = b"220 orders ready\r\n";

/// Says back what it hears, and ends when the client does.
pub async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    let _ = stream.shutdown().await;
}

/// Says back what it hears first, and ends with that.
pub async fn answer_once(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    if let Ok(count) = stream.read(&mut buffer).await
        && stream.write_all(&buffer[..count]).await.is_ok()
        && stream.shutdown().await.is_ok()
    {
        // Until the client has ended as well: what it says is of no interest.
        while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
    }
}

/// Says back what it hears, each time in two writes that Nagle's algorithm (RFC 896) does not let go at once.
pub async fn echo_in_two(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    let _ = stream.set_nodelay(false);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let (first, second) = buffer[..count].split_at(count / 2);
        if stream.write_all(first).await.is_err() || stream.write_all(second).await.is_err() {
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// Speaks first, then echoes.
pub async fn greet(mut stream: TcpStream) {
    if stream.write_all(GREETING).await.is_ok() {
        echo(stream).await;
    }
}

/// Hears everything, and answers with the number of bytes only when the client has ended.
pub async fn count(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0_u64;
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => total += count as u64,
            Err(_) => return,
        }
    }
    let _ = stream.write_all(&total.to_be_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Takes what comes and never ends by itself.
pub async fn hold(mut stream: TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
    std::future::pending::<()>().await;
}

/// Reads a little, then resets the connection.
pub async fn reset(mut stream: TcpStream) {
    let mut buffer = [0; 4];
    let _ = stream.read_exact(&mut buffer).await;
    reset_now(stream);
}

/// Resets a connection: what is lost on the way must never look like a clean end.
pub fn reset_now(stream: TcpStream) {
    let _ = stream.set_zero_linger();
    drop(stream);
}
