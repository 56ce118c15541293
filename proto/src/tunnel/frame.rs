//! The frame header: type (1 byte), payload length (3 bytes), stream number (4 bytes), all big-endian.

use thiserror::Error;

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 8;

/// The most bytes that one frame may carry.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The most `DATA` bytes that fit, with their header, one TLS record (RFC 8446, 5.1: 2^14 bytes of plaintext).
pub const DATA_PER_RECORD: usize = 16 * 1024 - HEADER_LEN;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameType {
    /// Client to server: asks for a stream.
    Open = 1,
    /// Server to client: the application is connected.
    Accept = 2,
    /// Server to client: the stream will not be served.
    Refuse = 3,
    /// Bytes of the application.
    Data = 4,
    /// The sender's application has no more to send.
    Fin = 5,
    /// The stream ends without its clean end.
    Reset = 6,
    /// Server to client: no new streams.
    GoAway = 7,
    /// A renewed identity of the sender.
    Reauth = 8,
}

impl FrameType {
    /// Whether the frame concerns the tunnel as a whole: its stream number is 0.
    pub fn is_tunnel_level(self) -> bool {
        matches!(self, FrameType::GoAway | FrameType::Reauth)
    }
}

impl TryFrom<u8> for FrameType {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => FrameType::Open,
            2 => FrameType::Accept,
            3 => FrameType::Refuse,
            4 => FrameType::Data,
            5 => FrameType::Fin,
            6 => FrameType::Reset,
            7 => FrameType::GoAway,
            8 => FrameType::Reauth,
            unknown => return Err(FrameError::UnknownType(unknown)),
        })
    }
}

/// Bytes that are no frame of `byrnie/1`. The tunnel that carried them is closed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// The type byte is none of ours.
    #[error("unknown frame type {0}, expected 1 to 8")]
    UnknownType(u8),
    /// The length is over the bound.
    #[error("a {frame:?} frame of {length} bytes, expected at most {max}")]
    TooLong {
        /// The frame.
        frame: FrameType,
        /// What its header says.
        length: usize,
        /// What this frame may carry.
        max: usize,
    },
    /// The payload is not the message that the type asks for.
    #[error("the payload of a {frame:?} frame does not decode: {reason}")]
    BadPayload {
        /// The frame.
        frame: FrameType,
        /// What the protobuf decoder said.
        reason: String,
    },
}

/// The first eight bytes of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub frame: FrameType,
    /// Bytes of payload that follow.
    pub length: usize,
    /// The stream it belongs to; 0 for frames of the tunnel.
    pub stream: u32,
}

impl Header {
    /// The header as it goes on the wire. Lengths over [`MAX_PAYLOAD`] never come from this crate's own encoders.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [_, high, middle, low] = (self.length.min(MAX_PAYLOAD) as u32).to_be_bytes();
        let [a, b, c, d] = self.stream.to_be_bytes();
        [self.frame as u8, high, middle, low, a, b, c, d]
    }

    /// Reads a header. Errors: an unknown type, or a length over what that type may carry.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Header, FrameError> {
        let [frame, high, middle, low, a, b, c, d] = bytes;
        let frame = FrameType::try_from(frame)?;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let max = match frame {
            FrameType::Fin => 0,
            _ => MAX_PAYLOAD,
        };
        if length > max {
            return Err(FrameError::TooLong { frame, length, max });
        }
        Ok(Header { frame, length, stream: u32::from_be_bytes([a, b, c, d]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_its_encoding(frame in 1u8..=8, length in 0usize..=MAX_PAYLOAD, stream: u32) {
            let frame = FrameType::try_from(frame).expect("1 to 8 are types");
            let length = if frame == FrameType::Fin { 0 } else { length };
            let header = Header { frame, length, stream };
            prop_assert_eq!(Header::decode(header.encode()), Ok(header));
        }

        #[test]
        fn any_eight_bytes_are_a_header_or_an_error(bytes: [u8; HEADER_LEN]) {
            if let Ok(header) = Header::decode(bytes) {
                prop_assert!(header.length <= MAX_PAYLOAD);
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_frame_over_64_kib_is_refused() {
        let error = Header::decode([4, 1, 0, 1, 0, 0, 0, 1]).expect_err("65537 bytes");
        assert_eq!(error, FrameError::TooLong { frame: FrameType::Data, length: 65537, max: MAX_PAYLOAD });
    }
}
