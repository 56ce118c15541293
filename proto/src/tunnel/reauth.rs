//! What a `REAUTH` signature covers: this tunnel, this side, this turn and this certificate, so that a signature made
//! for one tunnel is worthless in any other (the idea of RFC 9261, exported authenticators).

/// Bytes of the random part that each side gives in its first `OPEN` or `ACCEPT`.
pub const NONCE_LEN: usize = 32;

/// The side of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Dialled the tunnel and opens the streams.
    Client,
    /// Accepted the tunnel.
    Server,
}

impl Role {
    /// The other side.
    pub fn peer(self) -> Role {
        match self {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}

/// What makes this tunnel unlike every other.
#[derive(Clone, Debug)]
pub struct Binding {
    /// From the first `OPEN`.
    pub client_nonce: [u8; NONCE_LEN],
    /// From the first `ACCEPT`.
    pub server_nonce: [u8; NONCE_LEN],
    /// SHA-256 of the client's leaf certificate of the handshake.
    pub client_leaf: [u8; 32],
    /// SHA-256 of the server's leaf certificate of the handshake.
    pub server_leaf: [u8; 32],
}

impl Binding {
    /// The text that `signer` signs with the key of `new_leaf` (DER) in its `sequence`-th `REAUTH` of the tunnel.
    pub fn signed_text(&self, signer: Role, sequence: u32, new_leaf: &[u8]) -> Vec<u8> {
        let role: &[u8] = match signer {
            Role::Client => b"client",
            Role::Server => b"server",
        };
        [
            &[0x20; 64][..],
            b"byrnie/1, reauth, ",
            role,
            &[0],
            &sequence.to_be_bytes(),
            &self.client_nonce,
            &self.server_nonce,
            &self.client_leaf,
            &self.server_leaf,
            new_leaf,
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_binding_changes_the_signed_text() {
        let base = Binding { client_nonce: [1; 32], server_nonce: [2; 32], client_leaf: [3; 32], server_leaf: [4; 32] };
        let variants = [
            base.signed_text(Role::Client, 1, b"leaf"),
            base.signed_text(Role::Server, 1, b"leaf"),
            base.signed_text(Role::Client, 2, b"leaf"),
            base.signed_text(Role::Client, 1, b"other"),
            Binding { client_nonce: [9; 32], ..base.clone() }.signed_text(Role::Client, 1, b"leaf"),
            Binding { server_nonce: [9; 32], ..base.clone() }.signed_text(Role::Client, 1, b"leaf"),
            Binding { client_leaf: [9; 32], ..base.clone() }.signed_text(Role::Client, 1, b"leaf"),
            Binding { server_leaf: [9; 32], ..base }.signed_text(Role::Client, 1, b"leaf"),
        ];
        let distinct: std::collections::HashSet<_> = variants.iter().collect();
        assert_eq!(distinct.len(), variants.len());
    }
}
