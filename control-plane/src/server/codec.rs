//! Sends the shared bytes of resources as they are; tonic's own codec would encode them once per subscriber.

use byrnie_proto::mesh::v1::WatchRequest;
use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

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
}

impl Decoder for WatchCodec {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        let request = WatchRequest::decode(buffer);
        request.map(Some).map_err(|error| Status::invalid_argument(format!("WatchRequest: {error}")))
    }
}
