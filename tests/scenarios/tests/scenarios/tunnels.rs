//! Tunnels: how often they are made, when they are used again and when never, and peers that break off or break the rules.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use byrnie_identity::{Svid, SvidVerifier};
use byrnie_proto::tunnel::{FrameType, Header, v1};
use byrnie_scenarios::raw::{self, Mint, RawTunnel, Said};
use byrnie_scenarios::{
    DEADLINE, Ending, Mesh, Pod, Random, Service, World, apps, ending, eventually, exchange, finish, hear, seed, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::server::TlsStream;

use crate::HOUR;

pub(crate) async fn two_hundred_connections_one_after_another_cost_at_most_four_handshakes(world: World) {
    handshakes_of_200_connections(&world, 1).await;
}

pub(crate) async fn two_hundred_connections_cost_as_little_with_four_workers(world: World) {
    handshakes_of_200_connections(&world, 4).await;
}

async fn handshakes_of_200_connections(world: &World, workers: usize) {
    let mesh = Mesh::start(world).await;
    let web = mesh.pod("shop/web").workers(workers).start().await;
    let orders = mesh.pod("shop/orders").workers(workers).start().await;
    let echo = orders.serve(8080, apps::echo);
    for _ in 0..200 {
        web.call(orders.at(8080)).await.unwrap();
    }
    let edge = mesh.edge("shop/web", "shop/orders", |edge| edge.connections >= 200).await;
    assert!((1..=4).contains(&edge.handshakes), "{edge:?}");
    let made = orders.metric("byrnie_tls_handshakes_total", &["direction=\"inbound\"", "result=\"ok\""]).await;
    assert!(made <= 4.0, "{made} handshakes at the server");
    assert_eq!(echo.connections(), 200);
}

pub(crate) async fn a_reset_reaches_the_other_application_as_a_reset_and_never_as_an_end(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    // Server to client.
    let _resetting = orders.serve(8080, apps::reset);
    for _ in 0..10 {
        let mut stream = web.connect(orders.at(8080)).await.unwrap();
        stream.write_all(b"four").await.unwrap();
        assert_eq!(within("the reset", DEADLINE / 5, ending(&mut stream)).await, Ending::Reset);
    }
    // Client to server.
    let (told, mut heard) = mpsc::unbounded_channel();
    let _listening = orders.serve(8081, move |mut stream| {
        let told = told.clone();
        async move {
            let _ = stream.write_all(b"go").await;
            let _ = told.send(ending(&mut stream).await);
        }
    });
    for _ in 0..10 {
        let mut stream = web.connect(orders.at(8081)).await.unwrap();
        hear(&mut stream, 2).await.unwrap();
        apps::reset_now(stream);
        let seen = within("the reset at the server", DEADLINE / 5, heard.recv()).await;
        assert_eq!(seen, Some(Ending::Reset));
    }
    // No tunnel on which a stream was reset carried another one.
    eventually("all ends are in the log", DEADLINE / 5, async || (web.access_log().lines().len() >= 20).then_some(()))
        .await;
    assert!(web.access_log().lines().iter().all(|line| line.truth("tunnel.reused") == Some(false)));
    assert_eq!(web.status().await["idle_tunnels"], 0);
}

pub(crate) async fn bytes_of_one_connection_never_reach_another(world: World) {
    const CONNECTIONS: usize = 10_000;
    const AT_ONCE: usize = 32;
    println!("bytes_of_one_connection_never_reach_another: SEED={}", seed());
    let mesh = Mesh::start(&world).await;
    let web = mesh.pod("shop/web").workers(2).start().await;
    let orders = mesh.pod("shop/orders").workers(2).start().await;
    let _patterned = orders.serve(8080, patterned);
    let (next, to) = (Arc::new(AtomicUsize::new(0)), orders.at(8080));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (web, next) = (web.clone(), next.clone());
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= CONNECTIONS {
                    return;
                }
                one_of_many(&web, to, number as u64).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let reused = web.access_log().lines().iter().filter(|line| line.truth("tunnel.reused") == Some(true)).count();
    assert!(reused > CONNECTIONS / 4, "only {reused} streams were not the first of their tunnel");
}

/// The first 24 bytes say which connection this is, how much the client will say and how much it wants to hear; every
/// other byte is a function of the connection's number and its place.
async fn patterned(mut stream: TcpStream) {
    let mut head = [0; 24];
    if stream.read_exact(&mut head).await.is_err() {
        return;
    }
    let word = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap());
    let (number, up, down) = (word(0), word(8), word(16));
    assert!(up < 1 << 20 && down < 1 << 20, "no head of a connection: {head:02x?}");
    let mut heard = vec![0; up as usize];
    if stream.read_exact(&mut heard).await.is_err() {
        return;
    }
    if heard != pattern(number, up) {
        // Said so that the client sees it: it expects anything but this.
        let _ = stream.write_all(b"FOREIGN BYTES").await;
        return;
    }
    if stream.write_all(&pattern(!number, down)).await.is_err() {
        return;
    }
    match number % 4 {
        0 => apps::reset_now(stream),
        _ => {
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            // The client says nothing more, whatever it does.
            assert!(rest.is_empty());
        }
    }
}

async fn one_of_many(web: &Pod, to: SocketAddr, number: u64) {
    let mut random = Random::of("one of many", number);
    let size = |random: &mut Random| {
        let most = [0, 1, 100, 5_000, 40_000, 200_000][random.below(6) as usize];
        random.below(most + 1)
    };
    let (up, down, end) = (size(&mut random), size(&mut random), random.below(4));
    let mut stream = web.connect(to).await.unwrap();
    let mut words = [number, up, down].map(u64::to_be_bytes).concat();
    words.extend(pattern(number, up));
    let early = random.below(words.len() as u64) as usize;
    if end == 0 {
        // Breaks off somewhere in its words.
        let _ = stream.write_all(&words[..early]).await;
        return apps::reset_now(stream);
    }
    stream.write_all(&words[..early]).await.unwrap();
    stream.write_all(&words[early..]).await.unwrap();
    if end == 1 {
        stream.shutdown().await.unwrap();
    }
    let mut heard = Vec::new();
    let outcome = within("an answer", DEADLINE / 5, stream.read_to_end(&mut heard)).await;
    let expected = pattern(!number, down);
    // The server resets a quarter of them, and what a reset overtakes is lost; nothing else may be different.
    assert!(expected.starts_with(&heard), "connection {number} heard {} bytes that are not its own", heard.len());
    match outcome {
        Ok(_) => assert_eq!(heard.len(), expected.len(), "connection {number} ended cleanly before its last byte"),
        Err(error) => assert_eq!(number % 4, 0, "connection {number}: {error}"),
    }
    if end == 2 {
        apps::reset_now(stream);
    }
}

fn pattern(number: u64, length: u64) -> Vec<u8> {
    Random::of("pattern", number).bytes(length as usize)
}

pub(crate) async fn a_server_that_dies_between_open_and_accept_costs_no_connection_that_has_said_nothing(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let server = RawServer::replace(&mesh, &orders);
    // The first stream ends in order, so that the second finds a tunnel in the pool.
    let (client, tunnel) = first_stream(&web, &orders, &server).await;
    drop(client);
    let mut tunnel = tunnel;
    let mut silent = web.connect(orders.at(8080)).await.unwrap();
    assert!(matches!(tunnel.hear().await, Said::Open(_)));
    drop(tunnel);
    // Unseen by the application: it is served on a tunnel of its own.
    let mut again = server.accept().await;
    assert!(matches!(again.hear().await, Said::Open(_)));
    again.accept_stream().await;
    again.data(b"served").await;
    assert_eq!(hear(&mut silent, 6).await.unwrap(), b"served");
    again.fin().await;
    assert_eq!(finish(&mut silent).await.unwrap(), b"");
    assert_eq!(again.hear().await, Said::Fin);
    // One that has said something may have been heard: it is reset, and never said twice.
    let mut spoke = web.connect(orders.at(8080)).await.unwrap();
    spoke.write_all(b"pay once").await.unwrap();
    assert!(matches!(again.hear().await, Said::Open(_)));
    assert_eq!(again.hear_data(8).await, b"pay once");
    drop(again);
    assert_eq!(within("the reset", DEADLINE / 5, ending(&mut spoke)).await, Ending::Reset);
    assert!(server.nobody_else().await, "a request was delivered twice");
}

pub(crate) async fn a_goaway_that_crosses_an_open_costs_nothing(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let server = RawServer::replace(&mesh, &orders);
    // The OPEN of stream 2 is on its way when the server says that stream 1 was the last: it is dialled again, with what
    // the application has said.
    let (client, mut tunnel) = first_stream(&web, &orders, &server).await;
    drop(client);
    let mut second = web.connect(orders.at(8080)).await.unwrap();
    second.write_all(b"again").await.unwrap();
    assert!(matches!(tunnel.hear().await, Said::Open(_)));
    tunnel.say(&go_away(1)).await;
    let mut other = server.accept().await;
    assert!(matches!(other.hear().await, Said::Open(_)));
    other.accept_stream().await;
    assert_eq!(other.hear_data(5).await, b"again");
    other.data(b"once").await;
    assert_eq!(hear(&mut second, 4).await.unwrap(), b"once");
    other.fin().await;
    assert_eq!(finish(&mut second).await.unwrap(), b"");
    assert_eq!(other.hear().await, Said::Fin);
    // When the server promises to serve it, it is served where it is, and no other stream follows there.
    let mut third = web.connect(orders.at(8080)).await.unwrap();
    assert!(matches!(other.hear().await, Said::Open(_)));
    other.say(&go_away(2)).await;
    other.accept_stream().await;
    other.data(b"here").await;
    assert_eq!(hear(&mut third, 4).await.unwrap(), b"here");
    other.fin().await;
    assert_eq!(finish(&mut third).await.unwrap(), b"");
    assert_eq!(other.hear().await, Said::Fin);
    assert!(matches!(other.hear().await, Said::Closed | Said::Broken), "the client closes a tunnel that is going away");
    let fourth = web.connect(orders.at(8080)).await.unwrap();
    let mut fresh = server.accept().await;
    assert!(matches!(fresh.hear().await, Said::Open(_)));
    drop(fourth);
}

pub(crate) async fn an_endpoint_that_refuses_for_now_is_left_for_another(world: World) {
    let mesh = Mesh::start(&world).await;
    let [address, _] = mesh.service(&Service::new("shop/orders").port(80, 8080));
    let web = mesh.pod("shop/web").start().await;
    let first = mesh.pod("shop/orders-a").app("orders").service_account("orders").start().await;
    let second = mesh.pod("shop/orders-b").app("orders").service_account("orders").start().await;
    // The application in the first is gone, its proxy is not: CONNECT_REFUSED, which may be tried elsewhere.
    let echo = second.serve(8080, apps::echo);
    for _ in 0..40 {
        web.call(SocketAddr::new(address, 80)).await.unwrap();
    }
    assert_eq!(echo.connections(), 40);
    first.refused("connect-refused").await;
}

pub(crate) async fn peers_that_break_off_or_talk_nonsense_harm_nobody_else(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let mint = Mint::of(&mesh);
    let (svid, trusting) = (mint.svid("shop", "web", HOUR), raw::verifier(mint.bundle()));
    let mut open = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut open, b"before").await.unwrap();
    let calling = tokio::spawn({
        let (web, to) = (web.clone(), orders.at(8080));
        async move {
            let mut calls = 0;
            loop {
                web.call(to).await.unwrap();
                calls += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
                if calls >= 100 {
                    return;
                }
            }
        }
    });
    before_the_handshake_ends(&probe, orders.at(8080)).await;
    after_the_handshake(&probe, orders.at(8080), &svid, &trusting).await;
    within("the calls of the others", DEADLINE, calling).await.unwrap();
    assert_eq!(exchange(&mut open, b"after").await.unwrap(), b"after");
    for pod in [&web, &orders] {
        let log = pod.log().text();
        assert!(!log.contains("panicked"), "{log}");
    }
}

async fn before_the_handshake_ends(probe: &Pod, to: SocketAddr) {
    // A ClientHello that says it has 512 bytes, cut at every kind of place; and garbage that begins like one.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend(Random::of("hello", 0).bytes(505));
    for length in [0, 1, 2, 5, 6, 11, 100, hello.len() - 1] {
        let mut stream = probe.connect(to).await.unwrap();
        let _ = stream.write_all(&hello[..length]).await;
        if length % 2 == 0 { apps::reset_now(stream) } else { drop(stream) }
    }
    for number in 0..20 {
        let mut stream = probe.connect(to).await.unwrap();
        let mut noise = Random::of("noise", number).bytes(3000);
        if number % 2 == 0 {
            noise[..hello.len()].copy_from_slice(&hello);
        }
        let _ = stream.write_all(&noise).await;
        assert_eq!(within("the end of noise", Duration::from_secs(5), ending(&mut stream)).await, Ending::Reset);
    }
}

async fn after_the_handshake(probe: &Pod, to: SocketAddr, svid: &Svid, trusting: &Arc<SvidVerifier>) {
    let frame = |frame: FrameType, stream: u32, payload: &[u8]| {
        let mut bytes = Header { frame, length: payload.len(), stream }.encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    };
    let nonsense: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0xff; 64],
        vec![4, 1, 0, 1, 0, 0, 0, 1],
        vec![1, 0, 0],
        frame(FrameType::Data, 1, b"before OPEN"),
        frame(FrameType::Fin, 1, b""),
        frame(FrameType::Accept, 1, b""),
        frame(FrameType::GoAway, 0, &[8, 1]),
        frame(FrameType::Open, 2, b""),
        frame(FrameType::Open, 1, b"\xff\xff\xff"),
        frame(FrameType::Open, 1, b""),
        frame(FrameType::Reauth, 0, b""),
    ];
    for bytes in nonsense {
        let mut tunnel = raw::tunnel(probe, to, svid, trusting).await.unwrap();
        tunnel.say(&bytes).await;
        if bytes.is_empty() || bytes.len() == 3 {
            continue;
        }
        let mut stream = tunnel.into_stream();
        let mut rest = Vec::new();
        let _ =
            within("the end of a tunnel that broke the rules", Duration::from_secs(5), stream.read_to_end(&mut rest))
                .await;
    }
    // Two streams at once, a FIN too many, a wrong number: in the middle of a good stream.
    for bad in [frame(FrameType::Open, 2, b""), frame(FrameType::Data, 7, b"x"), frame(FrameType::Accept, 1, b"")] {
        let mut tunnel = raw::tunnel(probe, to, svid, trusting).await.unwrap();
        assert!(matches!(tunnel.open_and_hear().await, Said::Accept(_)));
        tunnel.say(&bad).await;
        let said = within("the end of the tunnel", Duration::from_secs(5), tunnel.next()).await;
        assert_eq!(said, Said::Reset(v1::ResetCode::ProtocolError));
    }
    // A peer that goes without a word.
    for _ in 0..5 {
        let mut tunnel = raw::tunnel(probe, to, svid, trusting).await.unwrap();
        assert!(matches!(tunnel.open_and_hear().await, Said::Accept(_)));
        tunnel.data(b"half a request").await;
        drop(tunnel);
    }
}

pub(crate) async fn an_end_of_the_tunnel_without_fin_is_a_reset_to_the_application(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = orders.serve(8080, move |mut stream| {
        let told = told.clone();
        async move {
            let _ = told.send(ending(&mut stream).await);
        }
    });
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let mint = Mint::of(&mesh);
    let trusting = raw::verifier(mint.bundle());
    // At the server: TLS ends in order, TCP ends, and a RESET comes, each in the middle of a stream.
    for way in 0..3 {
        let mut tunnel =
            raw::tunnel(&probe, orders.at(8080), &mint.svid("shop", "web", HOUR), &trusting).await.unwrap();
        assert!(matches!(tunnel.open_and_hear().await, Said::Accept(_)));
        tunnel.data(b"half a request").await;
        match way {
            0 => tunnel.into_stream().shutdown().await.unwrap(),
            1 => drop(tunnel),
            _ => tunnel.reset(v1::ResetCode::Application).await,
        }
        let seen = within("the end at the application", DEADLINE / 5, heard.recv()).await;
        assert_eq!(seen, Some(Ending::Reset), "way {way}");
    }
    app.close().await;
    // At the client.
    let server = RawServer::replace(&mesh, &orders);
    for way in 0..3 {
        let mut client = web.connect(orders.at(8080)).await.unwrap();
        let mut tunnel = server.accept().await;
        assert!(matches!(tunnel.hear().await, Said::Open(_)));
        tunnel.accept_stream().await;
        tunnel.data(b"half an answer").await;
        assert_eq!(hear(&mut client, 14).await.unwrap(), b"half an answer");
        match way {
            0 => tunnel.into_stream().shutdown().await.unwrap(),
            1 => drop(tunnel),
            _ => tunnel.reset(v1::ResetCode::Application).await,
        }
        let seen = within("the end at the client's application", DEADLINE / 5, ending(&mut client)).await;
        assert_eq!(seen, Ending::Reset, "way {way}");
    }
}

/// A server in place of a pod's proxy and application, every tunnel of which is handed to the scenario.
struct RawServer {
    tunnels: Mutex<mpsc::UnboundedReceiver<RawTunnel<TlsStream<TcpStream>>>>,
    _app: byrnie_scenarios::App,
}

impl RawServer {
    fn replace(mesh: &Mesh, pod: &Pod) -> Self {
        pod.kill_proxy();
        pod.flush_capture();
        let mint = Mint::of(mesh);
        let trusting = raw::verifier(mint.bundle());
        let svid = mint.svid("shop", "orders", HOUR);
        let (hand, tunnels) = mpsc::unbounded_channel();
        let app = pod.serve(8080, move |stream| {
            let (svid, trusting, hand) = (svid.clone(), trusting.clone(), hand.clone());
            async move {
                if let Ok(tunnel) = raw::accept(stream, &svid, &trusting).await {
                    let _ = hand.send(tunnel);
                }
            }
        });
        Self { tunnels: Mutex::new(tunnels), _app: app }
    }

    async fn accept(&self) -> RawTunnel<TlsStream<TcpStream>> {
        within("a tunnel", DEADLINE / 5, async { self.tunnels.lock().await.recv().await }).await.unwrap()
    }

    /// Nobody has come, and nobody comes for a while.
    async fn nobody_else(&self) -> bool {
        tokio::time::timeout(Duration::from_secs(1), self.accept()).await.is_err()
    }
}

/// Serves one stream to its clean end.
async fn first_stream(web: &Pod, orders: &Pod, server: &RawServer) -> (TcpStream, RawTunnel<TlsStream<TcpStream>>) {
    let mut client = web.connect(orders.at(8080)).await.unwrap();
    let mut tunnel = server.accept().await;
    assert!(matches!(tunnel.hear().await, Said::Open(_)));
    tunnel.accept_stream().await;
    tunnel.fin().await;
    assert_eq!(finish(&mut client).await.unwrap(), b"");
    assert_eq!(tunnel.hear().await, Said::Fin);
    // The proxy has the tunnel back in its pool when it counts it.
    eventually("the tunnel waits in the pool", DEADLINE / 5, async || {
        (web.status().await["idle_tunnels"] == 1).then_some(())
    })
    .await;
    (client, tunnel)
}

fn go_away(last_stream: u8) -> Vec<u8> {
    // Field 1, a varint.
    let mut bytes = Header { frame: FrameType::GoAway, length: 2, stream: 0 }.encode().to_vec();
    bytes.extend([8, last_stream]);
    bytes
}
