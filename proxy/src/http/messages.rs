//! Where the messages of one direction begin and end (RFC 9112, 6 and 7). Bytes are kept only where a head or a line came
//! in pieces.

use std::time::Instant;

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
    /// Whether a head can begin like this.
    fn begins(&self, bytes: &[u8]) -> bool;

    /// Takes a whole head, with its empty line, whose first byte came at `at`, and says what follows.
    fn head(&mut self, head: &[u8], at: Instant) -> Result<Body, Stop>;

    /// The message has ended.
    fn ended(&mut self) -> Result<(), Stop>;
}

/// The messages of one direction, as far as they have come.
#[derive(Default)]
pub(super) struct Messages {
    at: At,
    /// The beginning of the head or line that has not come whole.
    kept: Vec<u8>,
    /// When the first byte of that head came.
    since: Option<Instant>,
}

/// How much of a head that has not come whole is looked at: what is something else shows in its first line.
const BEGINNING: usize = 1024;

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
    /// Follows `bytes`, which come `now` and behind those of the last call.
    pub(super) fn follow(&mut self, mut bytes: &[u8], now: Instant, side: &mut impl Side) -> Result<(), Stop> {
        while !bytes.is_empty() {
            bytes = match self.at {
                At::Head => self.head(bytes, now, side)?,
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

    fn head<'b>(&mut self, bytes: &'b [u8], now: Instant, side: &mut impl Side) -> Result<&'b [u8], Stop> {
        let at = *self.since.get_or_insert(now);
        let before = self.kept.len();
        // The end may lie across what is kept and what has come.
        let from = before.saturating_sub(2);
        let Some((head, rest)) = self.gather(bytes, HTTP_HEAD, |all| head_end(all, from))? else {
            let beginning = self.kept.get(..BEGINNING).unwrap_or(&self.kept);
            return if before > BEGINNING || side.begins(beginning) { Ok(&[]) } else { Err(Stop::Unclear) };
        };
        let body = side.head(head, at);
        (self.kept, self.since) = (Vec::new(), None);
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
        let length = line.len();
        // Servers differ in what they make of a line feed alone.
        let line = line.strip_suffix(b"\r\n").ok_or(Stop::Unclear)?;
        let next = match at {
            At::ChunkSize => match chunk_size(line).ok_or(Stop::Unclear)? {
                0 => At::Trailers(0),
                size => At::Chunk(size),
            },
            At::ChunkEnd if line.is_empty() => At::ChunkSize,
            At::Trailers(_) if line.is_empty() => At::Head,
            At::Trailers(before) if line.contains(&b':') && before + length <= HTTP_HEAD => {
                At::Trailers(before + length)
            }
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

/// Hexadecimal digits, and extensions that are passed over (RFC 9112, 7.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next()?;
    let are_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| are_digits)?;
    u64::from_str_radix(digits, 16).ok()
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    memchr(b'\n', bytes).map(|at| at + 1)
}
