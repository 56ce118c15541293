//! What the scenarios share.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use byrnie_netlab::{Host, Lab, RunAs};

pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) trait AddressOfFamily {
    fn addresses_of_family(&self, like: IpAddr) -> String;
}

impl AddressOfFamily for Host {
    /// Its address of the same family, as a server would write it.
    fn addresses_of_family(&self, like: IpAddr) -> String {
        let same = |address: &&IpAddr| address.is_ipv4() == like.is_ipv4();
        self.addresses().iter().find(same).unwrap().to_string()
    }
}

pub(crate) fn two_pods(lab: &Lab) -> (Host, Host) {
    let networks = lab.networks();
    let a = lab.pod("a", &networks.pod(11), &[]).unwrap();
    let b = lab.pod("b", &networks.pod(12), &[]).unwrap();
    (a, b)
}

/// A server that tells one client its address.
pub(crate) fn serve(host: &Host, address: IpAddr, port: u16) -> (SocketAddr, TcpListener) {
    let at = SocketAddr::new(address, port);
    (at, host.listen(at).unwrap())
}

pub(crate) fn ask(client: &Host, (at, listener): (SocketAddr, TcpListener)) -> String {
    let mut stream = client.connect(at, PATIENCE).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    write!(accepted, "{}", from.ip()).unwrap();
    drop(accepted);
    let mut seen = String::new();
    stream.read_to_string(&mut seen).unwrap();
    seen
}

/// One connection with these writes, each a segment of its own. Its port is
/// new each time: a program that another thread starts just now holds every
/// open socket, a listener too, for the moment between fork and exec.
pub(crate) fn say(from: &Host, to: &Host, address: IpAddr, words: &[&[u8]]) {
    static PORT: AtomicU16 = AtomicU16::new(8000);
    let at = SocketAddr::new(address, PORT.fetch_add(1, Ordering::Relaxed));
    let listener = to.listen(at).unwrap();
    let mut client = from.connect(at, PATIENCE).unwrap();
    client.set_nodelay(true).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    for word in words {
        client.write_all(word).unwrap();
        server.read_exact(&mut vec![0; word.len()]).unwrap();
    }
}

/// This program once more, making a lab inside the lab.
pub(crate) fn nested(lab: &Lab, role: &[&str]) -> byrnie_netlab::HostCommand {
    lab.node().command(std::env::current_exe().unwrap()).arg("role").args(role).user(RunAs::Operator)
}

/// IDs of the processes that have `word` in their command line.
pub(crate) fn running(word: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_ok() && *name != own)
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        })
        .collect()
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
