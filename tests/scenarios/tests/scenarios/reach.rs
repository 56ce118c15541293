//! What reaches what, by which address, and what of it is seen on the wire.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use byrnie_identity::tls::{self, ClientAuth};
use byrnie_scenarios::raw::{self, Mint};
use byrnie_scenarios::{
    DEADLINE, Mesh, Random, Service, World, apps, ending, eventually, exchange, finish, hear, marker, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::HOUR;

pub(crate) async fn two_meshed_pods_talk_and_the_wire_shows_only_tls(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    for to in [orders.at(8080), orders.at6(8080)] {
        let words = marker();
        let tap = mesh.tap(&words, &[&web, &orders]);
        let mut stream = web.connect(to).await.unwrap();
        assert_eq!(exchange(&mut stream, words.as_bytes()).await.unwrap(), words.as_bytes());
        assert_eq!(finish(&mut stream).await.unwrap(), b"");
        let seen = tap.stop().unwrap();
        assert_eq!((seen.marker_hits, seen.missed), (0, 0), "{:?}", seen.first_hit);
        assert!(seen.tls_records > 0 && (seen.outside_tls, seen.unfollowed) == (0, 0), "{seen:?}");
    }
    let line = web.logged("the call", |line| line.text("dst.workload") == "orders").await;
    assert_eq!(line.text("tls.protocol.version"), "1.3");
    assert_eq!(line.text("tls.curve"), "X25519MLKEM768");
    assert_eq!(line.text("dst.identity"), orders.spiffe_id());
    let edge = mesh.edge("shop/web", "shop/orders", |edge| edge.connections >= 2).await;
    assert!(edge.secured && edge.plaintext_connections == 0, "{edge:?}");
    assert_eq!((edge.source_id, edge.destination_id), (web.spiffe_id(), orders.spiffe_id()));
}

pub(crate) async fn a_service_is_reached_by_cluster_ip_and_its_pods_by_their_own(world: World) {
    let mesh = Mesh::start(&world).await;
    let addresses = mesh.service(&Service::new("shop/orders").port(80, 8080));
    mesh.service(&Service::new("shop/orders-headless").app("orders").headless().port(8080, 8080));
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    for address in addresses {
        web.call(SocketAddr::new(address, 80)).await.unwrap();
    }
    let by_service = web.logged("the call to the Service", |line| line.text("dst.service") == "shop/orders").await;
    assert_eq!(by_service.text("connection.security"), "mutual_tls");
    for to in [orders.at(8080), orders.at6(8080)] {
        web.call(to).await.unwrap();
    }
    web.logged("the call to the headless name", |line| line.text("dst.service") == "shop/orders-headless").await;
    // A port that the Service does not have leads nowhere.
    web.is_refused(SocketAddr::new(addresses[0], 81)).await;
    web.refused("unknown-destination").await;
}

pub(crate) async fn a_pod_that_calls_itself_through_its_service_obeys_its_own_policy(world: World) {
    let mesh = Mesh::start(&world).await;
    let [cluster_ip, _] = mesh.service(&Service::new("shop/web").port(80, 8080).port(81, 8081));
    mesh.apply(
        "not-by-itself",
        "apiVersion: byrnie.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: not-by-itself, namespace: shop}\n\
         spec:\n  action: Deny\n  rules:\n  - from: [{serviceAccount: web}]\n    to: [{ports: [8081]}]\n",
    );
    let [web] = mesh.pods(["shop/web"]).await;
    let (_echo, closed) = (web.serve(8080, apps::echo), web.serve(8081, apps::echo));
    web.call(SocketAddr::new(cluster_ip, 80)).await.unwrap();
    web.is_refused(SocketAddr::new(cluster_ip, 81)).await;
    web.refused("deny-rule").await;
    assert_eq!(closed.connections(), 0);
}

pub(crate) async fn a_server_that_speaks_first_is_heard_and_an_idle_client_is_left_alone(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _greeting = orders.serve(25, apps::greet);
    let mut stream = web.connect(orders.at(25)).await.unwrap();
    assert_eq!(hear(&mut stream, apps::GREETING.len()).await.unwrap(), apps::GREETING);
    // Longer than any deadline of detection, handshake or connect.
    let idle = timeout(Duration::from_secs(6), ending(&mut stream)).await;
    assert!(idle.is_err(), "an idle connection ended: {idle:?}");
    assert_eq!(exchange(&mut stream, b"EHLO web").await.unwrap(), b"EHLO web");
    assert_eq!(finish(&mut stream).await.unwrap(), b"");
}

pub(crate) async fn a_half_closed_connection_still_carries_the_other_direction(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    // The client ends first: its end reaches the server, whose answer comes back.
    let _count = orders.serve(8080, apps::count);
    let mut stream = web.connect(orders.at(8080)).await.unwrap();
    stream.write_all(&[7; 100_000]).await.unwrap();
    assert_eq!(finish(&mut stream).await.unwrap(), 100_000_u64.to_be_bytes());
    // The server ends first: its end reaches the client, whose words still go up.
    let (told, heard) = oneshot::channel();
    let told = Arc::new(Mutex::new(Some(told)));
    let _early = orders.serve(8081, move |mut stream| {
        let told = Arc::clone(&told);
        async move {
            stream.write_all(b"all I have").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            let _ = told.lock().unwrap().take().unwrap().send(rest);
        }
    });
    let mut stream = web.connect(orders.at(8081)).await.unwrap();
    let mut words = Vec::new();
    within("the server's end", DEADLINE / 5, stream.read_to_end(&mut words)).await.unwrap();
    assert_eq!(words, b"all I have");
    stream.write_all(b"late words").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(within("the late words", DEADLINE / 5, heard).await.unwrap(), b"late words");
}

pub(crate) async fn requests_to_a_port_that_is_declared_http_are_counted_by_both_proxies(world: World) {
    let mesh = Mesh::start(&world).await;
    let service = Service::new("shop/orders").port_speaking(80, 8080, "http").port(81, 8081);
    let address = mesh.service(&service)[0];
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _http = orders.serve(8080, answer);
    let _undeclared = orders.serve(8081, answer);
    for port in [80, 81] {
        let mut stream = web.connect(SocketAddr::new(address, port)).await.unwrap();
        for (path, status) in [("/", "200"), ("/missing", "404"), ("/", "200")] {
            let asked = format!("GET {path} HTTP/1.1\r\nHost: orders\r\n\r\n");
            let expected = answer_to(&asked);
            assert!(expected.contains(status), "{expected}");
            stream.write_all(asked.as_bytes()).await.unwrap();
            let mut heard = vec![0; expected.len()];
            within("the answer", DEADLINE, stream.read_exact(&mut heard)).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&heard), expected);
        }
        assert_eq!(finish(&mut stream).await.unwrap(), b"");
    }
    // What is no HTTP goes through all the same.
    let mut stream = web.connect(SocketAddr::new(address, 80)).await.unwrap();
    stream.write_all(b"\x16\x03\x01 not HTTP at all\r\n\r\n").await.unwrap();
    assert!(finish(&mut stream).await.unwrap().starts_with(b"HTTP/1.1 200 OK\r\n"));
    for (pod, reporter) in [(&web, "reporter=\"source\""), (&orders, "reporter=\"destination\"")] {
        let edge = [reporter, "destination_workload=\"shop/orders\"", "connection_security_policy=\"mutual_tls\""];
        eventually("the connection that is not followed", DEADLINE, async || {
            (pod.metric("byrnie_http_connections_not_followed_total", &edge).await > 0.0).then_some(())
        })
        .await;
        for (class, requests) in [("2xx", 2.0), ("4xx", 1.0)] {
            let class = format!("response_code_class=\"{class}\"");
            let labels = [&edge[..], &[&class]].concat();
            assert_eq!(pod.metric("byrnie_http_requests_total", &labels).await, requests, "{class}");
        }
        assert_eq!(pod.metric("byrnie_http_requests_total", &[]).await, 3.0);
        assert_eq!(pod.metric("byrnie_http_request_duration_seconds_count", &edge).await, 3.0);
        assert!(pod.metric("byrnie_http_request_duration_seconds_sum", &edge).await > 0.0);
    }
}

/// An HTTP server of a few lines.
async fn answer(mut stream: TcpStream) {
    let mut asked = Vec::new();
    while stream.read_buf(&mut asked).await.is_ok_and(|count| count > 0) {
        while let Some(at) = asked.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = asked.drain(..at + 4).collect();
            if stream.write_all(answer_to(&String::from_utf8_lossy(&head)).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

fn answer_to(head: &str) -> String {
    let status = if head.starts_with("GET /missing ") { "404 Not Found" } else { "200 OK" };
    format!("HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\norders")
}

pub(crate) async fn bulk_goes_both_ways_at_once_and_arrives_whole(world: World) {
    const BYTES: usize = 24 * 1024 * 1024;
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let _bulk = orders.serve(8080, move |stream| {
        let told = told.clone();
        async move {
            let _ = told.send(both_ways(stream, Random::of("orders", 0).bytes(BYTES)).await);
        }
    });
    let stream = web.connect(orders.at(8080)).await.unwrap();
    let up = Random::of("web", 0).bytes(BYTES);
    let sent_up = digest(&up);
    let received_down = both_ways(stream, up).await;
    assert_eq!(received_down, digest(&Random::of("orders", 0).bytes(BYTES)));
    assert_eq!(heard.recv().await.unwrap(), sent_up);
    let line = web.logged("the transfer", |line| line.number("bytes_sent") > 0).await;
    assert_eq!((line.number("bytes_sent"), line.number("bytes_recv")), (BYTES as u64, BYTES as u64));
}

pub(crate) async fn the_applications_own_tls_goes_through(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    // Certificates of an authority that the mesh does not know: none of its business.
    let mint = Mint::foreign("application.example");
    let trusting = raw::verifier(mint.bundle());
    let server = tls::server_config(&mint.svid("app", "orders", HOUR), &trusting, b"h2", ClientAuth::Optional).unwrap();
    let _app = orders.serve(8443, move |stream| {
        let acceptor = tokio_rustls::TlsAcceptor::from(server.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut words = [0; 5];
            stream.read_exact(&mut words).await.unwrap();
            stream.write_all(&words).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    let mut stream = raw::connect(&web, orders.at(8443), None, &trusting, b"h2").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut words = Vec::new();
    within("the answer inside TLS inside TLS", DEADLINE / 5, stream.read_to_end(&mut words)).await.unwrap();
    assert_eq!(words, b"hello");
    drop(stream);
    let line = web.logged("the call", |line| line.text("dst.workload") == "orders").await;
    assert_eq!(line.text("connection.security"), "mutual_tls");
}

pub(crate) async fn a_pod_outside_of_the_mesh_is_called_in_plaintext(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web] = mesh.pods(["shop/web"]).await;
    let old = mesh.pod("legacy/old").unmeshed().start().await;
    let _echo = old.serve(8080, apps::echo);
    web.call(old.at(8080)).await.unwrap();
    let edge = mesh.edge("shop/web", "legacy/old", |edge| edge.plaintext_connections == 1).await;
    assert!(!edge.secured, "{edge:?}");
}

pub(crate) async fn a_reader_that_stops_for_a_while_then_gets_every_byte(world: World) {
    const BYTES: usize = 8 * 1024 * 1024;
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _source = orders.serve(8080, |mut stream| async move {
        let _ = stream.write_all(&Random::of("source", 0).bytes(BYTES)).await;
        let _ = stream.shutdown().await;
    });
    let mut stream = web.connect(orders.at(8080)).await.unwrap();
    let first = hear(&mut stream, 1000).await.unwrap();
    // The one sleep that is the matter itself: meanwhile every buffer on the way is full.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let rest = within("the rest", DEADLINE, async {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.map(|_| rest)
    });
    let all = [first, rest.await.unwrap()].concat();
    assert_eq!(digest(&all), digest(&Random::of("source", 0).bytes(BYTES)));
}

/// Says all of `words` and hears until the other end; the digest of what was heard.
async fn both_ways(stream: TcpStream, words: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = stream.into_split();
    let saying = tokio::spawn(async move {
        write.write_all(&words).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut heard = Vec::new();
    within("a transfer both ways", DEADLINE, read.read_to_end(&mut heard)).await.unwrap();
    saying.await.unwrap();
    digest(&heard)
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}
