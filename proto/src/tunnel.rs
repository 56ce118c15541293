//! The tunnel protocol `byrnie/1`: frames, their decoder, and the state of one end of a tunnel. Nothing here does any
//! I/O: bytes go in, events and bytes come out. `docs/wire-protocol.md` is the specification.

mod decoder;
mod frame;
mod reauth;
mod session;

pub use decoder::{Decoder, Event};
pub use frame::{DATA_PER_RECORD, FrameError, FrameType, HEADER_LEN, Header, MAX_PAYLOAD};
pub use reauth::{Binding, NONCE_LEN, Role};
pub use session::{ProtocolError, Received, Session};

/// Payloads of the control frames.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::indexing_slicing)]
    tonic::include_proto!("byrnie.tunnel.v1");
}
