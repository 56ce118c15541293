//! Bytes that no orderly peer sends, said to real proxies: before, inside and after the handshake, a ClientHello in every
//! shape, and each frame where it does not belong.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use byrnie_identity::tls::{self, ALPN_TUNNEL};
use byrnie_identity::{Svid, SvidVerifier};
use byrnie_proto::tunnel::{Role, Session, v1};
use byrnie_scenarios::raw::{self, Mint, Said};
use byrnie_scenarios::{DEADLINE, Ending, Mesh, Pod, Random, World, apps, ending, eventually, within};
use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::HOUR;

/// A stranger with a good certificate and bad manners, and whom it talks to.
struct Bad {
    _mesh: Mesh,
    web: Pod,
    orders: Pod,
    probe: Pod,
    svid: Svid,
    trusting: Arc<SvidVerifier>,
}

impl Bad {
    async fn start(world: &World) -> Self {
        let mesh = Mesh::start(world).await;
        let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
        let probe = mesh.pod("legacy/probe").unmeshed().start().await;
        let mint = Mint::of(&mesh);
        let (svid, trusting) = (mint.svid("shop", "web", HOUR), raw::verifier(mint.bundle()));
        Self { _mesh: mesh, web, orders, probe, svid, trusting }
    }

    fn to(&self) -> SocketAddr {
        self.orders.at(8080)
    }

    /// The ClientHello of a proxy with `more` bytes of other ALPN names, and the connection that it belongs to.
    fn hello(&self, more: usize) -> (Vec<u8>, ClientConnection) {
        let mut config = (*tls::client_config(Some(&self.svid), &self.trusting, ALPN_TUNNEL).unwrap()).clone();
        config.alpn_protocols.extend((0..more / 251).map(|_| vec![b'x'; 250]));
        let name = ServerName::IpAddress(self.to().ip().into());
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut bytes).unwrap();
        }
        (bytes, connection)
    }

    /// Says `hello` in pieces of `size`, each a segment of its own, and whether the handshake gets to its end.
    async fn gets_in(&self, more: usize, size: usize) -> bool {
        let (hello, mut connection) = self.hello(more);
        let mut stream = self.probe.connect(self.to()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in hello.chunks(size) {
            if stream.write_all(piece).await.is_err() {
                return false;
            }
        }
        within("the end of a handshake", DEADLINE / 5, drive(&mut connection, &mut stream)).await
    }

    /// Nobody else was harmed.
    async fn nobody_is_harmed(&self) {
        for _ in 0..5 {
            self.web.call(self.to()).await.unwrap();
        }
        for pod in [&self.web, &self.orders] {
            let log = pod.log().text();
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}

pub(crate) async fn a_client_hello_gets_in_however_it_is_cut(world: World) {
    let bad = Bad::start(&world).await;
    let _echo = bad.orders.serve(8080, apps::echo);
    let (hello, _) = bad.hello(0);
    assert!(hello.len() > 1200, "a post-quantum ClientHello fits no segment: {} bytes", hello.len());
    for size in [1, hello.len().div_ceil(20), 5, 6, hello.len() - 1, hello.len()] {
        assert!(bad.gets_in(0, size).await, "in pieces of {size} of {}", hello.len());
    }
    // More than one record, and as large as TLS lets one be.
    for more in [20_000, 63_500] {
        assert!(bad.gets_in(more, 1400).await, "with {more} bytes of other protocols");
    }
    bad.nobody_is_harmed().await;
}

pub(crate) async fn a_client_hello_beyond_all_bounds_is_refused(world: World) {
    let bad = Bad::start(&world).await;
    let _echo = bad.orders.serve(8080, apps::echo);
    // One that says it has 70,000 bytes is none, from the fourth byte of its message on.
    let mut stream = bad.probe.connect(bad.to()).await.unwrap();
    let endless = [22, 3, 1, 0x40, 0, 1, 1, 0x11, 0x70].into_iter().chain(std::iter::repeat_n(0, 100_000));
    // Linux tells of a reset once: to the write, if that is under way still.
    if stream.write_all(&endless.collect::<Vec<u8>>()).await.is_ok() {
        assert_eq!(within("its end", DEADLINE / 5, ending(&mut stream)).await, Ending::Reset);
    }
    bad.orders.refused("plaintext-refused").await;
    bad.nobody_is_harmed().await;
}

pub(crate) async fn garbage_inside_and_after_the_handshake_ends_that_connection_alone(world: World) {
    let bad = Bad::start(&world).await;
    let _echo = bad.orders.serve(8080, apps::echo);
    let mut random = Random::of("garbage", 0);
    let garbage = [
        random.bytes(3000),
        record(22, &random.bytes(500)),
        record(23, &random.bytes(500)),
        record(20, &[1]).repeat(200),
        [23, 3, 3, 0xff, 0xff].to_vec(),
        record(22, &[1, 0, 0, 4, 3, 3, 0, 0]),
        record(99, b"x"),
        record(23, b""),
    ];
    for (number, garbage) in garbage.iter().enumerate() {
        // In place of the client's second flight.
        let (hello, _) = bad.hello(0);
        let mut stream = bad.probe.connect(bad.to()).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        stream.read_u8().await.unwrap();
        ends_after(&mut stream, garbage, number).await;
        // Under a stream that is open.
        let mut tunnel = raw::tunnel(&bad.probe, bad.to(), &bad.svid, &bad.trusting).await.unwrap();
        assert!(matches!(tunnel.open_and_hear().await, Said::Accept(_)));
        ends_after(tunnel.into_stream().get_mut().0, garbage, number).await;
    }
    eventually("each handshake is refused with its reason", DEADLINE / 5, async || {
        let causes = ["tls-error", "connection-truncated", "refused-by-peer"];
        let lines = bad.orders.access_log().lines();
        let refused = lines.iter().filter(|line| causes.contains(&line.text("refusal.cause"))).count();
        (refused >= garbage.len()).then_some(())
    })
    .await;
    bad.nobody_is_harmed().await;
}

/// The other end ends the connection, also where it does not look complete: by itself, or at the latest when the handshake
/// takes too long.
async fn ends_after(stream: &mut TcpStream, garbage: &[u8], number: usize) {
    let _ = stream.write_all(garbage).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let _ = within(&format!("the end after garbage {number}"), DEADLINE / 3, stream.read_to_end(&mut rest)).await;
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3, high, low], content].concat()
}

/// The rest of a handshake. In TLS 1.3 a client is through before it has been judged: so a stream is asked for, and the
/// other end's first record after that is waited for.
async fn drive(connection: &mut ClientConnection, stream: &mut TcpStream) -> bool {
    let mut bytes = vec![0; 16 * 1024];
    while connection.is_handshaking() {
        let Ok(count @ 1..) = stream.read(&mut bytes).await else { return false };
        let mut read = &bytes[..count];
        while !read.is_empty() {
            connection.read_tls(&mut read).unwrap();
            if connection.process_new_packets().is_err() {
                return false;
            }
        }
    }
    let mut open = Vec::new();
    Session::new(Role::Client).open(&v1::Open { nonce: vec![7; 32], ..Default::default() }, &mut open);
    connection.writer().write_all(&open).unwrap();
    let mut flight = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut flight).unwrap();
    }
    if stream.write_all(&flight).await.is_err() {
        return false;
    }
    matches!(tokio::time::timeout(Duration::from_secs(5), stream.read(&mut bytes)).await, Ok(Ok(1..)))
        && bytes.first() == Some(&23)
}
