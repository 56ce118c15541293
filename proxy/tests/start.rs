//! The binary itself: how it starts, what it says when it can't, and how it ends.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use byrnie_identity::authority::CertificateAuthority;
use byrnie_identity::{Clock, KeyPair, SpiffeId, Svid};

/// A proxy's files, in a directory of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let trust_domain = "cluster.local".parse().unwrap();
        let authority = CertificateAuthority::create(trust_domain, &Clock::system()).unwrap();
        std::fs::write(files.path("bundle.pem"), authority.bundle().to_pem()).unwrap();
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let issued = authority.issue(&key.spki_der(), &id, Duration::from_secs(3600)).unwrap();
        Svid::new(issued.chain, key).unwrap().save(Path::new(&files.path("state"))).unwrap();
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The proxy with these files, on ports that were free a moment ago.
    fn proxy(&self, ports: &[u16; 5]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byrnie-proxy"));
        command.args(["--control-plane", "127.0.0.1:1", "--access-log", "off", "--drain-timeout", "2s"]);
        command.args(["--trust-bundle", &self.path("bundle.pem"), "--state", &self.path("state")]);
        let user = nix::unistd::geteuid();
        let exempt = if user.is_root() { "mark".to_owned() } else { format!("uid:{user}") };
        command.args(["--exempt", &exempt]);
        command.args(["--admin-listen", &format!("127.0.0.1:{}", ports[0])]);
        command.args(["--outbound-port", &ports[1].to_string(), "--inbound-port", &ports[2].to_string()]);
        command.args(["--metrics-listen", &format!("127.0.0.1:{}", ports[3])]);
        command.args(["--health-listen", &format!("127.0.0.1:{}", ports[4])]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Below the ports that the kernel hands out (`ip_local_port_range` begins at 32768): a port from among those may be
/// taken by any connection of another test between this look at it and the proxy's start. No two tests get the same.
fn free_ports() -> [u16; 5] {
    const FROM: u16 = 16_000;
    const COUNT: u16 = 16_000;
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    // Runs beside each other begin in different places.
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap();
    let mut free = std::iter::repeat_with(|| FROM + (start + TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT)
        .filter(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok() && TcpListener::bind(("::", *port)).is_ok());
    [(); 5].map(|()| free.next().unwrap())
}

/// Ends the process when the test does, whatever happens.
struct Running(Child);

impl Running {
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command, health: u16) -> Running {
    let mut running = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", health)).is_err() {
        assert!(running.0.try_wait().unwrap().is_none(), "the proxy ended: {}", errors(&mut running));
        assert!(Instant::now() < deadline, "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    running
}

fn errors(running: &mut Running) -> String {
    let mut text = String::new();
    running.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_command_line_ends_with_2_and_names_every_mistake() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_byrnie-proxy"));
    let output = command.args(["--workers", "many", "--exempt", "gid"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = text(&output);
    for option in ["--control-plane", "--state", "--trust-bundle", "--workers", "--exempt"] {
        assert!(text.contains(&format!("\n  {option}: expected ")), "{option} is missing in {text}");
    }
    assert_eq!(
        Command::new(env!("CARGO_BIN_EXE_byrnie-proxy")).arg("--nonsense").output().unwrap().status.code(),
        Some(2)
    );
}

#[test]
fn the_help_teaches() {
    let output = Command::new(env!("CARGO_BIN_EXE_byrnie-proxy")).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for word in ["EXAMPLE", "EXIT CODES", "SIGNALS", "byrnie token create", "15003"] {
        assert!(help.contains(word), "{word}");
    }
}

#[test]
fn every_port_that_is_taken_is_named_and_the_exit_code_is_1() {
    let files = Files::new();
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let mut ports = free_ports();
    ports[0] = taken[0].local_addr().unwrap().port();
    ports[4] = taken[1].local_addr().unwrap().port();
    let output = files.proxy(&ports).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains(&format!("--admin-listen: 127.0.0.1:{} is taken", ports[0])), "{text}");
    assert!(text.contains(&format!("--health-listen: 127.0.0.1:{} is taken", ports[4])), "{text}");
}

#[test]
fn files_that_can_not_be_used_are_named_together_and_the_exit_code_is_2() {
    let files = Files::new();
    std::fs::set_permissions(files.path("state/svid.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let output = files.proxy(&free_ports()).args(["--access-log", "/does/not/exist/log"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = text(&output);
    assert!(text.contains("svid.pem") && text.contains("0600"), "{text}");
    assert!(text.contains("--access-log: expected"), "{text}");
}

#[test]
fn a_proxy_whose_connections_capture_would_catch_does_not_start() {
    let files = Files::new();
    let output = files.proxy(&free_ports()).args(["--exempt", "uid:4321"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("--exempt: expected to run as UID 4321"), "{}", text(&output));
}

#[test]
fn it_is_alive_not_ready_without_capture_and_ends_with_0_when_asked() {
    let files = Files::new();
    let ports = free_ports();
    let mut running = start(&mut files.proxy(&ports), ports[4]);
    assert!(get(ports[4], "/healthz/live").starts_with("HTTP/1.1 200"));
    let ready = get(ports[4], "/healthz/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("capture is not proved"), "{ready}");
    assert!(get(ports[3], "/metrics").contains("byrnie_ready 0"));
    assert!(get(ports[0], "/status").contains("spiffe://cluster.local/ns/shop/sa/web"));
    let socket = files.path("state/admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&socket).exists(), "nothing is left behind");
    let log = errors(&mut running);
    assert!(log.contains("draining") && log.contains("no stream to the control plane"), "{log}");
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

#[test]
fn four_workers_share_the_ports_and_a_second_proxy_is_kept_out() {
    let files = Files::new();
    let ports = free_ports();
    let mut running = start(files.proxy(&ports).args(["--workers", "4"]), ports[4]);
    let other = Files::new();
    let mut others = free_ports();
    others[2] = ports[2];
    let output = other.proxy(&others).args(["--workers", "4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("--inbound-port"), "{}", text(&output));
    running.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn without_capture_the_proof_says_so_and_ends_with_1() {
    let output = Command::new(env!("CARGO_BIN_EXE_byrnie-proxy")).arg("prove-capture").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("not captured: "));
}

#[test]
fn drain_returns_when_the_proxy_drains_and_a_proxy_that_is_gone_is_no_failure() {
    let files = Files::new();
    let ports = free_ports();
    let drain = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byrnie-proxy"));
        let output = command.args(["drain", "--admin-socket", &files.path("state/admin.sock")]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(drain().contains("nothing to drain"));
    let mut running = start(&mut files.proxy(&ports), ports[4]);
    assert_eq!(drain(), "the proxy drains\n");
    assert!(get(ports[4], "/healthz/ready").contains("the proxy is draining"));
    // It goes on until it is told to end.
    assert!(running.0.try_wait().unwrap().is_none());
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    // A socket that a killed proxy left behind.
    assert!(drain().contains("nothing to drain"));
}

#[test]
fn drain_does_not_take_something_else_for_a_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"SSH-2.0-other\r\n").unwrap();
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_byrnie-proxy"));
    let output = command.arg("drain").arg("--admin-socket").arg(&socket).output().unwrap();
    other.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("expected a proxy that drains, found \"SSH-2.0-other\""), "{}", text(&output));
}

#[test]
fn probes_that_can_not_be_read_are_named_with_their_place() {
    let files = Files::new();
    let nonce = "0123456789abcdef".repeat(2);
    let probe = r#"{"web/liveness": {"action": {"exec": {}}, "timeoutSeconds": 1}}"#;
    let wrong = format!(r#"{{"nonce": "{nonce}", "probes": {probe}}}"#);
    let output = files.proxy(&free_ports()).env("BYRNIE_PROBES", wrong).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = text(&output);
    assert!(text.contains("\n  BYRNIE_PROBES: expected") && text.contains("exec"), "{text}");
    assert!(!text.contains(&nonce), "{text}");
}
