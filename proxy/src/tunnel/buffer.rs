//! A byte queue that owns no memory while it is empty and released.

use std::io::{self, IoSlice};

use bytes::BufMut;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::limits::BUFFER_MIN;

/// Reads once, at most `room` bytes, to the end of `into`. A read that gives less than it was asked for has emptied the
/// socket, and epoll tells of whatever comes next (epoll(7)): the runtime is told so at once, which saves the read that
/// would only say it. That was a third of the system calls of a request.
///
/// # Errors
/// Those of the socket; `WouldBlock` where nothing is there.
pub(crate) fn read_some(socket: &TcpStream, into: &mut Vec<u8>, room: usize) -> io::Result<usize> {
    let mut count = 0;
    let read = socket.try_io(Interest::READABLE, || {
        count = socket.try_read_buf(&mut into.limit(room))?;
        if count > 0 && count < room { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && count > 0 => Ok(count),
        other => other,
    }
}

/// How much the next read asks for. A read that was filled makes it grow; one that was nearly empty makes it shrink, and
/// not the silence between two bursts: a connection that carried the one carries the other.
pub(crate) struct ReadSize(usize);

impl ReadSize {
    pub(crate) fn bytes(&self) -> usize {
        self.0
    }

    /// Learns from a read of `count` bytes. `most`: what it grows to.
    pub(crate) fn adapt(&mut self, count: usize, most: usize) {
        if count >= self.0 {
            self.0 = (self.0 * 4).min(most);
        } else if count < self.0 / 64 {
            self.0 = (self.0 / 4).max(BUFFER_MIN);
        }
    }
}

impl Default for ReadSize {
    fn default() -> ReadSize {
        ReadSize(BUFFER_MIN)
    }
}

/// Bytes between what was taken from the front and what was put at the end.
#[derive(Default)]
pub(crate) struct Buffer {
    data: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn len(&self) -> usize {
        self.data.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn filled(&self) -> &[u8] {
        self.data.get(self.start..).unwrap_or_default()
    }

    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        self.data.get_mut(self.start..).unwrap_or_default()
    }

    /// Drops `count` bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.data.len());
        if self.start == self.data.len() {
            self.data.clear();
            self.start = 0;
        }
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.compact();
        self.data.extend_from_slice(bytes);
    }

    /// Appends what lies behind the first `count` bytes of `pieces`.
    pub(crate) fn extend_behind(&mut self, mut count: usize, pieces: &[IoSlice<'_>]) {
        for piece in pieces {
            self.extend(piece.get(count..).unwrap_or_default());
            count = count.saturating_sub(piece.len());
        }
    }

    /// Makes room for `room` more bytes, and no more than that.
    pub(crate) fn reserve(&mut self, room: usize) {
        self.compact();
        self.data.reserve_exact(room);
    }

    /// Lets `read` append to the end, with room for at least `room` bytes. `read` returns how many it appended.
    pub(crate) fn read_from(
        &mut self,
        room: usize,
        read: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.reserve(room);
        read(&mut self.data)
    }

    /// Lets `write` fill up to `room` bytes at the end; it returns how many it filled.
    pub(crate) fn append<E>(
        &mut self,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        self.compact();
        let before = self.data.len();
        if before == 0 {
            // The allocator knows which of its memory is zeroed already.
            self.data = vec![0; room];
        } else {
            self.data.resize(before + room, 0);
        }
        let written = write(self.data.get_mut(before..).unwrap_or_default());
        self.data.truncate(before + written.as_ref().map_or(0, |count| (*count).min(room)));
        written.map(drop)
    }

    /// Gives the memory back if there is nothing in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() && self.data.capacity() > 0 {
            *self = Buffer::default();
        }
    }

    /// Gives back what is not filled.
    pub(crate) fn shrink(&mut self) {
        self.compact();
        self.data.shrink_to_fit();
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.data.capacity()
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.data.drain(..self.start);
            self.start = 0;
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(data: Vec<u8>) -> Buffer {
        Buffer { data, start: 0 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::task::Poll;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn after_a_short_read_the_socket_is_known_to_be_empty_and_what_comes_next_is_heard() {
        let (ours, mut theirs) = pair().await;
        let mut heard = Vec::new();
        for words in [&b"abc"[..], b"d"] {
            theirs.write_all(words).await.unwrap();
            ours.readable().await.unwrap();
            assert_eq!(read_some(&ours, &mut heard, 8).unwrap(), words.len());
            let ready = std::future::poll_fn(|cx| Poll::Ready(ours.poll_read_ready(cx))).await;
            assert!(ready.is_pending(), "no read has asked whether there is more");
        }
        drop(theirs);
        ours.readable().await.unwrap();
        assert_eq!(read_some(&ours, &mut heard, 8).unwrap(), 0);
        assert_eq!(heard, b"abcd");
    }

    #[tokio::test]
    async fn what_is_left_after_a_full_read_and_an_end_right_behind_it_are_heard() {
        let (ours, mut theirs) = pair().await;
        theirs.write_all(b"abcdef").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut heard = Vec::new();
        loop {
            ours.readable().await.unwrap();
            match read_some(&ours, &mut heard, 4) {
                Ok(0) => break,
                Ok(count) => assert!(count <= 4),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(heard, b"abcdef");
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, theirs)
    }

    #[test]
    fn a_read_size_follows_the_bursts_and_not_the_silence() {
        let mut size = ReadSize::default();
        let learnt: Vec<usize> = [4096, 300, 16 * 1024, 64 * 1024, 900, 200, 60]
            .into_iter()
            .map(|count| {
                size.adapt(count, 64 * 1024);
                size.bytes() / 1024
            })
            .collect();
        assert_eq!(learnt, [16, 16, 64, 64, 16, 4, 4]);
    }

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let mut buffer = Buffer::default();
        buffer.extend(b"abc");
        buffer.consume(1);
        buffer.extend(b"de");
        buffer
            .append(10, |out| {
                out[0] = b'f';
                Ok::<_, ()>(1)
            })
            .unwrap();
        assert_eq!(buffer.filled(), b"bcdef");
        buffer.consume(99);
        assert!(buffer.is_empty());
    }

    #[test]
    fn of_pieces_that_were_written_in_part_the_rest_is_kept() {
        let pieces = [&b"abc"[..], b"", b"de", b"f"].map(IoSlice::new);
        for written in 0..=6 {
            let mut buffer = Buffer::default();
            buffer.extend_behind(written, &pieces);
            assert_eq!(buffer.filled(), &b"abcdef"[written..]);
        }
    }

    #[test]
    fn an_empty_released_buffer_owns_no_memory() {
        let mut buffer = Buffer::default();
        buffer.extend(&[0; 4096]);
        buffer.consume(4096);
        buffer.release();
        assert_eq!(buffer.data.capacity(), 0);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let mut buffer = Buffer::default();
        assert_eq!(buffer.append(8, |_| Err::<usize, _>("no")), Err("no"));
        assert!(buffer.is_empty());
    }
}
