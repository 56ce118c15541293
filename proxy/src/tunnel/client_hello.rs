//! Reads as much of a TLS ClientHello (RFC 8446, 4.1.2) as decides where a connection belongs: the ALPN protocols it
//! offers. It copies nothing but the handshake message, bounds it, and never trusts a length.

use crate::limits::CLIENT_HELLO;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
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
const ALPN_EXTENSION: u16 = 16;
const RECORD_HEADER: usize = 5;

/// Classifies `bytes`, all that came so far, by whether they are a ClientHello that offers `protocol`. A ClientHello may
/// be cut into segments and records anywhere. What begins like TLS and then is not is [`FirstBytes::NotTls`].
pub(crate) fn classify(bytes: &[u8], protocol: &[u8]) -> FirstBytes {
    let (message, complete) = match handshake_bytes(bytes) {
        Ok(read) => read,
        Err(NotTls) => return FirstBytes::NotTls,
    };
    let Some((&kind, rest)) = message.split_first() else {
        return if complete { FirstBytes::NotTls } else { FirstBytes::Incomplete };
    };
    if kind != CLIENT_HELLO_MESSAGE {
        return FirstBytes::NotTls;
    }
    let mut reader = Reader(rest);
    let Some(length) = reader.number(3) else { return FirstBytes::Incomplete };
    if length > CLIENT_HELLO {
        return FirstBytes::NotTls;
    }
    match reader.take(length) {
        None => FirstBytes::Incomplete,
        Some(body) => match offers(body, protocol) {
            None => FirstBytes::NotTls,
            Some(true) => FirstBytes::Offers,
            Some(false) => FirstBytes::OtherTls,
        },
    }
}

struct NotTls;

/// The payloads of the handshake records at the front of `bytes`, joined, and whether the message that they begin is
/// known to have ended.
fn handshake_bytes(bytes: &[u8]) -> Result<(Vec<u8>, bool), NotTls> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [] => return Ok((message, false)),
            [kind, ..] if *kind != HANDSHAKE_RECORD => return Err(NotTls),
            [_, major, ..] if *major != 3 => return Err(NotTls),
            _ => {}
        }
        let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) else { return Ok((message, false)) };
        let length = match header {
            [_, _, _, high, low] => usize::from(u16::from_be_bytes([*high, *low])),
            _ => return Err(NotTls),
        };
        if length == 0 || length > 16 * 1024 {
            return Err(NotTls);
        }
        match after.split_at_checked(length) {
            Some((payload, next)) => {
                message.extend_from_slice(payload);
                rest = next;
            }
            None => {
                message.extend_from_slice(after);
                return Ok((message, false));
            }
        }
        if message.len() > CLIENT_HELLO + 4 || ended(&message) {
            return Ok((message, true));
        }
    }
}

fn ended(message: &[u8]) -> bool {
    match message {
        [_, a, b, c, body @ ..] => body.len() >= u32::from_be_bytes([0, *a, *b, *c]) as usize,
        _ => false,
    }
}

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
        if kind == usize::from(ALPN_EXTENSION) {
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
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
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
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0", b"SSH-2.0-x", b"\x00\x01", &[22, 2, 0], &[22, 3, 1, 0, 0]] {
            assert_eq!(classify(bytes, b"byrnie/1"), FirstBytes::NotTls, "{bytes:?}");
        }
        assert_eq!(classify(&[22, 3, 1, 0, 4, 2, 0, 0, 0], b"byrnie/1"), FirstBytes::NotTls, "a ServerHello");
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
