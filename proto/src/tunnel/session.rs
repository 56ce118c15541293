//! The state of one end of a tunnel: which frames may come and go next, and whether the tunnel may serve another
//! stream. One stream at a time; anything else than the next allowed frame ends the tunnel.

use prost::Message;
use thiserror::Error;

use super::decoder::{Decoder, Event};
use super::frame::{FrameError, FrameType, HEADER_LEN, Header, MAX_PAYLOAD};
use super::reauth::Role;
use super::v1;

/// Why the peer's bytes end the tunnel.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// No frame at all.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that this state does not allow.
    #[error("{frame} on stream {stream}, expected {expected}")]
    Unexpected {
        /// What came.
        frame: &'static str,
        /// Its stream number.
        stream: u32,
        /// What would have been allowed.
        expected: String,
    },
    /// More `DATA` before `ACCEPT` than a client may send.
    #[error("more than {MAX_PAYLOAD} bytes of DATA before ACCEPT")]
    TooMuchEarlyData,
}

/// What the peer said, after the rules were checked.
#[derive(Debug, PartialEq)]
pub enum Received<'a> {
    /// Server: the client asks for the next stream.
    Open(v1::Open),
    /// Client: the stream is open.
    Accept(v1::Accept),
    /// Client: the stream will not be served.
    Refuse(v1::Refuse),
    /// Bytes for the application.
    Data(&'a [u8]),
    /// No more bytes for the application.
    Fin,
    /// The stream is over, and so is the tunnel.
    Reset(v1::Reset),
    /// Client: no stream above this number will be served.
    GoAway(u32),
    /// The peer's renewed identity; the sequence number is already checked.
    Reauth(v1::Reauth),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between streams.
    Idle,
    /// `OPEN` went one way, its answer has not come the other.
    Opening,
    /// Accepted.
    Open,
    /// Nothing may follow.
    Ended,
}

/// One end of a tunnel.
#[derive(Debug)]
pub struct Session {
    role: Role,
    decoder: Decoder,
    phase: Phase,
    /// The current stream, or the last one.
    stream: u32,
    fin_sent: bool,
    fin_received: bool,
    /// Client: a frame followed `OPEN` before its answer came.
    sent_early: bool,
    /// Server: `DATA` bytes that came before `ACCEPT`.
    early_received: usize,
    going_away: Option<u32>,
    /// The first `OPEN` and `ACCEPT`, and with them the nonces, were exchanged.
    bound: bool,
    own_reauths: u32,
    peer_reauths: u32,
}

impl Session {
    /// A tunnel without a stream yet.
    pub fn new(role: Role) -> Session {
        Session {
            role,
            decoder: Decoder::default(),
            phase: Phase::Idle,
            stream: 0,
            fin_sent: false,
            fin_received: false,
            sent_early: false,
            early_received: 0,
            going_away: None,
            bound: false,
            own_reauths: 0,
            peer_reauths: 0,
        }
    }

    /// The side that this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The number of the current stream, or of the last one; 0 before the first.
    pub fn stream(&self) -> u32 {
        self.stream
    }

    /// Whether this end's next `OPEN` or `ACCEPT` has to carry a nonce.
    pub fn wants_nonce(&self) -> bool {
        !self.bound
    }

    /// Whether the nonces were exchanged, so that `REAUTH` can be sent and understood.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Whether the client's stream waits for its answer.
    pub fn is_opening(&self) -> bool {
        self.phase == Phase::Opening
    }

    /// Whether `FIN` went both ways: the stream is over, cleanly.
    pub fn stream_ended(&self) -> bool {
        self.fin_sent && self.fin_received
    }

    /// Whether `FIN` was sent on the current stream.
    pub fn fin_sent(&self) -> bool {
        self.fin_sent
    }

    /// Whether `FIN` came on the current stream.
    pub fn fin_received(&self) -> bool {
        self.fin_received
    }

    /// Whether another stream may follow on this tunnel now.
    pub fn reusable(&self) -> bool {
        let between = self.phase == Phase::Idle || (self.phase == Phase::Open && self.stream_ended());
        between && self.going_away.is_none() && self.decoder.at_boundary() && self.stream < u32::MAX
    }

    /// The last stream that the server serves, once it has said `GOAWAY`.
    pub fn going_away(&self) -> Option<u32> {
        self.going_away
    }

    /// Client: writes `OPEN` for the next stream. False where none may follow; nothing is written then.
    pub fn open(&mut self, open: &v1::Open, out: &mut Vec<u8>) -> bool {
        if self.role != Role::Client || !self.reusable() {
            return false;
        }
        self.begin_stream();
        self.control(FrameType::Open, self.stream, open, out);
        true
    }

    /// Server: writes `ACCEPT`.
    pub fn accept(&mut self, accept: &v1::Accept, out: &mut Vec<u8>) {
        debug_assert!(self.role == Role::Server && self.phase == Phase::Opening);
        self.phase = Phase::Open;
        self.bound = true;
        self.control(FrameType::Accept, self.stream, accept, out);
    }

    /// Server: writes `REFUSE`. The tunnel may serve another stream if the client sent nothing after `OPEN`.
    pub fn refuse(&mut self, refuse: &v1::Refuse, out: &mut Vec<u8>) {
        debug_assert!(self.role == Role::Server && self.phase == Phase::Opening);
        let quiet = self.early_received == 0 && !self.fin_received && self.bound;
        self.phase = if quiet { Phase::Idle } else { Phase::Ended };
        self.control(FrameType::Refuse, self.stream, refuse, out);
    }

    /// The header for `length` bytes of `DATA`.
    pub fn data(&mut self, length: usize) -> [u8; HEADER_LEN] {
        self.sent_early |= self.phase == Phase::Opening;
        Header { frame: FrameType::Data, length, stream: self.stream }.encode()
    }

    /// Writes `FIN`.
    pub fn fin(&mut self, out: &mut Vec<u8>) {
        self.sent_early |= self.phase == Phase::Opening;
        self.fin_sent = true;
        out.extend_from_slice(&Header { frame: FrameType::Fin, length: 0, stream: self.stream }.encode());
    }

    /// Writes `RESET`: the end of the stream and of the tunnel.
    pub fn reset(&mut self, code: v1::ResetCode, out: &mut Vec<u8>) {
        self.phase = Phase::Ended;
        self.control(FrameType::Reset, self.stream, &v1::Reset { code: code.into() }, out);
    }

    /// Server: writes `GOAWAY`. Between streams it still promises to serve the one whose `OPEN` may be on its way, so
    /// that no client has to guess whether a stream that crossed it was served.
    pub fn go_away(&mut self, out: &mut Vec<u8>) {
        if self.going_away.is_some() || self.role != Role::Server {
            return;
        }
        let crossing = u32::from(self.phase == Phase::Idle || self.stream_ended());
        let last_stream = self.stream.saturating_add(crossing);
        self.going_away = Some(last_stream);
        self.control(FrameType::GoAway, 0, &v1::GoAway { last_stream }, out);
    }

    /// The number that this side's next `REAUTH` carries.
    pub fn next_reauth(&self) -> u32 {
        self.own_reauths.saturating_add(1)
    }

    /// Writes `REAUTH`; its sequence number is [`Session::next_reauth`].
    pub fn reauth(&mut self, mut reauth: v1::Reauth, out: &mut Vec<u8>) {
        self.own_reauths = self.next_reauth();
        reauth.sequence = self.own_reauths;
        self.control(FrameType::Reauth, 0, &reauth, out);
    }

    /// Takes bytes from the front of `input`. Returns how many, and what they said, if something is complete; to be
    /// called again with the rest.
    ///
    /// Errors: what the protocol does not allow now. The tunnel is over; nothing may be sent but `RESET`.
    pub fn receive<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Received<'a>>), ProtocolError> {
        let result = self.decoder.decode(input).map_err(ProtocolError::from);
        let checked = result.and_then(|(taken, event)| match event {
            None => Ok((taken, None)),
            Some((stream, event)) => Ok((taken, Some(self.check(stream, event)?))),
        });
        if checked.is_err() {
            self.phase = Phase::Ended;
        }
        checked
    }

    /// The bytes that the next `DATA` frame announces, where `rest`, what lies behind a piece of `DATA` that was just received,
    /// begins with one: they can go to the application together with those before, and nothing else that was said lies
    /// between.
    pub fn next_data(&self, rest: &[u8]) -> Option<usize> {
        match *rest {
            [kind, high, middle, low, ..] if self.decoder.at_boundary() && kind == FrameType::Data as u8 => {
                Some(usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low))
            }
            _ => None,
        }
    }

    /// Whether `rest`, what lies behind `DATA` that was just received, begins with a whole `FIN`: that `DATA` was the peer's
    /// last, unless it breaks the rules.
    pub fn next_is_fin(&self, rest: &[u8]) -> bool {
        self.decoder.at_boundary() && rest.len() >= HEADER_LEN && rest.first() == Some(&(FrameType::Fin as u8))
    }

    fn check<'a>(&mut self, stream: u32, event: Event<'a>) -> Result<Received<'a>, ProtocolError> {
        let server = self.role == Role::Server;
        let current = stream == self.stream;
        let flowing = match self.phase {
            Phase::Open => current,
            Phase::Opening => current && server,
            Phase::Idle | Phase::Ended => false,
        };
        match event {
            Event::Open(open) if server && self.may_begin(stream) => {
                self.begin_stream();
                Ok(Received::Open(open))
            }
            Event::Accept(accept) if !server && current && self.phase == Phase::Opening => {
                self.phase = Phase::Open;
                self.bound = true;
                Ok(Received::Accept(accept))
            }
            Event::Refuse(refuse) if !server && current && self.phase == Phase::Opening => {
                self.phase = if self.sent_early || !self.bound { Phase::Ended } else { Phase::Idle };
                Ok(Received::Refuse(refuse))
            }
            Event::Data(bytes) if flowing && !self.fin_received => self.data_received(bytes),
            Event::Fin if flowing && !self.fin_received => {
                self.fin_received = true;
                Ok(Received::Fin)
            }
            Event::Reset(reset) if current && matches!(self.phase, Phase::Open | Phase::Opening) => {
                self.phase = Phase::Ended;
                Ok(Received::Reset(reset))
            }
            // The server ended the last stream after this client had done so, and then the tunnel: it never saw OPEN.
            Event::Reset(_)
                if !server && self.phase == Phase::Opening && stream.checked_add(1) == Some(self.stream) =>
            {
                self.phase = Phase::Ended;
                Ok(Received::GoAway(stream))
            }
            Event::GoAway(goaway) if !server && stream == 0 && self.going_away.is_none() => {
                self.going_away = Some(goaway.last_stream);
                Ok(Received::GoAway(goaway.last_stream))
            }
            Event::Reauth(reauth)
                if self.bound && stream == 0 && Some(reauth.sequence) == self.peer_reauths.checked_add(1) =>
            {
                self.peer_reauths = reauth.sequence;
                Ok(Received::Reauth(reauth))
            }
            other => Err(ProtocolError::Unexpected { frame: name(&other), stream, expected: self.expected() }),
        }
    }

    fn may_begin(&self, stream: u32) -> bool {
        let between = self.phase == Phase::Idle || (self.phase == Phase::Open && self.stream_ended());
        between && self.stream.checked_add(1) == Some(stream) && self.going_away.is_none_or(|last| stream <= last)
    }

    fn begin_stream(&mut self) {
        self.stream = self.stream.saturating_add(1);
        self.phase = Phase::Opening;
        self.fin_sent = false;
        self.fin_received = false;
        self.sent_early = false;
        self.early_received = 0;
    }

    fn data_received<'a>(&mut self, bytes: &'a [u8]) -> Result<Received<'a>, ProtocolError> {
        if self.phase == Phase::Opening {
            self.early_received = self.early_received.saturating_add(bytes.len());
            if self.early_received > MAX_PAYLOAD {
                return Err(ProtocolError::TooMuchEarlyData);
            }
        }
        Ok(Received::Data(bytes))
    }

    fn expected(&self) -> String {
        let stream = self.stream;
        match (self.role, self.phase) {
            (_, Phase::Ended) => "nothing more".into(),
            (Role::Server, Phase::Idle) => format!("OPEN of stream {}", stream.saturating_add(1)),
            (Role::Client, Phase::Idle) => "GOAWAY, REAUTH or the end".into(),
            (Role::Client, Phase::Opening) => format!("ACCEPT or REFUSE of stream {stream}"),
            (Role::Server, Phase::Opening) => format!("DATA, FIN or RESET of stream {stream}"),
            (_, Phase::Open) => format!("DATA or FIN (once) or RESET of stream {stream}, or REAUTH"),
        }
    }

    fn control(&self, frame: FrameType, stream: u32, message: &impl Message, out: &mut Vec<u8>) {
        out.extend_from_slice(&Header { frame, length: message.encoded_len(), stream }.encode());
        message.encode_raw(out);
    }
}

fn name(event: &Event<'_>) -> &'static str {
    match event {
        Event::Open(_) => "OPEN",
        Event::Accept(_) => "ACCEPT",
        Event::Refuse(_) => "REFUSE",
        Event::Data(_) => "DATA",
        Event::Fin => "FIN",
        Event::Reset(_) => "RESET",
        Event::GoAway(_) => "GOAWAY",
        Event::Reauth(_) => "REAUTH",
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
