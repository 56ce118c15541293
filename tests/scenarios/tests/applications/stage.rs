//! What every application is tried on, and what must be true of it afterwards.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest;
use byrnie_netlab::{HostCommand, Process, RunAs, Tap};
use byrnie_scenarios::{DEADLINE, Mesh, Pod, Random, Service, World, eventually, hexadecimal, within};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, chown};

/// The UID of every application. Where only one exists it is this one in a user namespace of the application's own:
/// PostgreSQL does not run as root, and sshd would change its root directory.
const UID: u32 = 1000;

/// How long a client may take for megabytes on a machine that does much else; [`within`] waits five times as long.
const CLIENT: Duration = Duration::from_secs(12);

/// A client's and a server's pod in a strict mesh, a Service in front of the latter, and a tap between them.
pub(crate) struct Stage {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    service: IpAddr,
    directory: PathBuf,
    has_uids: bool,
    marker: String,
    tap: Tap,
    next: AtomicUsize,
    mesh: Mesh,
}

impl Stage {
    /// `marker` is what must not be seen on the wire.
    pub(crate) async fn new(world: &World, ports: &[u16], marker: &str) -> Self {
        let mesh = Mesh::start(world).await;
        let service = ports.iter().fold(Service::new("shop/orders"), |service, port| service.port(*port, *port));
        let [service, _] = mesh.service(&service);
        let [client, server] = mesh.pods(["shop/web", "shop/orders"]).await;
        let directory = mesh.directory().join("applications");
        let tap = mesh.tap(marker, &[&client, &server]);
        let marker = marker.to_owned();
        let has_uids = world.has_uids();
        let stage = Self { client, server, service, directory, has_uids, marker, tap, next: AtomicUsize::new(0), mesh };
        stage.folder("");
        stage
    }

    /// Where the server is, for its clients: behind the Service.
    pub(crate) fn address(&self) -> String {
        self.service.to_string()
    }

    /// A path in the applications' directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes a directory of the applications'.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        self.give(&path);
        path
    }

    /// Makes a file of the applications', which nobody else may read.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.give(&path);
        path
    }

    /// A file of `applications/`, with the place of its own directory in it.
    pub(crate) fn configuration(&self, name: &str, text: &str) -> PathBuf {
        self.file(name, text.replace("DIRECTORY", self.directory.to_str().unwrap()))
    }

    /// Lines of text, each with the marker; about so many bytes.
    pub(crate) fn lines(&self, bytes: usize) -> Vec<u8> {
        let mut random = Random::of(&self.marker, 0);
        let mut text = Vec::with_capacity(bytes + 100);
        while text.len() < bytes {
            text.extend(format!("{} {:016x}{:016x}\n", self.marker, random.next(), random.next()).into_bytes());
        }
        text
    }

    /// A program in the server's pod.
    pub(crate) fn at_server(&self, program: &Path) -> HostCommand {
        self.command(&self.server, program)
    }

    /// A program in the client's pod.
    pub(crate) fn at_client(&self, program: &Path) -> HostCommand {
        self.command(&self.client, program)
    }

    fn command(&self, pod: &Pod, program: &Path) -> HostCommand {
        let home = self.directory.to_str().unwrap();
        let command = if self.has_uids {
            pod.host().command(program).user(RunAs::Application { uid: UID })
        } else {
            let (user, group) = (format!("--map-user={UID}"), format!("--map-group={UID}"));
            // Only who may set file capabilities maps the outer UID 0. What it becomes has no capability anywhere.
            pod.host().command("unshare").user(RunAs::Operator).args([&user, &group, "--"]).arg(program)
        };
        let users = format!("root:x:0:0::/:/bin/sh\napp:x:{UID}:{UID}::{home}:/bin/sh\n");
        let command = command.file("/etc/passwd", users).current_dir(home);
        command.env("HOME", home).env("TMPDIR", home).env("LANG", "C.UTF-8")
    }

    /// Starts a program.
    pub(crate) fn start(&self, command: HostCommand) -> Program {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [said, complaints] = ["said", "complaints"].map(|name| self.path(&format!("{number}.{name}")));
        let [out, err] = [&said, &complaints].map(|path| Stdio::from(fs::File::create(path).unwrap()));
        let process = command.stdout(out).stderr(err).spawn().unwrap();
        Program { process, said, complaints }
    }

    /// Starts a server, and waits until it listens.
    pub(crate) async fn serve(&self, command: HostCommand, port: u16) -> Program {
        let mut server = self.start(command);
        eventually(&format!("the application listens on {port}"), DEADLINE, async || {
            let ended = server.process.try_wait().unwrap();
            assert!(ended.is_none(), "the application has ended ({ended:?}):\n{}", server.text());
            self.server.host().connect_async(SocketAddr::new([127, 0, 0, 1].into(), port)).await.ok()
        })
        .await;
        server
    }

    /// Runs a program to its good end; what it wrote.
    pub(crate) async fn run(&self, command: HostCommand) -> Vec<u8> {
        self.start(command).finish().await
    }

    /// What must be true afterwards: nothing of the applications was on the wire, and both proxies know of nothing but
    /// mutual TLS between the two; the server's of at least so many connections.
    pub(crate) async fn was_secured(self, connections: usize) {
        let seen = self.tap.stop().unwrap();
        assert_eq!(seen.marker_hits, 0, "{:?}", seen.first_hit);
        assert!(seen.tls_records > 0 && seen.outside_tls == 0, "{seen:?}");
        // Who is not root has a short queue, in which a burst of megabytes has no place.
        assert!(!self.has_uids || (seen.missed, seen.unfollowed) == (0, 0), "not looked at: {seen:?}");
        eventually("the server's connections in its log", DEADLINE / 5, async || {
            (self.server.access_log().lines().len() >= connections).then_some(())
        })
        .await;
        for pod in [&self.client, &self.server] {
            for line in pod.access_log().lines() {
                let facts = ["connection.security", "tls.protocol.version", "src.identity", "dst.identity"];
                let expected = ["mutual_tls", "1.3", &self.client.spiffe_id(), &self.server.spiffe_id()];
                assert_eq!(facts.map(|fact| line.text(fact)), expected, "{}: {line:?}", pod.name());
            }
        }
        let edge = self.mesh.edge("shop/web", "shop/orders", |edge| edge.connections as usize >= connections).await;
        assert!(edge.secured && edge.plaintext_connections == 0, "{edge:?}");
    }

    fn give(&self, path: &Path) {
        if self.has_uids {
            chown(path, Some(Uid::from_raw(UID)), Some(Gid::from_raw(UID))).unwrap();
        }
    }
}

/// A program that runs. What it wrote is shown when the scenario fails.
pub(crate) struct Program {
    process: Process,
    said: PathBuf,
    complaints: PathBuf,
}

impl Program {
    /// Waits for its good end; what it wrote.
    pub(crate) async fn finish(mut self) -> Vec<u8> {
        let code = within("the end of a client", CLIENT, self.ended()).await;
        assert_eq!(code, 0, "{}", self.text());
        fs::read(&self.said).unwrap()
    }

    /// Asks it to end, and waits until it has: it may have children that would outlive it.
    pub(crate) async fn stop(mut self, signal: Signal) {
        self.process.signal(signal).unwrap();
        within("the end of a server", DEADLINE / 5, self.ended()).await;
    }

    /// Waits until it has written `text`.
    pub(crate) async fn says(&self, text: &str) {
        eventually(text, DEADLINE / 5, async || self.text().contains(text).then_some(())).await;
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    async fn ended(&mut self) -> i32 {
        while self.is_running() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.process.wait().unwrap()
    }

    fn text(&self) -> String {
        let text = [&self.said, &self.complaints].map(|path| fs::read(path).unwrap_or_default()).concat();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.said.display(), self.text());
        }
    }
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Megabytes are compared without being printed.
pub(crate) fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let (found, expected) = (found.len(), expected.len());
    assert!(found == expected && at.is_none(), "{what}: {found} bytes of {expected}, the first difference at {at:?}");
}
