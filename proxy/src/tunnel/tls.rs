//! TLS over one TCP connection, driven through rustls' unbuffered API: a connection between bytes holds no buffer.
//! It knows nothing of frames.

use std::io;
use std::task::{Context, Poll, ready};

use byrnie_identity::tls::ALPN_TUNNEL;
use byrnie_redirect::Leg;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};
use socket2::SockRef;
use thiserror::Error;
use tokio::net::TcpStream;

use crate::limits::{ALERT, BUFFER_MIN, BUFFER_TLS, HANDSHAKE_MESSAGE};
use crate::tunnel::buffer::{Buffer, ReadSize, read_some};
use crate::tunnel::tls_reason;

/// The largest TLS record with its header (RFC 8446, 5.2): a buffer that holds part of one must be able to take all.
const RECORD_MAX: usize = 5 + 16 * 1024 + 256;

/// What a record adds to its plaintext: header, content type, tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// Why a TLS connection is over.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    /// The TCP connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer broke the protocol, or its certificate was refused, or it refused ours.
    #[error("{}", tls_reason(.0))]
    Protocol(#[from] rustls::Error),
    /// TCP ended before TLS did.
    #[error("the connection ended without close_notify")]
    Truncated,
    /// This connection has sent all that its key may (RFC 8446, 5.5).
    #[error("the traffic key is used up")]
    KeyExhausted,
    /// The peer began a handshake message that no honest one needs.
    #[error("a handshake message is not complete after {0} bytes")]
    EndlessMessage(usize),
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What the other end has ended, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerEnd {
    Open,
    /// close_notify came.
    Closed,
    /// TCP ended without it.
    Truncated,
}

/// One TLS connection.
pub(crate) struct Tls {
    io: TcpStream,
    side: Side,
    /// Ciphertext that came and is not decrypted yet.
    incoming: Buffer,
    /// Plaintext that nobody could take yet.
    plaintext: Buffer,
    /// Ciphertext that TCP has not taken yet.
    outgoing: Buffer,
    read_size: ReadSize,
    peer_end: PeerEnd,
    close_sent: bool,
    /// rustls has refused something: it is not asked again.
    failed: bool,
}

impl Tls {
    pub(crate) fn client(io: TcpStream, connection: UnbufferedClientConnection) -> Tls {
        Tls::new(io, Side::Client(Box::new(connection)), Vec::new())
    }

    /// `read` is what was read from `io` before it was known to be TLS.
    pub(crate) fn server(io: TcpStream, connection: UnbufferedServerConnection, read: Vec<u8>) -> Tls {
        Tls::new(io, Side::Server(Box::new(connection)), read)
    }

    fn new(io: TcpStream, side: Side, read: Vec<u8>) -> Tls {
        Tls {
            io,
            side,
            incoming: Buffer::from(read),
            plaintext: Buffer::default(),
            outgoing: Buffer::default(),
            read_size: ReadSize::default(),
            peer_end: PeerEnd::Open,
            close_sent: false,
            failed: false,
        }
    }

    /// The TCP connection under it.
    pub(crate) fn leg(&self) -> Option<Leg> {
        Leg::of(&self.io).ok()
    }

    pub(crate) fn peer_end(&self) -> PeerEnd {
        self.peer_end
    }

    /// Whether every byte that was given to TLS is with TCP.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Gives back the memory of empty buffers, for a connection that will be quiet now.
    pub(crate) fn release(&mut self) {
        self.incoming.release();
        self.plaintext.release();
        self.outgoing.release();
        self.read_size = ReadSize::default();
    }

    /// Bytes of memory that the buffers hold.
    #[cfg(test)]
    pub(crate) fn buffered(&self) -> usize {
        self.incoming.capacity() + self.plaintext.capacity() + self.outgoing.capacity()
    }

    /// The connection under TLS.
    #[cfg(test)]
    pub(crate) fn io(&self) -> &TcpStream {
        &self.io
    }

    pub(crate) fn facts<R>(&self, read: impl FnOnce(&rustls::CommonState) -> R) -> R {
        match &self.side {
            Side::Client(connection) => read(connection),
            Side::Server(connection) => read(connection),
        }
    }

    /// rustls lets a peer in that says nothing of ALPN; whoever has not agreed on `byrnie/1` is no tunnel.
    pub(crate) fn require_tunnel_alpn(&self) -> Result<(), TlsError> {
        let agreed = self.facts(|state| state.alpn_protocol().is_some_and(|name| name == ALPN_TUNNEL));
        if agreed { Ok(()) } else { Err(rustls::Error::NoApplicationProtocol.into()) }
    }

    pub(crate) fn peer_chain(&self) -> Option<&[CertificateDer<'static>]> {
        match &self.side {
            Side::Client(connection) => connection.peer_certificates(),
            Side::Server(connection) => connection.peer_certificates(),
        }
    }

    /// Runs the handshake to its end. Errors: those of TCP, of the peer, and of our verifier; where TLS has an alert for
    /// the error, the peer is told.
    pub(crate) async fn handshake(&mut self) -> Result<(), TlsError> {
        let result = std::future::poll_fn(|cx| self.poll_handshake(cx)).await;
        if let Err(TlsError::Protocol(_)) = result {
            let _ = tokio::time::timeout(ALERT, self.end()).await;
        }
        result
    }

    /// Sends what waits, and then the end, and waits for the peer's: bytes of the peer that nobody had read when TCP
    /// closes would make the kernel send a reset, which may overtake our last word at the peer.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await?;
        SockRef::from(&self.io).shutdown(std::net::Shutdown::Write)?;
        self.incoming = Buffer::default();
        loop {
            self.io.readable().await?;
            match self.incoming.read_from(BUFFER_MIN, |into| self.io.try_read_buf(into)) {
                Ok(0) => return Ok(()),
                Ok(count) => self.incoming.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        loop {
            let progressed = self.advance();
            ready!(self.poll_flush(cx))?;
            progressed?;
            if !self.facts(|state| state.is_handshaking()) {
                return Poll::Ready(Ok(()));
            }
            match ready!(self.poll_fill(cx))? {
                0 => return Poll::Ready(Err(TlsError::Truncated)),
                _ => continue,
            }
        }
    }

    /// Encrypts `plaintext` behind what already waits to be sent.
    pub(crate) fn encrypt(&mut self, plaintext: &[u8]) -> Result<(), TlsError> {
        if plaintext.is_empty() {
            return Ok(());
        }
        self.step(Some(Write::Data(plaintext)))
    }

    /// Queues close_notify: nothing may be sent after it.
    pub(crate) fn close(&mut self) -> Result<(), TlsError> {
        if self.close_sent {
            return Ok(());
        }
        self.close_sent = true;
        self.step(Some(Write::Close))
    }

    /// Decrypts all that came and says what is there to be taken, in order.
    pub(crate) fn plaintext(&mut self) -> Result<&[u8], TlsError> {
        if self.plaintext.is_empty() && !self.incoming.is_empty() {
            // A record's plaintext is shorter than the record.
            self.plaintext.reserve(self.incoming.len());
            self.advance()?;
        }
        Ok(self.plaintext.filled())
    }

    /// What [`Tls::plaintext`] has shown and nobody has taken.
    pub(crate) fn decrypted(&self) -> &[u8] {
        self.plaintext.filled()
    }

    /// Gives back the room for records, of which at most one has come in part when all others are decrypted.
    pub(crate) fn shrink_incoming(&mut self) {
        self.incoming.shrink();
    }

    /// Takes `count` bytes from the front of what [`Tls::plaintext`] showed.
    pub(crate) fn consume_plaintext(&mut self, count: usize) {
        self.plaintext.consume(count);
    }

    /// Reads from TCP once. `Ready(0)` is TCP's end; [`Tls::peer_end`] says whether TLS had ended before.
    ///
    /// # Errors
    /// Those of TCP, and a message of TLS that is too long: rustls holds no bytes of its own, so its bounds are ours.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, TlsError>> {
        let partial = self.incoming.len();
        if partial > HANDSHAKE_MESSAGE {
            return Poll::Ready(Err(TlsError::EndlessMessage(partial)));
        }
        loop {
            match self.io.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    if partial == 0 {
                        self.incoming.release();
                        self.plaintext.release();
                    }
                    return Poll::Pending;
                }
            }
            // A frame of this size comes as one record, which is longer.
            let room = self.read_size.bytes() + RECORD_OVERHEAD;
            let room = room.max(if partial > 0 { RECORD_MAX.saturating_sub(partial) } else { 0 });
            match self.incoming.read_from(room, |into| read_some(&self.io, into, room)) {
                Ok(0) => {
                    if self.peer_end == PeerEnd::Open {
                        self.peer_end = PeerEnd::Truncated;
                    }
                    return Poll::Ready(Ok(0));
                }
                Ok(count) => {
                    self.read_size.adapt(count, BUFFER_TLS);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Writes what waits to be sent until all of it is with TCP.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match self.io.try_write(self.outgoing.filled()) {
                Ok(count) => self.outgoing.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.io.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.outgoing.release();
        Poll::Ready(Ok(()))
    }

    /// Lets rustls work on what came, without anything to send.
    fn advance(&mut self) -> Result<(), TlsError> {
        self.step(None)
    }

    fn step(&mut self, write: Option<Write<'_>>) -> Result<(), TlsError> {
        if self.failed {
            return Err(rustls::Error::General("TLS has failed already".to_owned()).into());
        }
        let Tls { side, incoming, plaintext, outgoing, peer_end, failed, .. } = self;
        let mut ends = Ends { plaintext, outgoing, peer_end };
        let stepped = match side {
            Side::Client(connection) => drive(connection.as_mut(), incoming, &mut ends, write),
            Side::Server(connection) => drive(connection.as_mut(), incoming, &mut ends, write),
        };
        if stepped.is_err() {
            // rustls hands out its alert before it looks at what came; asked once more, it would refuse that again, with
            // another alert, and asserts that there is one.
            *failed = true;
            match side {
                Side::Client(connection) => take_alert(connection.as_mut(), incoming, &mut ends),
                Side::Server(connection) => take_alert(connection.as_mut(), incoming, &mut ends),
            }
        }
        stepped
    }
}

#[derive(Clone, Copy)]
enum Write<'a> {
    Data(&'a [u8]),
    Close,
}

/// Where the two ends of TLS lead.
struct Ends<'a> {
    plaintext: &'a mut Buffer,
    outgoing: &'a mut Buffer,
    peer_end: &'a mut PeerEnd,
}

/// The two kinds of rustls connection, which share all but the name of their method.
trait Unbuffered {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// What rustls has to say to the peer after an error, if anything.
fn take_alert<C: Unbuffered>(connection: &mut C, incoming: &mut Buffer, ends: &mut Ends<'_>) {
    let UnbufferedStatus { mut discard, state, .. } = connection.process(incoming.filled_mut());
    if let Ok(state @ ConnectionState::EncodeTlsData(_)) = state {
        let _ = handle(state, &mut discard, ends, None);
    }
}

/// Runs the state machine of rustls until it wants bytes from TCP, and until `write` is done. All of `incoming` is shown
/// to it for a write too: while a handshake message is incomplete, rustls holds positions in those bytes.
fn drive<C: Unbuffered>(
    connection: &mut C,
    incoming: &mut Buffer,
    ends: &mut Ends<'_>,
    write: Option<Write<'_>>,
) -> Result<(), TlsError> {
    loop {
        let UnbufferedStatus { mut discard, state, .. } = connection.process(incoming.filled_mut());
        let outcome = match state {
            Err(error) => Err(error.into()),
            Ok(state) => handle(state, &mut discard, ends, write),
        };
        incoming.consume(discard);
        match outcome {
            Ok(Step::Again) => {}
            Ok(Step::Done) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

enum Step {
    Again,
    Done,
}

fn handle<Data>(
    state: ConnectionState<'_, '_, Data>,
    discard: &mut usize,
    ends: &mut Ends<'_>,
    write: Option<Write<'_>>,
) -> Result<Step, TlsError> {
    match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                ends.plaintext.extend(record.payload);
                *discard += record.discard;
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut encode) => {
            let mut room = RECORD_MAX;
            loop {
                match ends.outgoing.append(room, |out| encode.encode(out)) {
                    Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => room = required_size,
                    Ok(()) | Err(EncodeError::AlreadyEncoded) => return Ok(Step::Again),
                }
            }
        }
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Ok(Step::Again)
        }
        ConnectionState::PeerClosed => {
            *ends.peer_end = PeerEnd::Closed;
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(traffic) => perform(traffic, ends.outgoing, write),
        ConnectionState::BlockedHandshake if write.is_some() => Err(rustls::Error::HandshakeNotComplete.into()),
        ConnectionState::BlockedHandshake | ConnectionState::Closed => Ok(Step::Done),
        _ => Err(rustls::Error::General("early data was not asked for".into()).into()),
    }
}

fn perform<Data>(
    mut traffic: WriteTraffic<'_, Data>,
    outgoing: &mut Buffer,
    write: Option<Write<'_>>,
) -> Result<Step, TlsError> {
    let Some(write) = write else { return Ok(Step::Done) };
    let mut room = match write {
        Write::Data(plaintext) => plaintext.len() + plaintext.len().div_ceil(16 * 1024) * RECORD_OVERHEAD,
        Write::Close => 2 + RECORD_OVERHEAD,
    };
    loop {
        let written = outgoing.append(room, |out| match write {
            Write::Data(plaintext) => traffic.encrypt(plaintext, out),
            Write::Close => traffic.queue_close_notify(out),
        });
        match written {
            Ok(()) => return Ok(Step::Done),
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => room = required_size,
            Err(EncryptError::EncryptExhausted) => return Err(TlsError::KeyExhausted),
        }
    }
}
