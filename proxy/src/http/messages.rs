//! Where the messages of one direction begin and end (RFC 9112, 6 and 7). Bytes are kept only where a head or a line came
//! in pieces.

use memchr::{memchr, memmem};

use crate::limits::{HTTP_HEAD, HTTP_LINE};

/// Why a connection is not followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is something else from here on, as both ends know.
    Over,
    /// It is no HTTP/1, or such that two readers might read it in two ways.
    Unclear,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
    UntilEnd,
}

/// Who knows what heads mean.
pub(super) trait Side {
    /// Takes a whole head, with its empty line, and says what follows.
    fn head(&mut self, head: &[u8]) -> Result<Body, Stop>;

    /// The message has ended.
    fn ended(&mut self) -> Result<(), Stop>;
}

/// The messages of one direction, as far as they have come.
#[derive(Default)]
pub(super) struct Messages {
    at: At,
    /// The beginning of the head or line that has not come whole.
    kept: Vec<u8>,
}

/// A head or a line that has come whole, and what came behind it.
type Gathered<'a, 'b> = (&'a [u8], &'b [u8]);

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, Default)]
enum At {
    #[default]
    Head,
    /// Bytes of the body that are to come.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Lines behind the last chunk; the bytes of them that have come.
    Trailers(usize),
    UntilEnd,
}

impl Messages {
    /// Follows `bytes`, which come behind those of the last call.
    pub(super) fn follow(&mut self, mut bytes: &[u8], side: &mut impl Side) -> Result<(), Stop> {
        while !bytes.is_empty() {
            bytes = match self.at {
                At::Head => self.head(bytes, side)?,
                At::Body(left) | At::Chunk(left) => self.skip(bytes, left, side)?,
                At::ChunkSize | At::ChunkEnd | At::Trailers(_) => self.line(bytes, side)?,
                At::UntilEnd => return Ok(()),
            };
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    fn head<'b>(&mut self, bytes: &'b [u8], side: &mut impl Side) -> Result<&'b [u8], Stop> {
        // The end may lie across what is kept and what has come.
        let from = self.kept.len().saturating_sub(2);
        let Some((head, rest)) = self.gather(bytes, HTTP_HEAD, |all| head_end(all, from))? else {
            return Ok(&[]);
        };
        let body = side.head(head);
        self.kept = Vec::new();
        self.at = match body? {
            Body::Length(0) => return self.ended(rest, side),
            Body::Length(length) => At::Body(length),
            Body::Chunked => At::ChunkSize,
            Body::UntilEnd => At::UntilEnd,
        };
        Ok(rest)
    }

    fn skip<'b>(&mut self, bytes: &'b [u8], left: u64, side: &mut impl Side) -> Result<&'b [u8], Stop> {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (left, rest) = (left - here as u64, bytes.get(here..).unwrap_or_default());
        self.at = match self.at {
            At::Chunk(_) if left == 0 => At::ChunkEnd,
            At::Chunk(_) => At::Chunk(left),
            _ if left == 0 => return self.ended(rest, side),
            _ => At::Body(left),
        };
        Ok(rest)
    }

    fn line<'b>(&mut self, bytes: &'b [u8], side: &mut impl Side) -> Result<&'b [u8], Stop> {
        let at = self.at;
        let Some((line, rest)) = self.gather(bytes, HTTP_LINE, line_end)? else {
            return Ok(&[]);
        };
        let is_empty = line == b"\r\n";
        let next = match at {
            At::ChunkSize => match httparse::parse_chunk_size(line) {
                Ok(httparse::Status::Complete((_, 0))) => At::Trailers(0),
                Ok(httparse::Status::Complete((_, size))) => At::Chunk(size),
                _ => return Err(Stop::Unclear),
            },
            At::ChunkEnd if is_empty => At::ChunkSize,
            At::Trailers(_) if is_empty => At::Head,
            At::Trailers(before) if before + line.len() <= HTTP_HEAD => At::Trailers(before + line.len()),
            _ => return Err(Stop::Unclear),
        };
        self.kept = Vec::new();
        self.at = next;
        if matches!(next, At::Head) { self.ended(rest, side) } else { Ok(rest) }
    }

    fn ended<'b>(&mut self, rest: &'b [u8], side: &mut impl Side) -> Result<&'b [u8], Stop> {
        self.at = At::Head;
        side.ended()?;
        Ok(rest)
    }

    /// What was kept with what belongs to it of `bytes`. `None`: it has not come whole, and is kept, at most `most` bytes.
    /// `end` tells where in all of it the end lies.
    fn gather<'a, 'b: 'a>(
        &'a mut self,
        bytes: &'b [u8],
        most: usize,
        end: impl FnOnce(&[u8]) -> Option<usize>,
    ) -> Result<Option<Gathered<'a, 'b>>, Stop> {
        if self.kept.is_empty() {
            match end(bytes) {
                Some(length) if length <= most => return Ok(bytes.split_at_checked(length)),
                None if bytes.len() <= most => self.kept.extend_from_slice(bytes),
                _ => return Err(Stop::Unclear),
            }
            return Ok(None);
        }
        let before = self.kept.len();
        self.kept.extend_from_slice(bytes.get(..bytes.len().min(most)).unwrap_or_default());
        match end(&self.kept) {
            Some(length) if length <= most => {
                self.kept.truncate(length);
                Ok(Some((&self.kept, bytes.get(length - before..).unwrap_or_default())))
            }
            None if self.kept.len() <= most => Ok(None),
            _ => Err(Stop::Unclear),
        }
    }
}

/// Behind the empty line that ends a head, of which none lies in front of `from`.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    // A head without a carriage return in its last line is not what clients and servers of today write.
    let at = memmem::find(bytes.get(from..)?, b"\n\r\n")?;
    Some(from + at + 3)
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    memchr(b'\n', bytes).map(|at| at + 1)
}
