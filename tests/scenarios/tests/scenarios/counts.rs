//! System calls and segments of fixed work. Time differs from machine to machine and from minute to minute, these do not:
//! what a change costs is seen here before a benchmark could tell it from noise.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use byrnie_netlab::harness::Verdict;
use byrnie_scenarios::{Ending, Mesh, Pod, World, apps, ending, exchange, finish, missing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Requests, and connections, that are counted.
const UNITS: u32 = 200;

/// What one of them costs each proxy: calls that do something, and waits; and its pod: TCP segments that leave it, to the other
/// pod or over loopback. A change that moves a figure, up or down, puts the new one here, and says in docs/performance.md
/// what it gave.
const EXPECTED: [(&str, f64, f64, f64); 6] = [
    ("a request, at the client's proxy", 4.0, 2.0, 3.0),
    ("a request, at the server's proxy", 4.0, 2.0, 3.0),
    ("a connection that the client ends, at its proxy", 16.1, 5.0, 12.0),
    ("a connection that the client ends, at the server's proxy", 23.1, 5.1, 11.0),
    ("a connection that the server ends, at the client's proxy", 16.0, 3.1, 10.0),
    ("a connection that the server ends, at its proxy", 21.1, 4.2, 11.0),
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
    let _answer_once = orders.serve(8081, apps::answer_once);
    let mut stream = web.connect(orders.at(8080)).await.unwrap();
    exchange(&mut stream, b"what is made once is made").await.unwrap();
    web.call(orders.at(8080)).await.unwrap();
    web.call(orders.at(8081)).await.unwrap();

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
    let ended_by_client = begun.end();
    let begun = Counting::begin([&web, &orders]).unwrap();
    for _ in 0..UNITS {
        let mut stream = web.connect(orders.at(8081)).await.unwrap();
        exchange(&mut stream, b"a request of some size").await.unwrap();
        assert_eq!(ending(&mut stream).await, Ending::Clean);
    }
    let ended_by_server = begun.end();

    let found = requests.into_iter().chain(ended_by_client).chain(ended_by_server);
    let mut wrong = Vec::new();
    for ((what, expected_calls, expected_waits, expected_segments), (mut counted, segments)) in
        EXPECTED.into_iter().zip(found)
    {
        let all = format!("{counted:?} in {UNITS}");
        let waits = f64::from(counted.remove(WAIT).unwrap_or_default()) / f64::from(UNITS);
        let calls = f64::from(counted.values().sum::<u32>()) / f64::from(UNITS);
        let segments = segments as f64 / f64::from(UNITS);
        println!("figure: {what}: {calls:.2} system calls, {waits:.2} waits and {segments:.2} segments: {all}");
        let expected = expected_calls + expected_waits;
        if (calls - expected_calls).abs() > expected_calls * NOISE_OF_CALLS
            || (calls + waits - expected).abs() > expected * NOISE
            || (segments - expected_segments).abs() > expected_segments * NOISE
        {
            wrong.push(format!(
                "{what}: {calls:.2} system calls, {waits:.2} waits and {segments:.2} segments, \
                 expected {expected_calls}, {expected_waits} and {expected_segments}: {all}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Verdict::Passed
}

/// The kernel may hold back an acknowledgement for 40 ms, and says how often it did for that long. An application without
/// `TCP_NODELAY` waits for one between two small writes; on a connection's first answer no other client makes it wait.
pub(crate) async fn an_answer_in_two_small_writes_waits_for_no_acknowledgement(world: World) -> Verdict {
    const CONNECTIONS: u64 = 20;
    let mesh = Mesh::start(&world).await;
    let [web, orders] = mesh.pods(["shop/web", "shop/orders"]).await;
    let _echo = orders.serve(8080, apps::echo_in_two);
    web.call(orders.at(8080)).await.unwrap();
    let held_back = || counter(orders.proxy_id(), "netstat", "TcpExt:", "DelayedACKs");
    let mut found = Vec::new();
    // A machine that stalls between two connections holds back others.
    for _ in 0..3 {
        let before = held_back();
        for _ in 0..CONNECTIONS {
            let mut stream = web.connect(orders.at(8080)).await.unwrap();
            exchange(&mut stream, b"what is said back in two pieces").await.unwrap();
            finish(&mut stream).await.unwrap();
        }
        found.push(held_back() - before);
        if found.last().is_some_and(|held_back| *held_back < CONNECTIONS / 2) {
            return Verdict::Passed;
        }
    }
    panic!("{found:?} acknowledgements were held back on {CONNECTIONS} connections, three times");
}

/// The system calls of some proxies' main threads are being counted: these carry the bytes of every connection, and others
/// write the access log.
struct Counting(Vec<Traced>);

struct Traced {
    proxy: u32,
    tracer: Child,
    /// That had left its pod before.
    segments: u64,
}

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
            let proxy = pod.proxy_id();
            said.contains("attached").then(|| Traced { proxy, tracer, segments: segments(proxy) })
        });
        traced.into_iter().collect::<Option<Vec<_>>>().map(Self)
    }

    /// What was called how often, by each, and the segments that have left its pod.
    fn end(self) -> Vec<(BTreeMap<String, u32>, u64)> {
        for traced in &self.0 {
            kill(Pid::from_raw(i32::try_from(traced.tracer.id()).unwrap()), Signal::SIGINT).unwrap();
        }
        let ended = self.0.into_iter().map(|traced| {
            let segments = segments(traced.proxy) - traced.segments;
            let said = traced.tracer.wait_with_output().unwrap().stderr;
            (calls(&String::from_utf8_lossy(&said)), segments)
        });
        ended.collect()
    }
}

/// TCP segments that the network namespace of a process has sent.
fn segments(process: u32) -> u64 {
    counter(process, "snmp", "Tcp:", "OutSegs")
}

/// What the kernel counts in the network namespace of a process: a table has a line of names and a line of values.
fn counter(process: u32, file: &str, table: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/net/{file}")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) = names.split(' ').zip(values.split(' ')).find(|(found, _)| *found == name).unwrap();
    value.parse().unwrap()
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
