//! A pod with the listeners of a proxy, and a peer.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Host, Lab, Privileges, RunAs};
use byrnie_redirect::{
    Applied, BackEnd, Capture, CaptureConfig, Exempt, NotRedirected, PROXY_MARK, PROXY_UID, original_dst, set_mark,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// UID of the applications, where there are several.
pub(crate) const APPLICATION: u32 = 1000;

pub(crate) const APP: RunAs = RunAs::Application { uid: APPLICATION };

thread_local! {
    static CHOSEN: Cell<BackEnd> = const { Cell::new(BackEnd::NfTables) };
}

/// The back end of the scenario of this thread.
pub(crate) fn chosen() -> BackEnd {
    CHOSEN.get()
}

/// Runs a scenario with a back end, where this machine has its programs.
pub(crate) fn with(back_end: BackEnd, entered: &Entered, scenario: fn(&Entered) -> Verdict) -> Verdict {
    if let Err(missing) = back_end.find() {
        return Verdict::NotRun(format!("{missing} (Debian's package iptables)"));
    }
    CHOSEN.set(back_end);
    scenario(entered)
}

/// What is there of a back end. iptables-legacy writes a lock file, which only
/// real root can in the real `/run`: where nobody is, this thread gets one of
/// its own.
pub(crate) fn with_programs<T>(back_end: BackEnd, work: impl FnOnce(&dyn Capture) -> T) -> T {
    if back_end == BackEnd::IptablesLegacy && std::fs::File::options().append(true).open("/run/xtables.lock").is_err() {
        // Who may not, shall hear it from the program.
        let _ = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), Some("size=1m")));
    }
    work(&*back_end.find().unwrap())
}

pub(crate) struct Rig {
    pub(crate) pod: Host,
    pub(crate) peer: Host,
    pub(crate) exempt: Exempt,
    _lab: Lab,
}

impl Rig {
    pub(crate) fn new(entered: &Entered) -> Self {
        let lab = Lab::new(entered, "capture").unwrap();
        let pod = lab.pod("pod", &lab.networks().pod(11), &[]).unwrap();
        let peer = lab.pod("peer", &lab.networks().pod(12), &[]).unwrap();
        let exempt = match entered.privileges() {
            Privileges::Root => Exempt::Uid(PROXY_UID),
            Privileges::SingleUid => Exempt::Mark(PROXY_MARK),
        };
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in loopback {
            serve("outbound", pod.listen(SocketAddr::new(address, 15001)).unwrap());
        }
        for address in pod.addresses() {
            serve("inbound", pod.listen(SocketAddr::new(*address, 15003)).unwrap());
        }
        let rig = Self { pod, peer, exempt, _lab: lab };
        rig.serve_on_peer(443);
        rig
    }

    pub(crate) fn config(&self) -> CaptureConfig {
        CaptureConfig::new(self.exempt)
    }

    pub(crate) fn apply(&self, config: &CaptureConfig) -> Applied {
        self.back_end(|it| it.apply(config)).unwrap()
    }

    /// With the scenario's back end, in the pod.
    pub(crate) fn back_end<T: Send>(&self, work: impl FnOnce(&dyn Capture) -> T + Send) -> T {
        let back_end = chosen();
        self.pod.run(|| with_programs(back_end, work)).unwrap()
    }

    /// Both addresses of the peer.
    pub(crate) fn targets(&self, port: u16) -> Vec<SocketAddr> {
        let addresses = self.peer.addresses().iter();
        addresses.map(|address| SocketAddr::new(*address, port)).collect()
    }

    pub(crate) fn serve_on_peer(&self, port: u16) {
        for at in self.targets(port) {
            let listener = self.peer.listen(at).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    stream.unwrap().write_all(b"peer").unwrap();
                }
            });
        }
    }

    /// What answers a connection from the pod.
    pub(crate) fn ask(&self, to: SocketAddr) -> String {
        answer(self.pod.connect(to, PATIENCE).unwrap()).unwrap()
    }

    pub(crate) fn ask_marked(&self, to: SocketAddr, mark: u32) -> String {
        self.try_marked(to, mark).unwrap()
    }

    pub(crate) fn try_marked(&self, to: SocketAddr, mark: u32) -> std::io::Result<String> {
        let socket = self.pod.socket(to)?;
        self.pod.run(|| set_mark(&socket, mark))??;
        socket.connect_timeout(&to.into(), Duration::from_secs(1))?;
        answer(socket.into())
    }

    /// What answers a connection of a program with other privileges.
    pub(crate) fn ask_as(&self, run_as: RunAs, to: SocketAddr) -> String {
        let output = self.role(run_as, &["ask", &to.to_string()]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What answers a connection from the peer to the pod.
    pub(crate) fn call_in(&self, at: SocketAddr) -> String {
        answer(self.peer.connect(at, PATIENCE).unwrap()).unwrap()
    }

    pub(crate) fn role(&self, run_as: RunAs, role: &[&str]) -> byrnie_netlab::HostCommand {
        self.pod.command(std::env::current_exe().unwrap()).arg("role").args(role).user(run_as)
    }
}

/// Answers every connection with its name and the original destination, then
/// with whatever comes in.
pub(crate) fn serve(name: &'static str, listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let seen = match original_dst(&stream) {
                Ok(original) => original.to_string(),
                Err(NotRedirected::Direct(_)) => "direct".into(),
                Err(NotRedirected::Untracked(_)) => "untracked".into(),
                Err(other) => other.to_string(),
            };
            // A client may be gone already.
            if write!(stream, "{name} {seen}").is_ok() {
                std::thread::spawn(move || echo(stream));
            }
        }
    });
}

pub(crate) fn serve_echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || echo(stream.unwrap()));
        }
    });
}

pub(crate) fn echo(stream: TcpStream) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream;
    // A client that goes away ends it too.
    let _ = std::io::copy(&mut reader, &mut writer);
}

pub(crate) fn answer(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
