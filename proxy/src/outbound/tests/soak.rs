//! Bytes of one connection never reach another, and no end is taken for another: thousands of connections with random
//! sizes and ends over pooled tunnels, with renewals in between. What each connection carries is derived from its number,
//! which it sends first, so that each end knows every byte that may come.

use std::collections::HashSet;
use std::sync::Mutex;

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Semaphore;

use super::*;

const AT_ONCE: usize = 48;

/// SplitMix64 (Steele et al., 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What one connection will carry, and how it ends.
struct Plan {
    up: Vec<u8>,
    down: Vec<u8>,
    /// The client resets after this many bytes.
    client_resets: Option<usize>,
    /// The server's application resets after it has sent this many bytes.
    server_resets: Option<usize>,
    /// The application answers only when the request has ended.
    in_turns: bool,
}

impl Plan {
    fn of(seed: u64, number: u64) -> Plan {
        let random = |what: u64| mix(seed ^ mix(number) ^ mix(what));
        let length = |what: u64| match random(what) % 16 {
            0 => 0,
            1 => (random(what + 1) % 200_000) as usize,
            _ => (random(what + 1) % 3_000) as usize,
        };
        let bytes = |what: u64, length: usize| -> Vec<u8> {
            (0..length.div_ceil(8) as u64)
                .flat_map(|block| random(what ^ (block << 8)).to_le_bytes())
                .take(length)
                .collect()
        };
        let up = [&number.to_le_bytes()[..], &bytes(1, length(10))].concat();
        let down = bytes(2, length(20));
        let kind = random(30) % 16;
        Plan {
            client_resets: (kind == 0).then(|| (random(31) as usize) % (up.len() + 1)),
            server_resets: (kind == 1).then(|| (random(32) as usize) % (down.len() + 1)),
            in_turns: random(33).is_multiple_of(3),
            up,
            down,
        }
    }

    fn is_clean(&self) -> bool {
        self.client_resets.is_none() && self.server_resets.is_none()
    }
}

/// Sends `bytes`, as far as the plan and the peer let it, and ends unless the plan is to reset. False: the connection
/// broke.
async fn send(half: &mut OwnedWriteHalf, bytes: &[u8], until: Option<usize>) -> bool {
    let sent = half.write_all(&bytes[..until.unwrap_or(bytes.len())]).await.is_ok();
    sent && (until.is_some() || half.shutdown().await.is_ok())
}

/// Reads to the end and holds what came against what may come. `Some`: the end was clean, after so many bytes.
async fn receive(half: &mut OwnedReadHalf, expected: &[u8], what: &str) -> Option<usize> {
    let (mut seen, mut buffer) = (0, vec![0; 16 * 1024]);
    loop {
        match half.read(&mut buffer).await {
            Ok(0) => return Some(seen),
            Ok(count) => {
                let may_come = expected.get(seen..seen + count);
                assert!(may_come == Some(&buffer[..count]), "{what}: foreign bytes at {seen}");
                seen += count;
            }
            Err(_) => return None,
        }
    }
}

/// Whether one side may see a reset.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MayBreak {
    No,
    Perhaps,
    Will,
}

/// How one side saw the end. A reset is told once: where writing has heard of it, reading sees an end.
fn judge(whole: bool, ended: Option<usize>, expected: &[u8], may_break: MayBreak, what: &str) {
    let ended = ended.filter(|_| whole);
    if let Some(seen) = ended {
        assert_eq!(seen, expected.len(), "{what}: a clean end before the last byte");
        assert!(may_break != MayBreak::Will, "{what}: a reset came as a clean end");
    }
    assert!(ended.is_some() || may_break != MayBreak::No, "{what} was reset");
}

fn reset(read: OwnedReadHalf, write: OwnedWriteHalf) {
    let stream = read.reunite(write).expect("halves of one connection");
    stream.set_zero_linger().unwrap();
}

/// The application behind the server's proxy.
async fn serve(soak: Soak, stream: TcpStream, seen: Arc<Mutex<HashSet<u64>>>) {
    let (mut read, mut write) = stream.into_split();
    let mut number = [0; 8];
    // A client that resets may do so before it has said its number.
    if read.read_exact(&mut number).await.is_err() {
        return;
    }
    let number = u64::from_le_bytes(number);
    assert!(number < soak.connections, "{number} is no number of a connection");
    assert!(seen.lock().unwrap().insert(number), "connection {number} was delivered twice");
    let plan = Plan::of(soak.seed, number);
    let what = format!("request {number}");
    let (ended, whole) = if plan.server_resets.is_some() {
        send(&mut write, &plan.down, plan.server_resets).await;
        return reset(read, write);
    } else if plan.in_turns {
        (receive(&mut read, &plan.up[8..], &what).await, send(&mut write, &plan.down, None).await)
    } else {
        tokio::join!(receive(&mut read, &plan.up[8..], &what), send(&mut write, &plan.down, None))
    };
    judge(whole, ended, &plan.up[8..], soak.may_break(plan.client_resets), &what);
}

/// The client's application.
async fn call(soak: Soak, number: u64, near: TcpStream) {
    let plan = Plan::of(soak.seed, number);
    let (mut read, mut write) = near.into_split();
    let what = format!("answer {number}");
    if plan.client_resets.is_some() {
        send(&mut write, &plan.up, plan.client_resets).await;
        return reset(read, write);
    }
    let (whole, ended) = tokio::join!(send(&mut write, &plan.up, None), receive(&mut read, &plan.down, &what));
    judge(whole, ended, &plan.down, soak.may_break(plan.server_resets), &what);
}

/// One run.
#[derive(Clone, Copy)]
struct Soak {
    seed: u64,
    connections: u64,
    /// Whether any connection may be cut at any time.
    cuts: bool,
}

impl Soak {
    fn new(connections: u64, cuts: bool) -> Soak {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).unwrap();
        let seed = std::env::var("BYRNIE_SOAK_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(u64::from_le_bytes(random));
        println!("BYRNIE_SOAK_SEED={seed}");
        Soak { seed, connections, cuts }
    }

    fn may_break(self, peer_resets: Option<usize>) -> MayBreak {
        match (peer_resets, self.cuts) {
            (Some(_), _) => MayBreak::Will,
            (None, true) => MayBreak::Perhaps,
            (None, false) => MayBreak::No,
        }
    }

    /// Makes the connections, and before each of them what `disturb` does.
    async fn run(self, disturb: impl Fn(u64, &Rig)) {
        let (rig, worker) = (Arc::new(Rig::new().await), Worker::new());
        let seen = Arc::new(Mutex::new(HashSet::new()));
        let served = tokio::spawn(self.applications(rig.clone(), seen.clone()));
        let (permits, mut calls) = (Arc::new(Semaphore::new(AT_ONCE)), tokio::task::JoinSet::new());
        for number in 0..self.connections {
            let permit = permits.clone().acquire_owned().await.unwrap();
            disturb(number, &rig);
            let (near, carried) = dial(&rig, &worker, service(vec![endpoint(rig.address, "orders", 1)])).await;
            calls.spawn(async move {
                call(self, number, near).await;
                carried.await.unwrap();
                drop(permit);
            });
            while let Some(called) = calls.try_join_next() {
                called.expect("the client's side");
            }
            assert!(!served.is_finished(), "the application's side failed");
        }
        while let Some(called) = calls.join_next().await {
            called.expect("the client's side");
        }
        tokio::task::yield_now().await;
        assert!(!served.is_finished(), "the application's side failed");
        let clean = (0..self.connections).filter(|number| Plan::of(self.seed, *number).is_clean()).count();
        assert!(self.cuts || seen.lock().unwrap().len() >= clean);
    }

    async fn applications(self, rig: Arc<Rig>, seen: Arc<Mutex<HashSet<u64>>>) {
        let mut serving = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = rig.application.accept() => {
                    serving.spawn(serve(self, accepted.unwrap().0, seen.clone()));
                }
                Some(served) = serving.join_next() => served.expect("the application's side"),
            }
        }
    }
}

#[tokio::test]
async fn bytes_of_one_connection_never_reach_another_while_both_sides_renew() {
    let renew = |number, rig: &Rig| {
        if number % 1000 == 500 {
            rig.renew(&rig.client, "web");
            rig.renew(&rig.server, "orders");
        }
    };
    Soak::new(1500, false).run(renew).await;
}

#[tokio::test]
async fn a_connection_that_is_cut_never_ends_cleanly_before_its_last_byte() {
    let cut = |number, rig: &Rig| match number % 40 {
        13 => rig.client.streams.cut_all("the test"),
        33 => rig.server.streams.cut_all("the test"),
        _ => {}
    };
    Soak::new(400, true).run(cut).await;
}

#[tokio::test]
async fn a_drain_breaks_no_connection_old_or_new() {
    let drain = |number, rig: &Rig| {
        if number == 100 {
            rig.server.drain.begin();
        }
    };
    Soak::new(300, false).run(drain).await;
}
