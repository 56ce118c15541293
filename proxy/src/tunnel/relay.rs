//! Moves the bytes of one open stream, both ways at once, in one task and without a lock: what the application says
//! becomes `DATA`, what `DATA` brings goes to the application, and half-close, reset and renewal keep their meaning.

use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use byrnie_proto::tunnel::{HEADER_LEN, Session, v1::ResetCode};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::http::Exchanges;
use crate::limits::{ACCEPT_WAITS, BUFFER_APPLICATION, BUFFER_MIN};
use crate::shared::Shared;
use crate::sockets;
use crate::streams::{Cut, Registered};
use crate::tunnel::buffer::{Buffer, ReadSize, read_some};
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
    /// Of a frame with its header: what is read at once fills whole TLS records.
    size: ReadSize,
    /// What comes behind the bytes that were handed out last; a socket tells of it once.
    broken: Option<io::Error>,
}

/// What an application said.
pub(crate) struct Said<'a> {
    /// Room for a header, then what was read, if anything.
    pub(crate) frame: &'a mut Vec<u8>,
    /// There will be no more.
    pub(crate) ended: bool,
}

impl Said<'_> {
    /// Puts `DATA` and `FIN` into the frame, as far as they were said: together they are one record, and one write.
    /// Returns the bytes of the payload.
    pub(crate) fn write(&mut self, session: &mut Session) -> usize {
        let length = self.frame.len().saturating_sub(HEADER_LEN);
        match self.frame.first_chunk_mut() {
            Some(header) if length > 0 => *header = session.data(length),
            _ => self.frame.clear(),
        }
        if self.ended {
            session.fin(self.frame);
        }
        length
    }
}

impl FromApplication {
    pub(crate) fn new() -> FromApplication {
        FromApplication { frame: Vec::new(), size: ReadSize::default(), broken: None }
    }

    /// Reads what is there, at most `most` bytes and one frame.
    pub(crate) fn poll_read(
        &mut self,
        application: &TcpStream,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Said<'_>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        let size = (self.size.bytes() - HEADER_LEN).min(most);
        let mut read = 0;
        let ended = loop {
            match application.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending if read > 0 => break false,
                Poll::Pending => {
                    self.frame = Vec::new();
                    return Poll::Pending;
                }
            }
            if read == 0 {
                self.frame.clear();
                self.frame.reserve_exact(HEADER_LEN + size);
                self.frame.extend_from_slice(&[0; HEADER_LEN]);
            }
            match read_some(application, &mut self.frame, size - read) {
                Ok(0) => break true,
                // Whoever has said less than there was room for may have ended behind it, and the socket knows that.
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if read > 0 => {
                    self.broken = Some(error);
                    break false;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
            if read == size {
                break false;
            }
        };
        self.size.adapt(read + HEADER_LEN, BUFFER_APPLICATION);
        Poll::Ready(Ok(Said { frame: &mut self.frame, ended }))
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
    /// The `ACCEPT` that lies in front of the application's first word waits for it.
    accept_waits: bool,
    /// The application was dialled with [`sockets::connect_in_pod`]'s `speaks_first`, and has heard nothing yet.
    speaks_first: bool,
    /// Looks at what passes, where it is declared to be HTTP/1.
    http: Option<Box<Exchanges>>,
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
            accept_waits: false,
            speaks_first: false,
            http: None,
            sent: 0,
            received: 0,
        }
    }

    /// The tunnel holds an `ACCEPT` that has not been sent: it may go out with the application's first word.
    pub(crate) fn behind_accept(mut self) -> Relay<'a> {
        self.accept_waits = true;
        self
    }

    /// The application was dialled with this `speaks_first`.
    pub(crate) fn speaking_first(mut self, speaks_first: bool) -> Relay<'a> {
        self.speaks_first = speaks_first;
        self
    }

    /// Shows what passes to `http`, if there is one.
    pub(crate) fn shown_to(mut self, http: Option<Box<Exchanges>>) -> Relay<'a> {
        self.http = http;
        self
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
            Ok(()) => self.moved().await,
            Err(error) => End::Tunnel(error),
        };
        self.tunnel.tls.release();
        end
    }

    async fn moved(&mut self) -> End {
        if self.accept_waits {
            tokio::select! {
                biased;
                end = std::future::poll_fn(|cx| self.poll(cx)) => return end,
                () = tokio::time::sleep(ACCEPT_WAITS) => self.accept_waits = false,
            }
        }
        std::future::poll_fn(|cx| self.poll(cx)).await
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

    /// Moves what can be moved now, until both directions wait for a socket. What has come to wait is not asked again: it
    /// has left word of whom to wake, and what the application says does not change what the tunnel has.
    fn pump(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut down = Poll::Ready(());
        loop {
            if down.is_ready() {
                down = self.pump_down(cx)?;
            }
            let up = self.pump_up(cx)?;
            if up.is_pending() && down.is_pending() || self.ended() {
                return Ok(());
            }
        }
    }

    /// Application to tunnel, one frame. `Ready`: something moved.
    fn pump_up(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        // A client with more to say than this may have to wait for the answer.
        self.accept_waits &= self.received <= BUFFER_MIN as u64;
        if !self.accept_waits {
            match self.tunnel.tls.poll_flush(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(flushed) => flushed.map_err(|error| End::Tunnel(error.into()))?,
            }
        }
        if self.tunnel.session.fin_sent() {
            return Ok(Poll::Pending);
        }
        let mut said = match self.from_application.poll_read(self.application, BUFFER_APPLICATION, cx) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(said) => said.map_err(End::Application)?,
        };
        if let Some(http) = &mut self.http {
            http.application_said(said.frame.get(HEADER_LEN..).unwrap_or_default(), Instant::now());
        }
        self.sent += said.write(&mut self.tunnel.session) as u64;
        self.tunnel.tls.encrypt(said.frame).map_err(|error| End::Tunnel(error.into()))?;
        self.accept_waits = false;
        if said.ended {
            // Gives back its room: the other direction may go on for hours.
            self.from_application = FromApplication::new();
            self.stream.set_half_closed();
        }
        self.stream.touch();
        Ok(Poll::Ready(()))
    }

    /// Tunnel to application, until one of them can't go on. `Ready`: something other than bytes was heard.
    fn pump_down(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, End> {
        if self.deliver(cx)?.is_pending() {
            // Nothing is read until the application has read: that may be never.
            self.tunnel.tls.shrink_incoming();
            return Ok(Poll::Pending);
        }
        if self.tunnel.session.stream_ended() {
            return Ok(Poll::Pending);
        }
        let Relay { tunnel, application, to_application, received, http, .. } = self;
        let received_before = *received;
        let mut broken = None;
        let heard = tunnel.poll_heard(cx, |pieces, last| {
            *received += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
            if let Some(http) = http {
                let now = Instant::now();
                pieces.iter().for_each(|piece| http.application_hears(piece, now));
            }
            match sockets::write_some(application, pieces, last) {
                Ok(count) => to_application.extend_behind(count, pieces),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to_application.extend_behind(0, pieces),
                Err(error) => broken = Some(error),
            }
            to_application.is_empty() && broken.is_none()
        });
        if let Some(error) = broken {
            return Err(End::Application(error));
        }
        if *received > received_before {
            if std::mem::take(&mut self.speaks_first) {
                sockets::spoken_first(self.application);
            }
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
            if !self.ended() {
                // An application that has gone already has no use for the news.
                let _ = SockRef::from(self.application).shutdown(std::net::Shutdown::Write);
            }
        }
        Ok(Poll::Ready(()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use byrnie_proto::tunnel::v1::Open;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::test_support::connected;
    use crate::tunnel::client::{self, Early};
    use crate::tunnel::tests::{Rig, registered};

    async fn said(from: &mut FromApplication, application: &TcpStream) -> io::Result<(Vec<u8>, bool)> {
        std::future::poll_fn(|cx| {
            let said = from.poll_read(application, BUFFER_APPLICATION, cx);
            said.map_ok(|said| (said.frame.get(HEADER_LEN..).unwrap_or_default().to_vec(), said.ended))
        })
        .await
    }

    #[tokio::test]
    async fn last_words_and_the_end_behind_them_are_one_frame() {
        let (mut near, far) = connected().await;
        near.write_all(b"last words").await.unwrap();
        near.shutdown().await.unwrap();
        // Until both have arrived.
        far.ready(tokio::io::Interest::READABLE).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        assert_eq!(said(&mut FromApplication::new(), &far).await.unwrap(), (b"last words".to_vec(), true));
    }

    #[tokio::test]
    async fn a_reset_behind_the_last_words_loses_neither_of_them() {
        let (mut near, far) = connected().await;
        near.write_all(b"last words").await.unwrap();
        near.set_zero_linger().unwrap();
        drop(near);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let mut from = FromApplication::new();
        assert_eq!(said(&mut from, &far).await.unwrap(), (b"last words".to_vec(), false));
        assert_eq!(said(&mut from, &far).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_direction_that_has_ended_holds_no_room_while_the_other_goes_on() {
        const SAID: usize = 200_000;
        let rig = Rig::new().await;
        let mut tunnel = rig.dial().await;
        let (mut near, far) = connected().await;
        client::open(&mut tunnel, &rig.client, &far, &mut Early::default(), Open::default()).await.unwrap();
        let registered = registered(&rig.client, &tunnel, rig.address);
        let mut relay = Relay::new(&rig.client, &mut tunnel, &far, &registered);
        let mut application = rig.accepted().await;
        let mut heard = Vec::new();
        let crossed = async {
            let said = async {
                near.write_all(&vec![7; SAID]).await?;
                near.shutdown().await
            };
            tokio::try_join!(said, application.read_to_end(&mut heard)).unwrap();
        };
        tokio::select! {
            end = relay.run() => panic!("the other direction has not ended: {end:?}"),
            () = crossed => {}
        }
        assert_eq!(heard.len(), SAID);
        assert_eq!(relay.from_application.frame.capacity() + relay.tunnel.tls.buffered(), 0);
    }
}
