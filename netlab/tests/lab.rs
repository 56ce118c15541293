//! The lab itself: what hosts reach, what programs may do, what the tap sees,
//! and that nothing is left.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use byrnie_netlab::harness::{self, Role, Scenario, Verdict};
use byrnie_netlab::{Entered, Host, Lab, Privileges, RunAs, TapOptions};

const PATIENCE: Duration = Duration::from_secs(5);

/// `CAP_NET_ADMIN`, bit 12 (capabilities(7)), as `/proc` writes it.
const NET_ADMIN: &str = "0000000000001000";

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        &[$(Scenario { name: stringify!($name), run: $name }),*]
    };
}

fn main() -> ExitCode {
    let scenarios = scenarios![
        pods_reach_each_other_over_ipv4_and_ipv6,
        an_external_host_sees_the_pods_own_address_and_is_not_on_the_bridge,
        two_labs_with_the_same_addresses_do_not_meet,
        an_application_has_no_capability_and_cannot_get_one,
        a_proxy_has_its_own_uid_or_net_admin_alone,
        an_operator_may_change_the_network,
        a_program_sees_the_hosts_file_it_was_given,
        a_program_that_does_not_exist_says_so,
        a_dropped_process_is_dead_with_its_children,
        the_tap_counts_every_frame_once_and_finds_the_marker,
        the_tap_writes_what_it_counts_as_pcap,
        the_tap_counts_only_the_chosen_addresses,
        sockets_stay_on_their_host_in_async_code,
        killing_the_outer_process_leaves_nothing,
        the_exit_code_and_signals_pass_through,
        the_enter_hint_enters,
        another_process_enters_through_the_entrance,
        a_program_in_a_private_directory_can_be_run_by_another_uid,
        a_new_pod_with_an_old_address_is_found_at_once,
        a_refusal_of_the_kernel_names_the_sysctl,
    ];
    let roles = [
        Role {
            name: "status",
            run: status,
        },
        Role {
            name: "linger",
            run: linger,
        },
        Role {
            name: "exit",
            run: exit_with,
        },
        Role {
            name: "through",
            run: through,
        },
        Role {
            name: "refused",
            run: refused,
        },
    ];
    harness::main(scenarios, &roles)
}

fn pods_reach_each_other_over_ipv4_and_ipv6(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "reach").unwrap();
    let (a, b) = two_pods(&lab);
    for address in b.addresses() {
        assert_eq!(
            ask(&a, serve(&b, *address, 80)),
            a.addresses_of_family(*address)
        );
    }
    for address in lab.node().addresses() {
        assert_eq!(
            ask(&a, serve(lab.node(), *address, 81)),
            a.addresses_of_family(*address)
        );
    }
    Verdict::Passed
}

fn an_external_host_sees_the_pods_own_address_and_is_not_on_the_bridge(
    entered: &Entered,
) -> Verdict {
    let lab = Lab::new(entered, "external").unwrap();
    let (a, _) = two_pods(&lab);
    let addresses: [IpAddr; 2] = [
        "198.51.100.10".parse().unwrap(),
        "2001:db8::10".parse().unwrap(),
    ];
    let outside = lab.external("partner", &addresses).unwrap();
    for address in addresses {
        assert_eq!(
            ask(&a, serve(&outside, address, 443)),
            a.addresses_of_family(address)
        );
    }
    let report = lab.tap(TapOptions::new("")).unwrap().stop().unwrap();
    let ports: Vec<_> = report
        .interfaces
        .iter()
        .map(|port| port.name.as_str())
        .collect();
    assert_eq!(ports, ["a", "b", "router"]);
    let clash = lab
        .external("clash", &[lab.networks().pod(9)[0]])
        .unwrap_err();
    assert!(clash.to_string().contains("external host clash"), "{clash}");
    Verdict::Passed
}

fn two_labs_with_the_same_addresses_do_not_meet(entered: &Entered) -> Verdict {
    let labs = [
        Lab::new(entered, "one").unwrap(),
        Lab::new(entered, "two").unwrap(),
    ];
    let pairs = labs.each_ref().map(two_pods);
    let address = pairs[0].1.addresses()[0];
    let listener = serve(&pairs[0].1, address, 80);
    let refused = pairs[1].0.connect(listener.0, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(
        ask(&pairs[0].0, listener),
        pairs[0].0.addresses_of_family(address)
    );
    Verdict::Passed
}

fn an_application_has_no_capability_and_cannot_get_one(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "application").unwrap();
    let status = status_as(&lab, RunAs::Application { uid: 1234 });
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status.field(set), "0000000000000000", "{set}");
    }
    assert_eq!(status.field("NoNewPrivs"), "1");
    let uid = match lab.privileges() {
        Privileges::Root => "1234",
        Privileges::SingleUid => "0",
    };
    assert_eq!(status.field("Uid").split_whitespace().next(), Some(uid));
    assert_eq!(status.field("unshare"), "EPERM");
    assert_eq!(status.field("environment"), "");
    Verdict::Passed
}

fn a_proxy_has_its_own_uid_or_net_admin_alone(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "proxy").unwrap();
    let status = status_as(&lab, RunAs::Proxy);
    let (uid, caps) = match lab.privileges() {
        Privileges::Root => ("1500", "0000000000000000"),
        Privileges::SingleUid => ("0", NET_ADMIN),
    };
    assert_eq!(status.field("Uid").split_whitespace().next(), Some(uid));
    let marking = status_as(&lab, RunAs::MarkingProxy);
    assert_eq!(marking.field("Uid"), status.field("Uid"));
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status.field(set), caps, "{set}");
        assert_eq!(marking.field(set), NET_ADMIN, "{set}");
    }
    assert_eq!(status.field("NoNewPrivs"), "1");
    Verdict::Passed
}

fn an_operator_may_change_the_network(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "operator").unwrap();
    let status = status_as(&lab, RunAs::Operator);
    let effective = u64::from_str_radix(status.field("CapEff"), 16).unwrap();
    assert_ne!(effective & (1 << 12), 0);
    Verdict::Passed
}

fn a_program_sees_the_hosts_file_it_was_given(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "files").unwrap();
    let (a, b) = two_pods(&lab);
    let before = std::fs::read_to_string("/etc/hosts").unwrap();
    let given = "10.77.0.12 orders.shop\n";
    let seen = a
        .command("/bin/cat")
        .arg("/etc/hosts")
        .hosts(given)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.stdout), given);
    let other = b.command("/bin/cat").arg("/etc/hosts").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&other.stdout), before);
    assert_eq!(std::fs::read_to_string("/etc/hosts").unwrap(), before);
    Verdict::Passed
}

fn a_program_that_does_not_exist_says_so(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "missing").unwrap();
    let output = lab.node().command("/no/such/program").output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/program"));
    Verdict::Passed
}

fn a_dropped_process_is_dead_with_its_children(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "dropped").unwrap();
    let mark = "3600.0001";
    let shell = format!("/bin/sleep {mark} & /bin/sleep {mark}");
    let process = lab
        .node()
        .command("/bin/sh")
        .args(["-c", &shell])
        .spawn()
        .unwrap();
    wait_until("both have started", || running(mark).len() >= 3);
    drop(process);
    wait_until("none is left", || running(mark).is_empty());
    Verdict::Passed
}

fn the_tap_counts_every_frame_once_and_finds_the_marker(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "tap").unwrap();
    let (a, b) = two_pods(&lab);
    let tap = lab.tap(TapOptions::new("the-marker")).unwrap();
    let c = lab.pod("late", &lab.networks().pod(13), &[]).unwrap();
    for address in b.addresses() {
        say(&a, &b, *address, &[b"xx the-mar", b"ker yy", b"the-marker"]);
        say(
            &c,
            &b,
            *address,
            &[b"\x16\x03\x01\x00\x02hi\x17\x03\x03\x00\x01!"],
        );
    }
    let report = tap.stop().unwrap();
    assert_eq!(report.marker_hits, 4);
    assert_eq!(report.tls_records, 4);
    assert_eq!(report.missed, 0);
    let ports: Vec<_> = report
        .interfaces
        .iter()
        .map(|port| port.name.as_str())
        .collect();
    assert_eq!(ports, ["a", "b", "late", "router"]);
    let sum: u64 = report.interfaces.iter().map(|port| port.packets).sum();
    assert_eq!(sum, report.packets);
    let bytes: u64 = report.interfaces.iter().map(|port| port.bytes).sum();
    assert_eq!(bytes, report.bytes);
    let hit = report.first_hit.unwrap();
    assert_eq!(hit.source.ip(), a.addresses()[0]);
    Verdict::Passed
}

fn the_tap_writes_what_it_counts_as_pcap(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "pcap").unwrap();
    let (a, b) = two_pods(&lab);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wire.pcap");
    let tap = lab.tap(TapOptions::new("").pcap(&path)).unwrap();
    say(&a, &b, b.addresses()[0], &[b"hello"]);
    let report = tap.stop().unwrap();
    let file = std::fs::read(&path).unwrap();
    let mut rest = &file[24..];
    let (mut packets, mut bytes) = (0, 0);
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap());
        rest = &rest[16 + usize::try_from(length).unwrap()..];
        packets += 1;
        bytes += u64::from(length);
    }
    assert_eq!((packets, bytes), (report.packets, report.bytes));
    assert!(packets > 0);
    Verdict::Passed
}

fn the_tap_counts_only_the_chosen_addresses(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "chosen").unwrap();
    let (a, b) = two_pods(&lab);
    let c = lab.pod("c", &lab.networks().pod(13), &[]).unwrap();
    let options = TapOptions::new("x").between([a.addresses()[0], b.addresses()[0]]);
    let tap = lab.tap(options).unwrap();
    say(&a, &b, b.addresses()[0], &[b"x"]);
    say(&c, &b, b.addresses()[0], &[b"x"]);
    say(&a, &b, b.addresses()[1], &[b"x"]);
    let report = tap.stop().unwrap();
    assert_eq!(report.marker_hits, 1);
    let busy = |port: &&byrnie_netlab::InterfaceCount| port.packets > 0;
    let names: Vec<_> = report
        .interfaces
        .iter()
        .filter(busy)
        .map(|p| p.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    Verdict::Passed
}

fn sockets_stay_on_their_host_in_async_code(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "async").unwrap();
    let (a, b) = two_pods(&lab);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = b.addresses()[1];
    let seen = runtime.block_on(async {
        let listener = b.listen(SocketAddr::new(address, 80)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (client, accepted) = tokio::join!(
            a.connect_async(SocketAddr::new(address, 80)),
            listener.accept()
        );
        client.unwrap();
        accepted.unwrap().1.ip()
    });
    assert_eq!(seen, a.addresses()[1]);
    Verdict::Passed
}

fn killing_the_outer_process_leaves_nothing(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "kill").unwrap();
    let word = "linger-for-the-kill-test";
    let mut outer = nested(&lab, &["linger", word]).spawn().unwrap();
    wait_until("its three processes are there", || running(word).len() >= 3);
    outer.child().kill().unwrap();
    wait_until("none of them is left", || running(word).is_empty());
    Verdict::Passed
}

fn the_exit_code_and_signals_pass_through(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "signals").unwrap();
    let code = nested(&lab, &["exit", "7"])
        .spawn()
        .unwrap()
        .wait()
        .unwrap();
    assert_eq!(code, 7);
    let word = "linger-for-the-signal-test";
    let mut outer = nested(&lab, &["linger", word])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    outer
        .child()
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    outer.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(outer.wait().unwrap(), 128 + 15);
    assert!(running(word).is_empty());
    Verdict::Passed
}

fn the_enter_hint_enters(entered: &Entered) -> Verdict {
    if !std::path::Path::new("/usr/bin/nsenter").exists() {
        return Verdict::NotRun("there is no nsenter here (util-linux)".into());
    }
    let lab = Lab::new(entered, "hint").unwrap();
    let word = "linger-for-the-hint-test";
    let mut inner = nested(&lab, &["linger", word])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = std::io::BufReader::new(inner.child().stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("nsenter") {
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut stdout, &mut line).unwrap(),
            0
        );
    }
    let (namespace, rest) = line.trim().split_once(' ').unwrap();
    let (_, hint) = rest.split_once(' ').unwrap();
    // The hint is for the outside of that lab, which this process is.
    let words: Vec<&str> = hint.split_whitespace().collect();
    let entered = Command::new(words[0])
        .args(&words[1..])
        .args(["/usr/bin/readlink", "/proc/self/ns/net"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&entered.stderr).into_owned();
    assert_eq!(
        String::from_utf8_lossy(&entered.stdout).trim(),
        namespace,
        "{said}"
    );
    Verdict::Passed
}

fn another_process_enters_through_the_entrance(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "entrance").unwrap();
    let word = "linger-for-the-entrance-test";
    let mut inner = nested(&lab, &["linger", word])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = std::io::BufReader::new(inner.child().stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let (namespace, entrance) = (line.split(' ').next(), line.split(' ').nth(1));
    let seen = Command::new(std::env::current_exe().unwrap())
        .args(["role", "through", entrance.unwrap()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&seen.stdout).into_owned();
    let said = String::from_utf8_lossy(&seen.stderr).into_owned();
    assert_eq!(text.lines().next(), namespace, "{said}");
    assert_eq!(text.lines().nth(1), Some("192.0.2.1 shown"), "{said}");

    let mut left = Command::new(std::env::current_exe().unwrap())
        .args(["role", "through", entrance.unwrap(), "3600.0002"])
        .spawn()
        .unwrap();
    wait_until("the command runs", || running("3600.0002").len() >= 2);
    inner.kill();
    wait_until("it is dead with the lab", || {
        running("3600.0002").is_empty()
    });
    left.wait().unwrap();
    Verdict::Passed
}

fn a_program_in_a_private_directory_can_be_run_by_another_uid(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "private").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("echo");
    std::fs::copy("/bin/echo", &program).unwrap();
    let output = lab.node().command(&program).arg("hello").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    Verdict::Passed
}

fn a_new_pod_with_an_old_address_is_found_at_once(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "again").unwrap();
    let (a, b) = two_pods(&lab);
    let addresses = b.addresses().to_vec();
    for address in &addresses {
        ask(&a, serve(&b, *address, 80));
    }
    lab.remove(&b).unwrap();
    assert!(lab.remove(&b).is_err());
    let new = lab.pod("new", &addresses, &[]).unwrap();
    for address in &addresses {
        assert_eq!(
            ask(&a, serve(&new, *address, 80)),
            a.addresses_of_family(*address)
        );
    }
    Verdict::Passed
}

fn a_refusal_of_the_kernel_names_the_sysctl(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "refusal").unwrap();
    let output = lab
        .node()
        .command(std::env::current_exe().unwrap())
        .args(["role", "refused"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("make a user and a PID namespace"), "{said}");
    assert!(
        said.contains("sysctl -w user.max_user_namespaces="),
        "{said}"
    );
    assert!(said.contains("with root"), "{said}");
    Verdict::Passed
}

// ---- Helpers

trait AddressOfFamily {
    fn addresses_of_family(&self, like: IpAddr) -> String;
}

impl AddressOfFamily for Host {
    /// Its address of the same family, as a server would write it.
    fn addresses_of_family(&self, like: IpAddr) -> String {
        let same = |address: &&IpAddr| address.is_ipv4() == like.is_ipv4();
        self.addresses().iter().find(same).unwrap().to_string()
    }
}

fn two_pods(lab: &Lab) -> (Host, Host) {
    let networks = lab.networks();
    let a = lab.pod("a", &networks.pod(11), &[]).unwrap();
    let b = lab.pod("b", &networks.pod(12), &[]).unwrap();
    (a, b)
}

/// A server that tells one client its address.
fn serve(host: &Host, address: IpAddr, port: u16) -> (SocketAddr, TcpListener) {
    let at = SocketAddr::new(address, port);
    (at, host.listen(at).unwrap())
}

fn ask(client: &Host, (at, listener): (SocketAddr, TcpListener)) -> String {
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
fn say(from: &Host, to: &Host, address: IpAddr, words: &[&[u8]]) {
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

struct Status(String);

impl Status {
    fn field(&self, name: &str) -> &str {
        let prefix = format!("{name}:");
        let line = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix(prefix.as_str()));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.0))
            .trim()
    }
}

fn status_as(lab: &Lab, run_as: RunAs) -> Status {
    let output = lab
        .node()
        .command(std::env::current_exe().unwrap())
        .args(["role", "status"])
        .user(run_as)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    Status(String::from_utf8(output.stdout).unwrap())
}

/// This program once more, making a lab inside the lab.
fn nested(lab: &Lab, role: &[&str]) -> byrnie_netlab::HostCommand {
    lab.node()
        .command(std::env::current_exe().unwrap())
        .arg("role")
        .args(role)
        .user(RunAs::Operator)
}

/// IDs of the processes that have `word` in their command line.
fn running(word: &str) -> Vec<String> {
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

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

// ---- Roles

fn status(_: &[String]) -> ExitCode {
    print!("{}", std::fs::read_to_string("/proc/self/status").unwrap());
    let namespace = nix::sched::CloneFlags::CLONE_NEWNET;
    match nix::sched::unshare(namespace) {
        Ok(()) => println!("unshare: allowed"),
        Err(errno) => println!("unshare: {errno:?}"),
    }
    let ours = std::env::vars().filter(|(name, _)| name.starts_with("BYRNIE_NETLAB"));
    println!(
        "environment: {}",
        ours.map(|(name, _)| name).collect::<String>()
    );
    ExitCode::SUCCESS
}

fn linger(_: &[String]) -> ExitCode {
    let entered = byrnie_netlab::enter().unwrap();
    let lab = Lab::new(&entered, "lingering").unwrap();
    let namespace = lab
        .node()
        .run(|| std::fs::read_link("/proc/thread-self/ns/net"))
        .unwrap();
    println!(
        "{} {} {}",
        namespace.unwrap().display(),
        lab.node().entrance().unwrap(),
        lab.node().enter_hint()
    );
    std::thread::sleep(Duration::from_secs(600));
    ExitCode::SUCCESS
}

fn exit_with(args: &[String]) -> ExitCode {
    match byrnie_netlab::enter() {
        Ok(_) => ExitCode::from(args[0].parse::<u8>().unwrap()),
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::from(3)
        }
    }
}

/// Enters a lab of another process; shows where it is, or sleeps there.
fn through(args: &[String]) -> ExitCode {
    let entrance: byrnie_netlab::Entrance = args[0].parse().unwrap();
    entrance
        .enter(&[("/etc/hosts".into(), "192.0.2.1 shown\n".into())])
        .unwrap();
    let mut command = match args.get(1) {
        Some(time) => {
            let mut sleep = Command::new("/bin/sleep");
            sleep.arg(time);
            sleep
        }
        None => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "readlink /proc/self/ns/net; cat /etc/hosts"]);
            shell
        }
    };
    command.status().unwrap();
    ExitCode::SUCCESS
}

/// Makes a user namespace of its own in which no further one may be made,
/// and tries to make one.
fn refused(_: &[String]) -> ExitCode {
    byrnie_netlab::enter().unwrap();
    std::fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["role", "exit", "0"])
        .env_remove("BYRNIE_NETLAB_STAGE")
        .status()
        .unwrap();
    ExitCode::from(u8::try_from(status.code().unwrap()).unwrap())
}
