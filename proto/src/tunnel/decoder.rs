//! Cuts a stream of bytes into frames. `DATA` is passed on as it comes, in whatever pieces it comes; the payload of
//! every other frame is collected first (at most 64 KiB) and decoded.

use prost::Message;

use super::frame::{FrameError, FrameType, HEADER_LEN, Header};
use super::v1;

/// What a piece of input completed.
#[derive(Debug, PartialEq)]
pub enum Event<'a> {
    /// Asks for a stream.
    Open(v1::Open),
    /// The application is connected.
    Accept(v1::Accept),
    /// The stream will not be served.
    Refuse(v1::Refuse),
    /// Some bytes of the application: a part of a `DATA` frame or all of it.
    Data(&'a [u8]),
    /// No more bytes from the sender's application.
    Fin,
    /// The stream ends without its clean end.
    Reset(v1::Reset),
    /// No new streams.
    GoAway(v1::GoAway),
    /// A renewed identity.
    Reauth(v1::Reauth),
}

/// Where in a frame the next byte belongs. 24 bytes, and an allocation only while a control frame is incomplete.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; HEADER_LEN],
    header_filled: u8,
    /// The frame whose payload is being read.
    current: Option<Header>,
    /// Bytes of `current`'s payload that have not come yet.
    remaining: usize,
    /// What has come of a control frame's payload.
    payload: Vec<u8>,
}

impl Decoder {
    /// Takes bytes from the front of `input` until something is complete or `input` is used up. Returns how many
    /// were taken, and the stream number with the event, if there is one. To be called again with the rest.
    ///
    /// Errors: bytes that are no frame. The decoder is of no use after that.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<(u32, Event<'a>)>), FrameError> {
        let mut taken = 0;
        let header = match self.current {
            Some(header) => header,
            None => {
                taken = self.fill_header(input);
                if usize::from(self.header_filled) < HEADER_LEN {
                    return Ok((taken, None));
                }
                let header = Header::decode(self.header)?;
                self.header_filled = 0;
                self.remaining = header.length;
                self.current = Some(header);
                header
            }
        };
        let rest = input.get(taken..).unwrap_or_default();
        let piece = rest.get(..self.remaining.min(rest.len())).unwrap_or_default();
        taken += piece.len();
        self.remaining -= piece.len();
        if header.frame == FrameType::Data {
            if self.remaining == 0 {
                self.current = None;
            }
            let event = (!piece.is_empty()).then_some((header.stream, Event::Data(piece)));
            return Ok((taken, event));
        }
        self.payload.extend_from_slice(piece);
        if self.remaining > 0 {
            return Ok((taken, None));
        }
        self.current = None;
        let payload = std::mem::take(&mut self.payload);
        Ok((taken, Some((header.stream, control(header.frame, &payload)?))))
    }

    /// Whether every frame that began has ended.
    pub fn at_boundary(&self) -> bool {
        self.current.is_none() && self.header_filled == 0
    }

    fn fill_header(&mut self, input: &[u8]) -> usize {
        let filled = usize::from(self.header_filled);
        let free = self.header.get_mut(filled..).unwrap_or_default();
        let count = free.len().min(input.len());
        for (to, from) in free.iter_mut().zip(input) {
            *to = *from;
        }
        self.header_filled += count as u8;
        count
    }
}

fn control<'a>(frame: FrameType, payload: &[u8]) -> Result<Event<'a>, FrameError> {
    fn message<M: Message + Default>(frame: FrameType, payload: &[u8]) -> Result<M, FrameError> {
        M::decode(payload).map_err(|error| FrameError::BadPayload { frame, reason: error.to_string() })
    }
    Ok(match frame {
        FrameType::Open => Event::Open(message(frame, payload)?),
        FrameType::Accept => Event::Accept(message(frame, payload)?),
        FrameType::Refuse => Event::Refuse(message(frame, payload)?),
        FrameType::Fin | FrameType::Data => Event::Fin,
        FrameType::Reset => Event::Reset(message(frame, payload)?),
        FrameType::GoAway => Event::GoAway(message(frame, payload)?),
        FrameType::Reauth => Event::Reauth(message(frame, payload)?),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Frame {
        Data(u32, Vec<u8>),
        Fin(u32),
        Open(u32, String),
        GoAway(u32),
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (any::<u32>(), prop::collection::vec(any::<u8>(), 1..3000)).prop_map(|(s, d)| Frame::Data(s, d)),
            any::<u32>().prop_map(Frame::Fin),
            (any::<u32>(), "[a-z/]{0,60}").prop_map(|(s, name)| Frame::Open(s, name)),
            any::<u32>().prop_map(Frame::GoAway),
        ]
    }

    fn encode(frame: &Frame, out: &mut Vec<u8>) {
        let (kind, stream, payload) = match frame {
            Frame::Data(stream, data) => (FrameType::Data, *stream, data.clone()),
            Frame::Fin(stream) => (FrameType::Fin, *stream, vec![]),
            Frame::Open(stream, service) => {
                let open = v1::Open { service: service.clone(), ..Default::default() };
                (FrameType::Open, *stream, open.encode_to_vec())
            }
            Frame::GoAway(last) => (FrameType::GoAway, 0, v1::GoAway { last_stream: *last }.encode_to_vec()),
        };
        out.extend(Header { frame: kind, length: payload.len(), stream }.encode());
        out.extend(payload);
    }

    fn collect(decoder: &mut Decoder, mut input: &[u8], into: &mut Vec<Frame>) {
        loop {
            let before = input.len();
            let (taken, event) = decoder.decode(input).unwrap();
            input = &input[taken..];
            match event {
                Some((stream, Event::Data(piece))) => match into.last_mut() {
                    Some(Frame::Data(same, data)) if *same == stream => data.extend(piece),
                    _ => into.push(Frame::Data(stream, piece.to_vec())),
                },
                Some((stream, Event::Fin)) => into.push(Frame::Fin(stream)),
                Some((stream, Event::Open(open))) => into.push(Frame::Open(stream, open.service)),
                Some((_, Event::GoAway(goaway))) => into.push(Frame::GoAway(goaway.last_stream)),
                Some(other) => panic!("unexpected {other:?}"),
                None if input.len() == before || input.is_empty() => return,
                None => {}
            }
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_the_bytes_are_cut(
            frames in prop::collection::vec(frame(), 0..12),
            cuts in prop::collection::vec(1usize..700, 1..40),
        ) {
            let mut wire = vec![];
            let mut expected: Vec<Frame> = vec![];
            for frame in &frames {
                encode(frame, &mut wire);
                match (expected.last_mut(), frame) {
                    (Some(Frame::Data(a, data)), Frame::Data(b, more)) if a == b => data.extend(more),
                    _ => expected.push(frame.clone()),
                }
            }
            let mut decoder = Decoder::default();
            let mut seen = vec![];
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                collect(&mut decoder, now, &mut seen);
                rest = later;
            }
            prop_assert!(decoder.at_boundary());
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn garbage_is_an_error_or_events_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut decoder = Decoder::default();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match decoder.decode(rest) {
                    Ok((0, None)) | Err(_) => break,
                    Ok((taken, _)) => rest = &rest[taken..],
                }
            }
        }
    }
}
