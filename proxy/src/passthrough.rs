//! Plaintext legs: bytes that are moved as they are, from one socket to the other through a pipe in the kernel
//! (`splice(2)`), and counted by what the kernel says it moved.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::unistd::pipe2;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::limits::BUFFER_APPLICATION;
use crate::streams::{Cut, Registered};

/// How a plaintext leg ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides had ended.
    Clean,
    /// One of the connections broke.
    Broken(io::Error),
    /// It may not go on.
    Cut(Cut),
}

impl End {
    /// A label from a closed set.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            End::Clean => "clean",
            End::Broken(_) => "reset-by-peer",
            End::Cut(cut) => cut.cause,
        }
    }

    /// The sentence for the log; `None` where the label says it all.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            End::Clean => None,
            End::Broken(error) => Some(error.to_string()),
            End::Cut(cut) => Some(cut.reason.clone()),
        }
    }
}

/// What moved, in bytes, seen from the application's side, and how it ended.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) end: End,
}

/// What was read from a connection before it was known where it belongs: it goes first.
pub(crate) struct Waiting<'a> {
    /// From the application.
    pub(crate) up: &'a [u8],
    /// For the application.
    pub(crate) down: &'a [u8],
}

/// Moves bytes between `application` and `other` until both have ended, beginning with what waits. A side that ends is
/// half-closed on the other. Nothing is reset here: where the end is not clean, the caller drops both with a reset.
pub(crate) async fn relay(
    application: &TcpStream,
    other: &TcpStream,
    stream: &Registered<'_>,
    waiting: Waiting<'_>,
) -> Moved {
    let (mut sent, mut received) = (0, 0);
    let end = {
        let up = one_way(application, other, stream, waiting.up, &mut sent);
        let down = one_way(other, application, stream, waiting.down, &mut received);
        tokio::select! {
            cut = stream.cut_off() => End::Cut(cut),
            moved = async { tokio::try_join!(up, down) } => match moved {
                Ok(_) => End::Clean,
                Err(error) => End::Broken(error),
            },
        }
    };
    Moved { sent, received, end }
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    stream: &Registered<'_>,
    mut waiting: &[u8],
    moved: &mut u64,
) -> io::Result<()> {
    let mut count = |bytes: usize| {
        *moved += bytes as u64;
        stream.touch();
    };
    while !waiting.is_empty() {
        let written = write(to, waiting).await?;
        count(written);
        waiting = waiting.get(written..).unwrap_or_default();
    }
    // The pipe is made when there is something to move: an idle connection holds none.
    from.readable().await?;
    let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    loop {
        let filled = fill(from, &into).await?;
        if filled == 0 {
            stream.set_half_closed();
            // A side that is gone already has no use for the news.
            let _ = SockRef::from(to).shutdown(std::net::Shutdown::Write);
            return Ok(());
        }
        let mut left = filled;
        while left > 0 {
            let drained = drain(&out, to, left).await?;
            if drained == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            // Each piece counts: a reader may be so slow that one pipe's content takes minutes.
            count(drained);
            left = left.saturating_sub(drained);
        }
    }
}

async fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        to.writable().await?;
        match to.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

async fn fill(from: &TcpStream, into: &OwnedFd) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_io(Interest::READABLE, || move_bytes(from, into, BUFFER_APPLICATION)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

async fn drain(out: &OwnedFd, to: &TcpStream, left: usize) -> io::Result<usize> {
    loop {
        to.writable().await?;
        match to.try_io(Interest::WRITABLE, || move_bytes(out, to, left)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

fn move_bytes(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
    Ok(splice(from, None, to, None, most, flags)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::streams::{Grounds, Streams};
    use crate::test_support::connected;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const GROUNDS: fn() -> Grounds = || Grounds::InboundPlaintext { source: [10, 0, 0, 1].into(), port: 80 };

    #[tokio::test]
    async fn what_waits_goes_first_and_both_ways_end_on_their_own() {
        let ((mut client, application), (mut server, other)) = (connected().await, connected().await);
        let streams = Streams::new();
        let registered = streams.register(GROUNDS(), None);
        let waiting = Waiting { up: b"first, ", down: b"" };
        let carried = relay(&application, &other, &registered, waiting);
        let (moved, ()) = tokio::join!(carried, async {
            client.write_all(b"second").await.unwrap();
            client.shutdown().await.unwrap();
            let mut request = vec![];
            server.read_to_end(&mut request).await.unwrap();
            assert_eq!(request, b"first, second");
            server.write_all(&[7; 300_000]).await.unwrap();
            server.shutdown().await.unwrap();
            let mut answer = vec![];
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer.len(), 300_000);
        });
        assert!(matches!(moved.end, End::Clean), "{moved:?}");
        assert_eq!((moved.sent, moved.received), (13, 300_000));
    }

    #[tokio::test]
    async fn a_reset_on_either_side_is_no_clean_end() {
        for client_resets in [true, false] {
            let ((client, application), (server, other)) = (connected().await, connected().await);
            let streams = Streams::new();
            let registered = streams.register(GROUNDS(), None);
            let (resets, _stays) = if client_resets { (client, server) } else { (server, client) };
            resets.set_zero_linger().unwrap();
            drop(resets);
            let moved = relay(&application, &other, &registered, Waiting { up: b"", down: b"" }).await;
            assert!(matches!(moved.end, End::Broken(_)), "{moved:?}");
        }
    }
}
