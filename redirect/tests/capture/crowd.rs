//! Many connections at once to one port of the proxy: all are captured, or fail; none passes.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{ChildStdout, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Process};
use byrnie_redirect::original_dst;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::rig::{APP, PATIENCE, Rig};

/// At once.
const CROWD: usize = 20_000;

/// The first ports that the two halves dial from; each connection has the next one. To find 20,000 ports of its own
/// choice takes the kernel minutes.
const FIRST: [usize; 2] = [2_000, 17_000];

/// Below the ports of the crowd.
const PORT: u16 = 1_601;

pub(crate) fn a_crowd_of_connections_to_one_port_is_captured_whole(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.outbound_port = PORT;
    rig.apply(&config);
    let (target, passed) = counting_peer(&rig);
    // Two of each: a process may have 20,000 files open.
    let mut acceptors = [(); 2].map(|()| Helper::start(&rig, &["accept".to_owned(), target.to_string()]));
    for acceptor in &mut acceptors {
        assert_eq!(acceptor.line(), "listening");
    }
    let half = CROWD / 2;
    let role =
        |number: usize, first: usize| ["crowd".to_owned(), target.to_string(), number.to_string(), first.to_string()];
    let mut applications = FIRST.map(|first| Helper::start(&rig, &role(half, first)));
    for application in &mut applications {
        assert_eq!(application.line(), format!("{half} open"));
    }
    // All are open now; each acceptor says how many it has, and whether each was meant for the target.
    let accepted: usize = acceptors.iter_mut().map(|acceptor| acceptor.ask("count").parse::<usize>().unwrap()).sum();
    assert_eq!(accepted, CROWD);
    assert_eq!(passed.load(Ordering::Relaxed), 0, "connections passed the proxy by");
    drop(applications);
    // And one more, when they are gone.
    let mut again = Helper::start(&rig, &role(1, FIRST[0]));
    assert_eq!(again.line(), "1 open");
    Verdict::Passed
}

pub(crate) fn where_no_port_is_left_a_connection_fails_and_none_passes(entered: &Entered) -> Verdict {
    const PORTS: usize = 100;
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    let (target, passed) = counting_peer(&rig);
    rig.pod.run(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 20099")).unwrap().unwrap();
    let dial = || rig.pod.connect(target, PATIENCE);
    let mut open: Vec<TcpStream> = (0..PORTS).map(|_| dial().unwrap()).collect();
    let refused = dial().unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32), "{refused}");
    // Other addresses are not touched by it, and one that ends makes room.
    assert_eq!(rig.ask(rig.targets(443)[1]), format!("outbound {}", rig.targets(443)[1]));
    let gone = open.pop().unwrap();
    socket2::SockRef::from(&gone).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    dial().unwrap();
    assert_eq!(passed.load(Ordering::Relaxed), 0, "connections passed the proxy by");
    Verdict::Passed
}

pub(crate) fn a_proxy_that_accepts_nothing_is_not_passed_by(entered: &Entered) -> Verdict {
    const QUEUE: usize = 4;
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.outbound_port = PORT;
    rig.apply(&config);
    let (target, passed) = counting_peer(&rig);
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    let listener = rig.pod.socket(at).unwrap();
    listener.bind(&at.into()).unwrap();
    listener.listen(i32::try_from(QUEUE).unwrap()).unwrap();
    let listener: TcpListener = listener.into();
    let dial = || rig.pod.connect(target, Duration::from_millis(300));
    let waiting: Vec<TcpStream> = (0..4 * QUEUE).map_while(|_| dial().ok()).collect();
    assert!((QUEUE..4 * QUEUE).contains(&waiting.len()), "{} in the queue", waiting.len());
    assert_eq!(passed.load(Ordering::Relaxed), 0, "connections passed the proxy by");
    for _ in &waiting {
        listener.accept().unwrap();
    }
    dial().unwrap();
    drop(listener);
    // Nor is one that is gone.
    assert_eq!(dial().unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(passed.load(Ordering::Relaxed), 0, "connections passed the proxy by");
    Verdict::Passed
}

/// A port of the peer, and how many connections have reached it.
fn counting_peer(rig: &Rig) -> (SocketAddr, Arc<AtomicUsize>) {
    let at = rig.targets(445)[0];
    let (listener, passed) = (rig.peer.listen(at).unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&passed);
    std::thread::spawn(move || {
        while listener.accept().is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (at, passed)
}

/// A process of the pod that is asked and answers in lines.
struct Helper {
    process: Process,
    out: BufReader<ChildStdout>,
}

impl Helper {
    fn start(rig: &Rig, role: &[String]) -> Self {
        let role: Vec<&str> = role.iter().map(String::as_str).collect();
        let mut process = rig.role(APP, &role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.child().stdout.take().unwrap());
        Self { process, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.process.child().stdin.as_mut().unwrap(), "{question}").unwrap();
        self.line()
    }
}

fn allow_many_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// In the proxy's place: accepts and keeps what comes; says how many, when asked.
pub(crate) fn accept_role(args: &[String]) -> ExitCode {
    allow_many_files();
    let target: SocketAddr = args[0].parse().unwrap();
    let at = SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), PORT);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(4096).unwrap();
    let listener: TcpListener = socket.into();
    println!("listening");
    let kept = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&kept);
    std::thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            assert_eq!(original_dst(&stream).unwrap().0, target);
            open.push(stream);
            counter.store(open.len(), Ordering::Relaxed);
        }
    });
    for _ in std::io::stdin().lines() {
        // What was opened has been accepted in a moment.
        std::thread::sleep(Duration::from_millis(200));
        println!("{}", kept.load(Ordering::Relaxed));
    }
    ExitCode::SUCCESS
}

/// An application with many connections to one address, until its input ends.
pub(crate) fn crowd_role(args: &[String]) -> ExitCode {
    allow_many_files();
    let target: SocketAddr = args[0].parse().unwrap();
    let (number, first): (u16, u16) = (args[1].parse().unwrap(), args[2].parse().unwrap());
    let dial = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port).into())?;
        socket.connect_timeout(&target.into(), PATIENCE).map(|()| socket)
    };
    let open: Result<Vec<Socket>, std::io::Error> = (first..first + number).map(dial).collect();
    match &open {
        Ok(open) => println!("{} open", open.len()),
        Err(error) => println!("{error}"),
    }
    std::io::stdin().lines().for_each(drop);
    ExitCode::SUCCESS
}
