//! What a finished handshake agreed on, in the words of the registries.

use rustls::CommonState;

/// The proof of an edge, beside the peer's identity: version, key exchange and cipher of its TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsFacts {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// IANA name of the group, such as `X25519MLKEM768`.
    pub key_exchange: String,
    /// IANA name of the cipher suite, such as `TLS13_AES_128_GCM_SHA256`.
    pub cipher: String,
}

impl TlsFacts {
    /// The facts of a connection; `None` before its handshake is through.
    pub fn of(connection: &CommonState) -> Option<Self> {
        if connection.is_handshaking() {
            return None;
        }
        let version = match connection.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
            rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => return None,
        };
        let group = connection.negotiated_key_exchange_group()?.name();
        let suite = connection.negotiated_cipher_suite()?.suite();
        Some(Self {
            version,
            key_exchange: group.as_str().map_or_else(|| format!("{group:?}"), str::to_owned),
            cipher: suite.as_str().map_or_else(|| format!("{suite:?}"), str::to_owned),
        })
    }
}
