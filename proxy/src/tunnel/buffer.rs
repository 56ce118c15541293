//! A byte queue that owns no memory while it is empty and released.

use std::io;

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
        self.data.resize(before + room, 0);
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
    use super::*;

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
