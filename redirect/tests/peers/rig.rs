//! A pod with a connection to each address of a peer, tuned as the proxy's.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use byrnie_netlab::{Entered, Host, Lab, RunAs};
use byrnie_redirect::{Leg, set_keepalive, stalled_peers};

/// How long a peer may be silent in these tests.
pub(crate) const BOUND: Duration = Duration::from_secs(1);

/// For what has to happen some time after the bound.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The proxy as it is in a cluster: a UID, and nothing else.
const PROXY: RunAs = RunAs::Application { uid: byrnie_redirect::PROXY_UID };

pub(crate) struct Rig {
    lab: Lab,
    pod: Host,
    peer: Host,
    /// The pod's end and the peer's, over IPv4 and over IPv6.
    pub(crate) connections: Vec<(TcpStream, TcpStream)>,
}

impl Rig {
    pub(crate) fn new(entered: &Entered) -> Self {
        let lab = Lab::new(entered, "peers").unwrap();
        let pod = lab.pod("pod", &lab.networks().pod(11), &[]).unwrap();
        let peer = lab.pod("peer", &lab.networks().pod(12), &[]).unwrap();
        let at = peer.addresses().iter().map(|address| SocketAddr::new(*address, 443));
        let connections = at.map(|at| connect(&pod, &peer.listen(at).unwrap())).collect();
        Self { lab, pod, peer, connections }
    }

    /// The pod's ends, in order.
    pub(crate) fn legs(&self) -> Vec<Leg> {
        let mut legs: Vec<Leg> = self.connections.iter().map(|(near, _)| Leg::of(near).unwrap()).collect();
        legs.sort();
        legs
    }

    pub(crate) fn stalled(&self) -> Vec<Leg> {
        let mut legs = self.pod.run(|| stalled_peers(BOUND)).unwrap().unwrap();
        legs.sort();
        legs
    }

    /// What a program of the proxy's UID, without any capability, sees.
    pub(crate) fn seen_without_privileges(&self) -> String {
        let program = std::env::current_exe().unwrap();
        let output = self.pod.command(program).args(["role", "look"]).user(PROXY).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Nothing reaches the peer any more, and nothing comes from it.
    pub(crate) fn peer_vanishes(&self) {
        self.lab.remove(&self.peer).unwrap();
    }

    pub(crate) fn wait_until_all_stalled(&self) {
        let begun = Instant::now();
        while self.stalled() != self.legs() {
            assert!(begun.elapsed() < PATIENCE, "found {:?} of {:?}", self.stalled(), self.legs());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(begun.elapsed() >= BOUND, "found after {:?}", begun.elapsed());
    }
}

pub(crate) fn look_role(_: &[String]) -> ExitCode {
    match stalled_peers(BOUND) {
        Ok(legs) => {
            for leg in legs {
                println!("{} {}", leg.local, leg.remote);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn connect(pod: &Host, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut near = pod.connect(listener.local_addr().unwrap(), PATIENCE).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
        set_keepalive(end).unwrap();
    }
    // The first SYN on a new link may be lost, and then the kernel takes the round trip for a second and retransmits
    // after three: it has to learn better.
    for _ in 0..100 {
        near.write_all(b"hello").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
        far.write_all(b"hello").unwrap();
        near.read_exact(&mut [0; 5]).unwrap();
    }
    (near, far)
}

/// Writes pieces of this size until the connection takes no more; bytes taken.
pub(crate) fn fill(mut stream: &TcpStream, piece: usize) -> usize {
    stream.set_nonblocking(true).unwrap();
    let bytes = vec![0; piece];
    let mut taken = 0;
    let mut full_since = None;
    loop {
        match stream.write(&bytes) {
            Ok(count) => (taken, full_since) = (taken + count, None),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                // What is taken now and then is what the peer's kernel still has room for.
                if full_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(300) {
                    return taken;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
