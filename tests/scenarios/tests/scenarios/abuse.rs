//! Floods, silence, and more than there is room for: who sends it pays, and nobody else notices.

use std::time::Duration;

use byrnie_scenarios::{
    DEADLINE, Mesh, Pod, Random, World, apps, ending, eventually, exchange, hear, holds_for, within,
};
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Begins like a ClientHello of 512 bytes.
const HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

pub(crate) async fn half_open_handshakes_cost_their_sender_and_nobody_else(world: World) {
    const FLOOD: usize = 5000;
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let echo = orders.serve(8080, apps::echo);
    web.call(orders.at(8080)).await.unwrap();
    let before = orders.memory();
    let mut flood = Vec::with_capacity(FLOOD);
    let mut calls = 0;
    for number in 0..FLOOD {
        let mut stream = probe.connect(orders.at(8080)).await.unwrap();
        let _ = stream.write_all(&HELLO).await;
        flood.push(stream);
        // A new connection to the application, and a handshake where no tunnel is idle.
        if number % 250 == 0 {
            web.call(orders.at(8080)).await.unwrap();
            calls += 1;
        }
    }
    // 512 of one address at once, of some 6 KiB each.
    assert!(orders.memory() < before + 16 * 1024, "{} KiB, before the flood {before}", orders.memory());
    orders.refused("too-many-handshakes").await;
    // The last of them has as long as any handshake.
    let ends = async {
        for stream in &mut flood {
            ending(stream).await;
        }
    };
    within("the end of every half-open handshake", Duration::from_secs(5), ends).await;
    assert_eq!(echo.connections(), calls + 1);
    eventually("all of it is given back", Duration::from_secs(1), async || {
        (orders.metric("byrnie_open_connections", &[]).await == 0.0).then_some(())
    })
    .await;
}

pub(crate) async fn who_says_a_byte_at_a_time_has_the_time_of_a_handshake_and_no_more(world: World) {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let probe = mesh.pod("legacy/probe").unmeshed().start().await;
    let echo = orders.serve(8080, apps::echo);
    let mut drips = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut stream = probe.connect(orders.at(8080)).await.unwrap();
        drips.spawn(async move {
            for byte in HELLO.into_iter().chain(std::iter::repeat(7)) {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
    }
    web.call(orders.at(8080)).await.unwrap();
    within("the cut", Duration::from_secs(5), drips.join_all()).await;
    assert_eq!(echo.connections(), 1);
    orders.refused("silent").await;
}

pub(crate) async fn a_proxy_without_file_descriptors_answers_its_own_ports_and_recovers(world: World) {
    let mesh = Mesh::start(&world).await;
    let web = mesh.pod("shop/web").start().await;
    let orders = mesh.pod("shop/orders").files(256).start().await;
    let _echo = orders.serve(8080, apps::echo);
    let mut served = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..400 {
        let mut stream = web.connect(orders.at(8080)).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        waiting.push(stream);
    }
    for mut stream in std::mem::take(&mut waiting) {
        match tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut [0; 5])).await {
            Ok(Ok(_)) => served.push(stream),
            _ => waiting.push(stream),
        }
    }
    println!("served {} waiting {}", served.len(), waiting.len());
    for (port, path) in [(15021, "/healthz/ready"), (15010, "/metrics"), (15000, "/status")] {
        let (code, text) =
            within("an answer of the proxy", Duration::from_secs(1), orders.get(port, path)).await.unwrap();
        assert_eq!(code, 200, "{port}{path}: {text}");
    }
    for stream in &mut served {
        assert_eq!(exchange(stream, b"still").await.unwrap(), b"still");
    }
    drop((served, waiting));
    eventually("new connections", DEADLINE / 5, async || web.call(orders.at(8080)).await.ok()).await;
}

pub(crate) async fn idle_connections_give_back_what_they_took(world: World) {
    /// One workload may have 4,096 tunnels to another.
    const OF_ONE: usize = 3_000;
    const AT_ONCE: usize = 50;
    /// More than one, because ports that wait for their end (TIME_WAIT) make the kernel's search for a free one slow.
    const PORTS: [u16; 5] = [8080, 8081, 8082, 8083, 8084];
    /// KiB of them, of one identity to one port.
    const IDLE_TUNNELS: u64 = 64 * 12;
    let many: usize = std::env::var("BYRNIE_MANY").map_or(200, |many| many.parse().expect("BYRNIE_MANY: a number"));
    let ports = if many < OF_ONE { &PORTS[..1] } else { &PORTS };
    let mesh = Mesh::start(&world).await;
    let orders = mesh.pod("shop/orders").start().await;
    let _echoes: Vec<_> = ports.iter().map(|port| orders.serve(*port, apps::echo)).collect();
    let mut clients = Vec::new();
    for number in 0..many.div_ceil(OF_ONE) {
        clients.push(mesh.pod(&format!("shop/web{number}")).start().await);
    }
    let proxies = || std::iter::once(&orders).chain(&clients);
    let memory = || -> Vec<u64> { proxies().map(Pod::memory).collect() };
    for client in &clients {
        for port in ports {
            client.call(orders.at(*port)).await.unwrap();
        }
    }
    let before = memory();
    let (mut after, mut taken) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let mut idle = Vec::with_capacity(many);
        for client in &clients {
            let of_this = many.div_ceil(clients.len());
            for (begun, port) in (0..of_this).step_by(AT_ONCE).zip(ports.iter().cycle()) {
                let some = client.connect_many(orders.at(*port), AT_ONCE.min(of_this - begun)).await.unwrap();
                idle.extend(join_all(some.into_iter().map(word)).await);
            }
        }
        let held = memory();
        drop(idle);
        for pod in proxies() {
            eventually("no connection is open", DEADLINE / 5, async || {
                (pod.metric("byrnie_open_connections", &[]).await == 0.0).then_some(())
            })
            .await;
        }
        // What is kept are tunnels for the next time, and a part that the allocator can't give back. Of few connections
        // that, and what a program touches once, are as much as they take.
        taken = before.iter().zip(&held).map(|(before, held)| held.saturating_sub(*before)).collect();
        let kept = |number: usize| before[number] + taken[number] / 3 + IDLE_TUNNELS * ports.len() as u64;
        let what = format!("of {held:?} KiB, {before:?} before, most is given back");
        eventually(&what, Duration::from_secs(2), async || {
            (many < OF_ONE || memory().iter().enumerate().all(|(number, now)| *now <= kept(number))).then_some(())
        })
        .await;
        after.push(settled(&memory).await);
        println!(
            "round {round}: {many} idle connections: {before:?} KiB before, {held:?} with them, {:?} after",
            after[round]
        );
    }
    // What is kept does not grow by a tenth of what one round takes, or of what was kept at first. How much of it the
    // allocator can give back differs from round to round.
    for number in 0..before.len() {
        let (first, last) = (after[0][number].max(after[1][number]), after[3][number].min(after[4][number]));
        assert!(last <= first + taken[number].max(first) / 10, "memory that is never given back: {after:?}");
    }
}

/// The least KiB of each proxy, once none of them has given anything back for a second.
async fn settled(memory: impl Fn() -> Vec<u64>) -> Vec<u64> {
    let mut least = memory();
    eventually("no proxy gives memory back any more", Duration::from_secs(2), async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = least.clone();
        least = least.iter().zip(memory()).map(|(least, now)| now.min(*least)).collect();
        (least == before).then_some(before)
    })
    .await
}

/// A connection on which one word has gone there and back.
async fn word(mut stream: TcpStream) -> TcpStream {
    exchange(&mut stream, b"one word").await.unwrap();
    stream
}

pub(crate) async fn readers_that_stop_hold_a_bounded_amount_and_delay_nobody(world: World) {
    const STALLED: u64 = 50;
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _pour = orders.serve(9000, pour);
    let _echo = orders.serve(8080, apps::echo);
    web.call(orders.at(8080)).await.unwrap();
    let before = [web.memory(), orders.memory()];
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut stream = web.connect(orders.at(9000)).await.unwrap();
        assert_eq!(hear(&mut stream, 1000).await.unwrap().len(), 1000);
        stalled.push(stream);
    }
    holds_for("others are served as ever", Duration::from_secs(1), async || web.call(orders.at(8080)).await.is_ok())
        .await;
    let with = [web.memory(), orders.memory()];
    println!("{STALLED} stalled readers of fast writers: {before:?} KiB before, {with:?} KiB with them");
    // A direction holds at most what was in a buffer of TLS records, and one frame of the application's bytes; and a fifth of
    // that is the allocator's.
    let bound = STALLED * (256 + 64) * 6 / 5;
    for proxy in 0..2 {
        assert!(with[proxy] < before[proxy] + bound, "{before:?} KiB, then {with:?} KiB; at most {bound} more");
    }
    // Who reads on gets all of it.
    let mut stream = stalled.pop().unwrap();
    hear(&mut stream, 8 << 20).await.unwrap();
}

/// Writes for as long as somebody takes it.
async fn pour(mut stream: TcpStream) {
    let bytes = Random::of("pour", 0).bytes(64 * 1024);
    while stream.write_all(&bytes).await.is_ok() {}
}
