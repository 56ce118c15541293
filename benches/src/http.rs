//! As much of HTTP/1.1 as the loads need: one request, and where its answer ends.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

/// Where nginx answers HTTP/1.1.
pub(crate) const PORT: u16 = 8080;

/// Where nginx answers HTTP/2 in cleartext.
pub(crate) const H2C_PORT: u16 = 8081;

/// Where it answers HTTP/1.1 and a Service says so, which makes Byrnie follow it.
pub(crate) const DECLARED_PORT: u16 = 8082;

/// The longest answer that is read.
const LONGEST: usize = 256 * 1024;

/// A GET; `connection` is `keep-alive` or `close`.
pub(crate) fn request(to: SocketAddr, path: &str, connection: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: {connection}\r\n\r\n").into_bytes()
}

/// A whole answer at the beginning of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its status code.
    pub(crate) status: u16,
    /// Its length, head and body.
    pub(crate) length: usize,
}

/// The answer at the beginning of `bytes`, once it is whole.
///
/// # Errors
/// When the bytes are no answer with a length that is said beforehand.
pub(crate) fn answer(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP/1.1 answer: {what}"));
    let Some(head_length) = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
        return if bytes.len() > LONGEST { Err(wrong("its head has no end")) } else { Ok(None) };
    };
    let head = bytes.get(..head_length).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_| wrong("its head is no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| wrong("its first line"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .filter(|length| *length <= LONGEST)
        .ok_or_else(|| wrong("its length"))?;
    let length = head_length + length;
    Ok((bytes.len() >= length).then_some(Answer { status, length }))
}

/// Asks once and reads the whole answer.
///
/// # Errors
/// The connection's, and a status other than 200.
pub(crate) fn ask(stream: &mut (impl Read + Write), request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the answer did"));
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        match answer(&bytes)? {
            Some(Answer { status: 200, .. }) => return Ok(bytes),
            Some(Answer { status, .. }) => return Err(io::Error::other(format!("status {status}"))),
            None => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 3\r\n\r\nabc";

    #[test]
    fn an_answer_is_whole_with_its_last_byte_and_not_before() {
        let whole = Answer { status: 200, length: WHOLE.len() };
        for cut in 0..WHOLE.len() {
            assert_eq!(answer(&WHOLE[..cut]).ok(), Some(None), "after {cut} bytes");
        }
        assert_eq!(answer(WHOLE).ok(), Some(Some(whole)));
        assert_eq!(answer(&[WHOLE, b"HTTP/1.1"].concat()).ok(), Some(Some(whole)));
    }

    #[test]
    fn an_answer_without_a_length_or_a_status_is_none() {
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(answer(b"SSH-2.0 hello\r\nContent-Length: 3\r\n\r\n").is_err());
        assert!(answer(&[b'x'; LONGEST + 1]).is_err());
    }
}
