//! Every frame in every state in which it does not belong, with every wrong stream number, and frames that are none: the
//! tunnel ends, its application sees a reset and nothing that did not belong to it, and nobody else sees anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::{Svid, SvidVerifier};
use byrnie_proto::tunnel::{Decoder, Event, FrameType, HEADER_LEN, Header, Role, Session, v1};
use byrnie_scenarios::raw::{self, Mint, Said};
use byrnie_scenarios::{DEADLINE, Ending, Mesh, Pod, World, ending, finish, hear, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::HOUR;

/// Where a tunnel stands when the frame comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before its first stream.
    New,
    /// Stream 1 was asked for, and not answered yet.
    Opening,
    /// Stream 1 is open.
    Open,
    /// Stream 1 is open, and the one who speaks has said FIN.
    Finished,
    /// Stream 1 has ended cleanly.
    Between,
}

const FRAMES: [FrameType; 8] = [
    FrameType::Open,
    FrameType::Accept,
    FrameType::Refuse,
    FrameType::Data,
    FrameType::Fin,
    FrameType::Reset,
    FrameType::GoAway,
    FrameType::Reauth,
];
const STREAMS: [u32; 3] = [0, 1, 2];

pub(crate) async fn a_server_takes_no_frame_where_it_does_not_belong(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = orders.serve(8080, move |stream| application(stream, told.clone()));
    let stranger = Stranger::new(&mesh, orders.at(8080)).await;
    let mut opened = 0;
    for state in [State::New, State::Open, State::Finished, State::Between] {
        for (what, bytes) in wrong_for_a_server(state) {
            let end = stranger.says(state, &bytes).await;
            // REAUTH belongs there, and proves nothing: that has a code of its own.
            let codes = [v1::ResetCode::ProtocolError, v1::ResetCode::ReauthFailed];
            assert!(codes.iter().any(|code| end == Some(*code)), "{what} in {state:?}: the tunnel ended with {end:?}");
            if state == State::New {
                continue;
            }
            opened += 1;
            let (words, seen) = within("the application's end", DEADLINE / 5, heard.recv()).await.unwrap();
            assert_eq!(words, first_word(state), "{what} in {state:?} reached the application");
            let expected = if state == State::Between { Ending::Clean } else { Ending::Reset };
            assert_eq!(seen, expected, "{what} in {state:?}");
        }
    }
    // A frame that is cut short is an end of the tunnel without FIN.
    for bytes in [vec![4, 0, 0], vec![4, 0, 0, 100, 0, 0, 0, 1, b'x'], vec![6, 0, 0, 2, 0, 0, 0, 1, 8]] {
        stranger.says(State::Open, &bytes).await;
        opened += 1;
        let (words, seen) = within("the application's end", DEADLINE / 5, heard.recv()).await.unwrap();
        assert!(words == b"o" || words == b"ox", "{words:?}");
        assert_eq!(seen, Ending::Reset, "{bytes:?}");
    }
    assert_eq!(app.connections(), opened, "each stream was one connection");
    let mut call = web.connect(orders.at(8080)).await.unwrap();
    call.write_all(b"b").await.unwrap();
    assert_eq!(finish(&mut call).await.unwrap(), b".");
    no_panic(&[&web, &orders]);
}

pub(crate) async fn a_client_takes_no_frame_where_it_does_not_belong(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    orders.kill_proxy();
    orders.flush_capture();
    let mint = Mint::of(&mesh);
    let (svid, trusting) = (mint.svid("shop", "orders", HOUR), raw::verifier(mint.bundle()));
    let (hand, mut tunnels) = mpsc::unbounded_channel();
    let _app = orders.serve(8080, move |stream| {
        let (svid, trusting, hand) = (svid.clone(), trusting.clone(), hand.clone());
        async move {
            if let Ok(tunnel) = raw::accept(stream, &svid, &trusting).await {
                let _ = hand.send(tunnel);
            }
        }
    });
    for state in [State::Opening, State::Open, State::Finished] {
        for (what, bytes) in wrong_for_a_client(state) {
            let mut client = web.connect(orders.at(8080)).await.unwrap();
            // What has been said is not said again: the first wrong frame ends the connection.
            client.write_all(b"once").await.unwrap();
            let mut tunnel = within("a tunnel", DEADLINE / 5, tunnels.recv()).await.unwrap();
            assert!(matches!(tunnel.hear().await, Said::Open(_)));
            assert_eq!(tunnel.hear_data(4).await, b"once");
            if state != State::Opening {
                tunnel.accept_stream().await;
                tunnel.data(b"good").await;
                assert_eq!(hear(&mut client, 4).await.unwrap(), b"good");
            }
            if state == State::Finished {
                tunnel.fin().await;
                assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "the end of what the server says");
            }
            tunnel.say(&bytes).await;
            let mut stream = tunnel.into_stream();
            let mut rest = Vec::new();
            let _ = within(&format!("the end of the tunnel after {what}"), DEADLINE / 5, stream.read_to_end(&mut rest))
                .await;
            let seen = if state == State::Finished { broken(&mut client).await } else { last(&mut client).await };
            assert_eq!(seen, Ending::Reset, "{what} in {state:?}");
        }
    }
    assert_eq!(web.status().await["idle_tunnels"], 0, "a tunnel that broke the rules was kept");
    assert!(tunnels.try_recv().is_err(), "something was said again");
    no_panic(&[&web]);
}

/// Frames that a server must not take.
fn wrong_for_a_server(state: State) -> Vec<(String, Vec<u8>)> {
    wrong(state, |frame, stream| match (state, frame) {
        (State::New, FrameType::Open) => stream == 1,
        (State::Between, FrameType::Open) => stream == 2,
        (State::Open, FrameType::Data | FrameType::Fin) => stream == 1,
        // Allowed, and the end in any case.
        (State::Open | State::Finished | State::Between, FrameType::Reset) => stream == 1,
        _ => false,
    })
}

/// Frames that a client must not take.
fn wrong_for_a_client(state: State) -> Vec<(String, Vec<u8>)> {
    wrong(state, |frame, stream| match (state, frame) {
        // Without a nonce, the first ACCEPT is none.
        (State::Opening, FrameType::Refuse) => stream == 1,
        (State::Opening, FrameType::Reset) => stream <= 1,
        (State::Open, FrameType::Data | FrameType::Fin) => stream == 1,
        (State::Open | State::Finished, FrameType::Reset) => stream == 1,
        (_, FrameType::GoAway) => stream == 0,
        _ => false,
    })
}

fn wrong(state: State, allowed: impl Fn(FrameType, u32) -> bool) -> Vec<(String, Vec<u8>)> {
    let mut wrong = Vec::new();
    for frame in FRAMES {
        for stream in STREAMS {
            if !allowed(frame, stream) {
                let payload: &[u8] = if frame == FrameType::Data { b"x" } else { b"" };
                wrong.push((format!("{frame:?} of stream {stream}"), written(frame, stream, payload)));
            }
        }
        if matches!(state, State::Finished | State::Between) {
            // What is no frame at all is none in every state.
            continue;
        }
        let tunnel_level = u32::from(!frame.is_tunnel_level());
        for length in [[1, 0, 1], [0xff; 3]] {
            let header = [&[frame as u8], &length[..], &tunnel_level.to_be_bytes()].concat();
            wrong.push((format!("{frame:?} with a length of {length:?}"), header));
        }
        if frame != FrameType::Data {
            let what = format!("{frame:?} with a payload that is none");
            wrong.push((what, written(frame, tunnel_level, &[0xff; 5])));
        }
    }
    let mut reauth = Vec::new();
    Session::new(Role::Client).reauth(v1::Reauth::default(), &mut reauth);
    wrong.push(("a REAUTH that proves nothing".to_owned(), reauth));
    wrong.push(("OPEN of the last stream there is".to_owned(), written(FrameType::Open, u32::MAX, b"")));
    for unknown in [0, 9, 0xff] {
        wrong.push((format!("type {unknown}"), vec![unknown, 0, 0, 0, 0, 0, 0, 1]));
    }
    wrong
}

fn written(frame: FrameType, stream: u32, payload: &[u8]) -> Vec<u8> {
    // Not through `Header::encode`'s caller in the codec, which would not write a FIN with a payload.
    let header: [u8; HEADER_LEN] = Header { frame, length: payload.len(), stream }.encode();
    [&header, payload].concat()
}

/// Someone with a good certificate who speaks for `shop/web`.
struct Stranger {
    probe: Pod,
    to: SocketAddr,
    svid: Svid,
    trusting: Arc<SvidVerifier>,
}

impl Stranger {
    async fn new(mesh: &Mesh, to: SocketAddr) -> Self {
        let probe = mesh.pod("legacy/probe").unmeshed().start().await;
        let mint = Mint::of(mesh);
        Self { probe, to, svid: mint.svid("shop", "web", HOUR), trusting: raw::verifier(mint.bundle()) }
    }

    /// Brings a tunnel into a state, says `bytes` there and then no more, and hears with which code it is reset.
    async fn says(&self, state: State, bytes: &[u8]) -> Option<v1::ResetCode> {
        let mut tunnel = raw::tunnel(&self.probe, self.to, &self.svid, &self.trusting).await.unwrap();
        if state != State::New {
            assert!(matches!(tunnel.open_and_hear().await, Said::Accept(_)));
            tunnel.data(&first_word(state)).await;
            // The application has it before the tunnel breaks: a reset takes back what was not read.
            assert_eq!(tunnel.hear_data(1).await, b".");
        }
        if matches!(state, State::Finished | State::Between) {
            tunnel.fin().await;
        }
        if state == State::Between {
            assert_eq!(tunnel.hear().await, Said::Fin);
        }
        tunnel.say(bytes).await;
        let mut stream = tunnel.into_stream();
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = within("the end of the tunnel", DEADLINE / 5, stream.read_to_end(&mut rest)).await;
        reset_code(&rest)
    }
}

/// The code of the last frame, if that is a RESET.
fn reset_code(mut bytes: &[u8]) -> Option<v1::ResetCode> {
    let (mut decoder, mut last) = (Decoder::default(), None);
    while !bytes.is_empty() {
        let (taken, event) = decoder.decode(bytes).unwrap();
        last = match event {
            Some((_, Event::Reset(reset))) => Some(reset.code()),
            Some(_) => None,
            None => last,
        };
        bytes = &bytes[taken..];
    }
    last
}

/// What the client says to the application: `o`pen, `f`inished or `b`etween.
fn first_word(state: State) -> Vec<u8> {
    match state {
        State::Finished => b"f".to_vec(),
        State::Between => b"b".to_vec(),
        State::New | State::Opening | State::Open => b"o".to_vec(),
    }
}

/// Answers the first byte with one, and tells what it heard and how it ended. After an `f` it goes on speaking when the
/// client is through, after anything else it ends with the client.
async fn application(mut stream: TcpStream, told: mpsc::UnboundedSender<(Vec<u8>, Ending)>) {
    let mut words = vec![0];
    if stream.read_exact(&mut words).await.is_err() || stream.write_all(b".").await.is_err() {
        return;
    }
    let mut end = Ending::Reset;
    let mut more = [0; 1024];
    loop {
        match stream.read(&mut more).await {
            Ok(0) => {
                end = Ending::Clean;
                break;
            }
            Ok(count) => words.extend_from_slice(&more[..count]),
            Err(_) => break,
        }
    }
    if words == b"f" {
        end = broken(&mut stream).await;
    }
    let _ = stream.shutdown().await;
    let _ = told.send((words, end));
}

/// Waits until nothing can be said any more to someone who says nothing more.
async fn broken(stream: &mut TcpStream) -> Ending {
    let saying = async {
        while stream.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ending::Reset
    };
    within("the end of a connection", DEADLINE / 5, saying).await
}

async fn last(client: &mut TcpStream) -> Ending {
    within("the end at the client's application", DEADLINE / 5, ending(client)).await
}

fn no_panic(pods: &[&Pod]) {
    for pod in pods {
        let log = pod.log().text();
        assert!(!log.contains("panicked"), "{log}");
    }
}
