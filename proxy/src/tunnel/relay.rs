//! Moves the bytes of one open stream, both ways at once, in one task and without a lock: what the application says
//! becomes `DATA`, what `DATA` brings goes to the application, and half-close, reset and renewal keep their meaning.

use std::io;
use std::task::{Context, Poll};

use byrnie_proto::tunnel::{HEADER_LEN, v1::ResetCode};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::limits::{BUFFER_APPLICATION, BUFFER_MIN};
use crate::shared::Shared;
use crate::streams::{Cut, Registered};
use crate::tunnel::buffer::{Buffer, read_some};
use crate::tunnel::{Heard, Tunnel, TunnelError};

/// How a stream ended.
#[derive(Debug)]
pub(crate) enum End {
    /// `FIN` both ways: the tunnel may serve another stream.
    Clean,
    /// The peer reset the stream.
    ResetByPeer(ResetCode),
    /// The application's connection broke.
    Application(io::Error),
    /// The tunnel broke or its peer broke the rules.
    Tunnel(TunnelError),
    /// This side may not go on.
    Cut(Cut),
}

impl End {
    /// A label from a closed set, for metrics and the access log.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            End::Clean => "clean",
            End::ResetByPeer(code) => match code {
                ResetCode::PolicyDenied => "cut-by-peer-policy",
                ResetCode::IdentityExpired => "cut-by-peer-identity-expired",
                ResetCode::ReauthFailed => "cut-by-peer-reauth-failed",
                ResetCode::Shutdown => "cut-by-peer-shutdown",
                _ => "reset-by-peer",
            },
            End::Application(_) => "reset-by-application",
            End::Tunnel(error) => error.cause(),
            End::Cut(cut) => cut.cause,
        }
    }

    /// The sentence for the log; `None` where the label says it all.
    pub(crate) fn detail(&self) -> Option<String> {
        match self {
            End::Clean | End::ResetByPeer(_) => None,
            End::Application(error) => Some(error.to_string()),
            End::Tunnel(error) => Some(error.to_string()),
            End::Cut(cut) => Some(cut.reason.clone()),
        }
    }

    /// What the peer has to be told, where the tunnel still takes it.
    pub(crate) fn reset_code(&self) -> Option<ResetCode> {
        match self {
            End::Clean | End::ResetByPeer(_) => None,
            End::Application(_) => Some(ResetCode::Application),
            End::Tunnel(TunnelError::Protocol(_)) => Some(ResetCode::ProtocolError),
            End::Tunnel(TunnelError::Reauth(_) | TunnelError::Identity(_)) => Some(ResetCode::ReauthFailed),
            End::Tunnel(_) => None,
            End::Cut(cut) => Some(cut.code),
        }
    }
}

/// Reads an application's bytes into `DATA` frames.
pub(crate) struct FromApplication {
    /// Room for a header, then what was read.
    frame: Vec<u8>,
    size: usize,
}

impl FromApplication {
    pub(crate) fn new() -> FromApplication {
        FromApplication { frame: Vec::new(), size: BUFFER_MIN - HEADER_LEN }
    }

    /// Reads once. `Ready(Some(payload))`: bytes came; `Ready(None)`: there will be no more.
    pub(crate) fn poll_read(
        &mut self,
        application: &TcpStream,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<&mut Vec<u8>>>> {
        loop {
            match application.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    *self = FromApplication::new();
                    return Poll::Pending;
                }
            }
            let size = self.size.min(most);
            self.frame.clear();
            self.frame.reserve_exact(HEADER_LEN + size);
            self.frame.extend_from_slice(&[0; HEADER_LEN]);
            match read_some(application, &mut self.frame, size) {
                Ok(0) => return Poll::Ready(Ok(None)),
                Ok(count) => {
                    if count == self.size {
                        self.size = ((self.size + HEADER_LEN) * 4 - HEADER_LEN).min(BUFFER_APPLICATION);
                    }
                    return Poll::Ready(Ok(Some(&mut self.frame)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// An open stream between a tunnel and the application's connection.
pub(crate) struct Relay<'a> {
    shared: &'a Shared,
    tunnel: &'a mut Tunnel,
    application: &'a TcpStream,
    stream: &'a Registered<'a>,
    from_application: FromApplication,
    /// What came for the application and did not fit its socket.
    to_application: Buffer,
    application_told_end: bool,
    /// Bytes that the application sent into the tunnel.
    pub(crate) sent: u64,
    /// Bytes that the tunnel brought to the application.
    pub(crate) received: u64,
}

impl<'a> Relay<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        tunnel: &'a mut Tunnel,
        application: &'a TcpStream,
        stream: &'a Registered<'a>,
    ) -> Relay<'a> {
        Relay {
            shared,
            tunnel,
            application,
            stream,
            from_application: FromApplication::new(),
            to_application: Buffer::default(),
            application_told_end: false,
            sent: 0,
            received: 0,
        }
    }

    /// Moves bytes until the stream has ended.
    pub(crate) async fn run(&mut self) -> End {
        // A renewal may lie between this tunnel's handshake and this stream's registration, on either side; who asks
        // every registered stream to prove it did not find this one.
        self.stream.set_peer(self.tunnel.peer.clone());
        if self.tunnel.session.fin_sent() {
            self.stream.set_half_closed();
        }
        let end = match self.prove() {
            Ok(()) => std::future::poll_fn(|cx| self.poll(cx)).await,
            Err(error) => End::Tunnel(error),
        };
        self.tunnel.tls.release();
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.stream.register(cx);
        if let Err(end) = self.answer_requests() {
            return Poll::Ready(end);
        }
        match self.pump(cx) {
            Err(end) => Poll::Ready(end),
            Ok(()) if self.ended() => Poll::Ready(End::Clean),
            Ok(()) => Poll::Pending,
        }
    }

    fn ended(&self) -> bool {
        self.tunnel.session.stream_ended() && self.application_told_end && self.tunnel.tls.is_flushed()
    }

    /// What the registry asks of this stream.
    fn answer_requests(&mut self) -> Result<(), End> {
        if let Some(cut) = self.stream.cut() {
            return Err(End::Cut(cut.clone()));
        }
        if self.stream.take_prove() {
            self.prove().map_err(End::Tunnel)?;
        }
        if self.stream.take_go_away() {
            self.tunnel.send(|session, out| session.go_away(out)).map_err(End::Tunnel)?;
        }
        Ok(())
    }

    fn prove(&mut self) -> Result<(), TunnelError> {
        match self.shared.certificates.current() {
            Some(own) => self.tunnel.prove(&own),
            None => Ok(()),
        }
    }

    /// Moves what can be moved now, until both directions wait for a socket.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        loop {
            let up = self.pump_up(cx)?;
            let down = self.pump_down(cx)?;
            if up.is_pending() && down.is_pending() || self.ended() {
                return Ok(());
            }
        }
    }

    /// Application to tunnel, one frame. `Ready`: something moved.
    fn pump_up(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        match self.tunnel.tls.poll_flush(cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(flushed) => flushed.map_err(|error| End::Tunnel(error.into()))?,
        }
        if self.tunnel.session.fin_sent() {
            return Ok(Poll::Pending);
        }
        let read = match self.from_application.poll_read(self.application, BUFFER_APPLICATION, cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(read) => read.map_err(End::Application)?,
        };
        match read {
            None => {
                self.tunnel.send(|session, out| session.fin(out)).map_err(End::Tunnel)?;
                self.stream.set_half_closed();
            }
            Some(frame) => {
                let length = frame.len() - HEADER_LEN;
                write_header(frame, self.tunnel.session.data(length));
                self.tunnel.tls.encrypt(frame).map_err(|error| End::Tunnel(error.into()))?;
                self.sent += length as u64;
            }
        }
        self.stream.touch();
        Ok(Poll::Ready(()))
    }

    /// Tunnel to application, until one of them can't go on. `Ready`: something other than bytes was heard.
    fn pump_down(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        if self.deliver(cx)?.is_pending() {
            return Ok(Poll::Pending);
        }
        if self.tunnel.session.stream_ended() {
            return Ok(Poll::Pending);
        }
        let Relay { tunnel, application, to_application, received, .. } = self;
        let received_before = *received;
        let mut broken = None;
        let heard = tunnel.poll_heard(cx, |piece| {
            *received += piece.len() as u64;
            match application.try_write(piece) {
                Ok(count) => to_application.extend(piece.get(count..).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to_application.extend(piece),
                Err(error) => broken = Some(error),
            }
            to_application.is_empty() && broken.is_none()
        });
        if let Some(error) = broken {
            return Err(End::Application(error));
        }
        if *received > received_before {
            self.stream.touch();
        }
        let heard = match heard {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(heard) => heard.map_err(End::Tunnel)?,
        };
        self.heard(heard)?;
        Ok(Poll::Ready(()))
    }

    fn heard(&mut self, heard: Heard) -> Result<(), End> {
        match heard {
            Heard::Data => {}
            Heard::Fin => self.stream.set_half_closed(),
            Heard::Reset(code) => return Err(End::ResetByPeer(code)),
            Heard::Closed => return Err(End::Tunnel(crate::tunnel::tls::TlsError::Truncated.into())),
            Heard::GoAway(_) => {}
            Heard::Reauth(reauth) => {
                self.tunnel.renewed(&reauth, self.shared.certificates.verifier()).map_err(End::Tunnel)?;
                self.stream.set_peer(self.tunnel.peer.clone());
                self.stream.check(self.shared).map_err(End::Cut)?;
            }
            Heard::Open(_) | Heard::Accept(_) | Heard::Refuse(_) => {
                return Err(End::Tunnel(self.tunnel.unexpected("OPEN, ACCEPT or REFUSE")));
            }
        }
        Ok(())
    }

    /// Gives the application what waits for it, and after the last byte the end.
    fn deliver(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        while !self.to_application.is_empty() {
            match self.application.try_write(self.to_application.filled()) {
                Ok(count) => {
                    self.to_application.consume(count);
                    self.stream.touch();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.application.poll_write_ready(cx) {
                        Poll::Pending => return Ok(Poll::Pending),
                        Poll::Ready(ready) => ready.map_err(End::Application)?,
                    }
                }
                Err(error) => return Err(End::Application(error)),
            }
        }
        self.to_application.release();
        if self.tunnel.session.fin_received() && !self.application_told_end {
            self.application_told_end = true;
            // An application that has gone already has no use for the news.
            let _ = SockRef::from(self.application).shutdown(std::net::Shutdown::Write);
        }
        Ok(Poll::Ready(()))
    }
}

/// Puts the header in front of the payload that [`FromApplication`] left room before.
pub(crate) fn write_header(frame: &mut [u8], header: [u8; HEADER_LEN]) {
    if let Some(room) = frame.first_chunk_mut() {
        *room = header;
    }
}
