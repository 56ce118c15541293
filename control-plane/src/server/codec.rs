//! Sends the shared bytes of resources as they are; tonic's own codec would encode them once per subscriber.

use byrnie_proto::mesh::v1::WatchRequest;
use bytes::{Buf, BufMut, Bytes};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::limits;

/// The codec of `Mesh.Watch`, server side: takes `WatchRequest`, sends [`Fields`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WatchCodec;

/// A `WatchResponse`: its encoded `resources` fields.
pub(crate) type Fields = Vec<Bytes>;

impl Codec for WatchCodec {
    type Encode = Fields;
    type Decode = WatchRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for WatchCodec {
    type Item = Fields;
    type Error = Status;

    fn encode(&mut self, fields: Fields, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(fields.iter().map(Bytes::len).sum());
        for field in fields {
            buffer.put_slice(&field);
        }
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

impl Decoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let request = count_parts(&bytes).and_then(|parts| match parts {
            0..=limits::MESSAGE_PARTS => WatchRequest::decode(bytes).map_err(|error| error.to_string()),
            _ => Err(format!("a message of {parts} parts; expected at most {}", limits::MESSAGE_PARTS)),
        });
        request.map(Some).map_err(|error| Status::invalid_argument(format!("WatchRequest: {error}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        buffers()
    }
}

/// What each stream holds for each direction from its begin to its end, in bytes. tonic takes 8 KiB, which thousands of
/// streams that say little and seldom have no use for; a longer message makes its own room.
const BUFFER: usize = 512;

/// Bytes that are encoded before they are handed on, as tonic has it.
const YIELD: usize = 32 * 1024;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER, YIELD)
}

/// The fields of the message's own fields: the names of a subscription, the edges of a report. An empty one takes two
/// bytes on the wire and hundreds in memory, so they are counted before they are made.
fn count_parts(mut bytes: &[u8]) -> Result<usize, String> {
    let mut parts = 0;
    while let Some(field) = next_field(&mut bytes)? {
        let mut inner = field;
        while parts <= limits::MESSAGE_PARTS && next_field(&mut inner)?.is_some() {
            parts += 1;
        }
    }
    Ok(parts)
}

/// Takes one field off; its content where it has a length (Protocol Buffers, "Encoding").
fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (_, wire_type) = decode_key(bytes).map_err(|error| error.to_string())?;
    let length = match wire_type {
        WireType::LengthDelimited => decode_varint(bytes).map_err(|error| error.to_string())?,
        WireType::Varint => {
            decode_varint(bytes).map_err(|error| error.to_string())?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::StartGroup | WireType::EndGroup => return Err("groups are not taken".to_owned()),
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (content, rest) = bytes.split_at_checked(length).ok_or("a field ends after its message")?;
    *bytes = rest;
    Ok(Some(if wire_type == WireType::LengthDelimited { content } else { &[] }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use byrnie_proto::mesh::v1::{Edge, Nack, ProxyStatus, Report, Subscribe, watch_request::Message as Word};

    use super::*;

    fn parts(word: Word) -> usize {
        count_parts(&WatchRequest { message: Some(word) }.encode_to_vec()).unwrap()
    }

    #[test]
    fn the_parts_of_a_message_are_counted_before_they_are_made() {
        let names = vec!["destination/10.0.0.1:80".to_owned(); 7];
        assert_eq!(parts(Word::Subscribe(Subscribe { names })), 7);
        let status = Some(ProxyStatus { version: "1".to_owned(), ready: true, ..ProxyStatus::default() });
        let edges = vec![Edge { source: "a".to_owned(), connections: 3, ..Edge::default() }; 9];
        assert_eq!(parts(Word::Report(Report { status, edges, ..Report::default() })), 10);
        assert_eq!(parts(Word::Nack(Nack { name: "self".to_owned(), version: 1, reason: "no".to_owned() })), 3);
        let empty = vec![Edge::default(); 2 * limits::MESSAGE_PARTS];
        assert!(parts(Word::Report(Report { edges: empty, ..Report::default() })) > limits::MESSAGE_PARTS);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for wrong in [&[0x32, 5, 1][..], &[0xff; 20], &[0x33], &[0x32, 2, 0x12, 9], &[0x31, 1]] {
            assert!(count_parts(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(count_parts(&[]), Ok(0));
    }
}
