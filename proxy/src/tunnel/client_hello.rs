//! Reads as much of a TLS ClientHello (RFC 8446, 4.1.2) as decides where a connection belongs: the ALPN protocols it
//! offers. It keeps the handshake message alone, bounds it, and never trusts a length.

use crate::limits::CLIENT_HELLO;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// So far a ClientHello, but not all of it.
    Incomplete,
    /// A ClientHello that offers this ALPN protocol.
    Offers,
    /// A ClientHello that does not.
    OtherTls,
    /// No TLS.
    NotTls,
}

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO_MESSAGE: u8 = 1;
const ALPN_EXTENSION: usize = 16;
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Collects a ClientHello that may be cut into segments and records anywhere. Each byte is looked at once, however small
/// the pieces are that it comes in.
#[derive(Default)]
pub struct ClientHelloReader {
    header: [u8; RECORD_HEADER],
    header_filled: usize,
    /// Bytes of the current record that have not come yet.
    remaining: usize,
    message: Vec<u8>,
}

impl ClientHelloReader {
    /// Takes the next bytes of the connection and says what it is by now: whether a ClientHello that offers `protocol`.
    /// What begins like TLS and then is not is [`FirstBytes::NotTls`].
    pub fn feed(&mut self, mut bytes: &[u8], protocol: &[u8]) -> FirstBytes {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.remaining > 0 {
                let (taken, later) = bytes.split_at(self.remaining.min(bytes.len()));
                self.message.extend_from_slice(taken);
                self.remaining -= taken.len();
                bytes = later;
                match self.message_length() {
                    Err(NotTls) => return FirstBytes::NotTls,
                    Ok(Some(length)) if self.message.len() >= length => return self.judge(length, protocol),
                    Ok(_) => {}
                }
                continue;
            }
            if let Some(slot) = self.header.get_mut(self.header_filled) {
                *slot = byte;
            }
            self.header_filled += 1;
            bytes = rest;
            if self.begin_record().is_err() {
                return FirstBytes::NotTls;
            }
        }
        FirstBytes::Incomplete
    }

    /// Looks at the record header as far as it has come.
    fn begin_record(&mut self) -> Result<(), NotTls> {
        let [kind, major, _, high, low] = self.header;
        if kind != HANDSHAKE_RECORD || (self.header_filled > 1 && major != 3) {
            return Err(NotTls);
        }
        if self.header_filled == RECORD_HEADER {
            self.header_filled = 0;
            self.remaining = usize::from(u16::from_be_bytes([high, low]));
            if self.remaining == 0 || self.remaining > 16 * 1024 {
                return Err(NotTls);
            }
        }
        Ok(())
    }

    /// Bytes of the handshake message with its header, once that is known.
    fn message_length(&self) -> Result<Option<usize>, NotTls> {
        match self.message.as_slice() {
            [kind, ..] if *kind != CLIENT_HELLO_MESSAGE => Err(NotTls),
            [_, a, b, c, ..] => {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if length > CLIENT_HELLO { Err(NotTls) } else { Ok(Some(MESSAGE_HEADER + length)) }
            }
            _ => Ok(None),
        }
    }

    fn judge(&self, length: usize, protocol: &[u8]) -> FirstBytes {
        match self.message.get(MESSAGE_HEADER..length).and_then(|body| offers(body, protocol)) {
            None => FirstBytes::NotTls,
            Some(true) => FirstBytes::Offers,
            Some(false) => FirstBytes::OtherTls,
        }
    }
}

struct NotTls;

/// Whether the body of a ClientHello offers `protocol`; `None` where the body is malformed.
fn offers(body: &[u8], protocol: &[u8]) -> Option<bool> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?;
    for length_size in [1, 2, 1] {
        let length = hello.number(length_size)?;
        hello.take(length)?;
    }
    if hello.0.is_empty() {
        return Some(false);
    }
    let length = hello.number(2)?;
    let mut extensions = Reader(hello.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let length = extensions.number(2)?;
        let value = extensions.take(length)?;
        if kind == ALPN_EXTENSION {
            return names(value, protocol);
        }
    }
    Some(false)
}

fn names(value: &[u8], protocol: &[u8]) -> Option<bool> {
    let mut list = Reader(value);
    let length = list.number(2)?;
    let mut list = Reader(list.take(length)?);
    let mut found = false;
    while !list.0.is_empty() {
        let length = list.number(1)?;
        found |= list.take(length)? == protocol;
    }
    Some(found)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A big-endian number of `size` (1 to 3) bytes.
    fn number(&mut self, size: usize) -> Option<usize> {
        Some(self.take(size)?.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use std::sync::Arc;

    fn classify(bytes: &[u8], protocol: &[u8]) -> FirstBytes {
        ClientHelloReader::default().feed(bytes, protocol)
    }

    #[derive(Debug)]
    struct Never;

    impl ServerCertVerifier for Never {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Err(rustls::Error::HandshakeNotComplete)
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::HandshakeNotComplete)
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::HandshakeNotComplete)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            vec![rustls::SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }

    /// A real ClientHello of rustls, post-quantum key share included.
    fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Never))
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut connection =
            rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("example.test").unwrap()).unwrap();
        let mut bytes = vec![];
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same ClientHello in records of `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        hello[RECORD_HEADER..]
            .chunks(size)
            .flat_map(|part| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat())
            .collect()
    }

    #[test]
    fn a_tunnel_is_known_by_its_alpn_alone() {
        assert_eq!(classify(&client_hello(&[b"byrnie/1"]), b"byrnie/1"), FirstBytes::Offers);
        assert_eq!(classify(&client_hello(&[b"h2", b"byrnie/1"]), b"byrnie/1"), FirstBytes::Offers);
        assert_eq!(classify(&client_hello(&[b"h2", b"http/1.1"]), b"byrnie/1"), FirstBytes::OtherTls);
        assert_eq!(classify(&client_hello(&[]), b"byrnie/1"), FirstBytes::OtherTls);
    }

    #[test]
    fn a_client_hello_is_incomplete_until_its_last_byte() {
        let hello = client_hello(&[b"byrnie/1"]);
        assert!(hello.len() > 1200, "the post-quantum key share is there");
        for cut in 0..hello.len() {
            assert_eq!(classify(&hello[..cut], b"byrnie/1"), FirstBytes::Incomplete, "{cut}");
        }
    }

    #[test]
    fn a_client_hello_may_be_cut_into_records() {
        let hello = client_hello(&[b"byrnie/1"]);
        for size in [1, 3, 100, 1000] {
            assert_eq!(classify(&in_records(&hello, size), b"byrnie/1"), FirstBytes::Offers, "{size}");
        }
    }

    #[test]
    fn plaintext_protocols_are_not_tls() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0", b"SSH-2.0-x", b"\x00\x01", &[22, 2, 0], &[22, 3, 1, 0, 0]]
        {
            assert_eq!(classify(bytes, b"byrnie/1"), FirstBytes::NotTls, "{bytes:?}");
        }
        assert_eq!(classify(&[22, 3, 1, 0, 4, 2, 0, 0, 0], b"byrnie/1"), FirstBytes::NotTls, "a ServerHello");
    }

    #[test]
    fn a_client_hello_may_come_byte_by_byte() {
        let hello = in_records(&client_hello(&[b"byrnie/1"]), 7);
        let (last, before) = hello.split_last().unwrap();
        let mut reader = ClientHelloReader::default();
        for byte in before {
            assert_eq!(reader.feed(&[*byte], b"byrnie/1"), FirstBytes::Incomplete);
        }
        assert_eq!(reader.feed(&[*last], b"byrnie/1"), FirstBytes::Offers);
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..600), tls: bool) {
            let mut bytes = bytes;
            if tls {
                bytes.splice(0..0, [22, 3, 1, 2, 0, 1, 0, 1, 252]);
            }
            classify(&bytes, b"byrnie/1");
        }

        #[test]
        fn a_damaged_client_hello_never_panics(position in 0usize..1500, byte: u8) {
            let mut hello = client_hello(&[b"byrnie/1"]);
            let position = position % hello.len();
            hello[position] = byte;
            classify(&hello, b"byrnie/1");
        }
    }
}
