//! System calls of fixed work. Time differs from machine to machine and from minute to minute, these do not: what a change
//! costs is seen here before a benchmark could tell it from noise.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use byrnie_netlab::harness::Verdict;
use byrnie_scenarios::{Mesh, Pod, World, apps, exchange, finish, missing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Requests, and connections, that are counted.
const UNITS: u32 = 200;

/// What one of them costs each proxy: calls that do something, and waits. A change that moves a figure, up or down, puts the
/// new one here, and says in docs/performance.md what it gave.
const EXPECTED: [(&str, f64, f64); 4] = [
    ("a request, at the client's proxy", 4.0, 2.0),
    ("a request, at the server's proxy", 4.0, 2.0),
    ("a connection, at the client's proxy", 17.0, 5.0),
    ("a connection, at the server's proxy", 21.0, 5.1),
];

/// Wake-ups differ by a few: bytes and an end that come together are read together.
const NOISE: f64 = 0.06;

/// Without the waits it is less than one call: 0.4 for a connection were seen on a busy machine.
const NOISE_OF_CALLS: f64 = 0.04;

const WAIT: &str = "epoll_wait";

pub(crate) async fn fixed_work_costs_the_system_calls_that_are_written_down(world: World) -> Verdict {
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo);
    let mut stream = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut stream, b"what is made once is made").await.unwrap();
    web.call(orders.at(8080)).await.unwrap();

    let Some(begun) = Counting::begin([&web, &orders]) else {
        return Verdict::NotRun(missing("strace is missing, or may not trace (apt-get install strace)"));
    };
    for _ in 0..UNITS {
        exchange(&mut stream, b"a request of some size").await.unwrap();
    }
    let requests = begun.end();
    let begun = Counting::begin([&web, &orders]).unwrap();
    for _ in 0..UNITS {
        let mut stream = web.connect(orders.at(8080)).await.unwrap();
        exchange(&mut stream, b"a request of some size").await.unwrap();
        finish(&mut stream).await.unwrap();
    }
    let connections = begun.end();

    let found = requests.into_iter().chain(connections);
    let mut wrong = Vec::new();
    for ((what, expected_calls, expected_waits), mut counted) in EXPECTED.into_iter().zip(found) {
        let all = format!("{counted:?} in {UNITS}");
        let waits = f64::from(counted.remove(WAIT).unwrap_or_default()) / f64::from(UNITS);
        let calls = f64::from(counted.values().sum::<u32>()) / f64::from(UNITS);
        println!("figure: {what}: {calls:.2} system calls and {waits:.2} waits: {all}");
        let expected = expected_calls + expected_waits;
        if (calls - expected_calls).abs() > expected_calls * NOISE_OF_CALLS
            || (calls + waits - expected).abs() > expected * NOISE
        {
            wrong.push(format!(
                "{what}: {calls:.2} system calls and {waits:.2} waits, expected {expected_calls} and {expected_waits}: {all}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Verdict::Passed
}

/// The system calls of some proxies' main threads are being counted: these carry the bytes of every connection, and others
/// write the access log.
struct Counting(Vec<Child>);

impl Counting {
    /// `None` where that is not possible.
    fn begin(pods: [&Pod; 2]) -> Option<Self> {
        let traced = pods.map(|pod| {
            let mut tracer = Command::new("strace")
                .args(["-c", "-U", "calls,name", "-p", &pod.proxy_id().to_string()])
                .stderr(Stdio::piped())
                .spawn()
                .ok()?;
            let mut said = String::new();
            BufReader::new(tracer.stderr.as_mut()?).read_line(&mut said).ok()?;
            said.contains("attached").then_some(tracer)
        });
        traced.into_iter().collect::<Option<Vec<_>>>().map(Self)
    }

    /// What was called how often, by each.
    fn end(self) -> Vec<BTreeMap<String, u32>> {
        for tracer in &self.0 {
            kill(Pid::from_raw(i32::try_from(tracer.id()).unwrap()), Signal::SIGINT).unwrap();
        }
        let outputs = self.0.into_iter().map(|tracer| tracer.wait_with_output().unwrap().stderr);
        outputs.map(|text| calls(&String::from_utf8_lossy(&text))).collect()
    }
}

/// What is not the work's: what threads wait for among themselves, and what the allocator asks for and gives back.
const OTHERS: [&str; 5] = ["total", "futex", "madvise", "munmap", "mmap"];

/// The lines "     400 epoll_wait".
fn calls(table: &str) -> BTreeMap<String, u32> {
    let lines = table.lines().filter_map(|line| {
        let (count, name) = line.trim().split_once(char::is_whitespace)?;
        Some((name.trim().to_owned(), count.parse().ok()?))
    });
    let calls: BTreeMap<_, _> = lines.filter(|(name, _)| !OTHERS.contains(&name.as_str())).collect();
    assert!(calls.contains_key(WAIT), "not what strace says: {table}");
    calls
}
