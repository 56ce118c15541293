//! The rules at work in a real kernel: who is captured, who is not, and what
//! the kernel says when it refuses.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use byrnie_netlab::harness::{self, Role, Scenario, Verdict};
use byrnie_netlab::{Entered, Host, Lab, Privileges, RunAs};
use byrnie_redirect::{
    Applied, CANARY_APPLICATION_PORT, CANARY_PROXY_PORT, CANARY_V4, CANARY_V6, Capture,
    CaptureConfig, CaptureError, Exempt, NfTables, NotRedirected, PROXY_MARK, PROXY_UID, Removed,
    original_dst, set_mark,
};

const PATIENCE: Duration = Duration::from_secs(3);

/// UID of the applications, where there are several.
const APPLICATION: u32 = 1000;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        &[$(Scenario { name: stringify!($name), run: $name }),*]
    };
}

fn main() -> ExitCode {
    let scenarios = scenarios![
        an_applications_connection_lands_on_the_outbound_port_with_its_original_destination,
        a_connection_to_the_pod_lands_on_the_inbound_port_with_its_original_destination,
        ipv4_inside_an_ipv6_socket_has_its_original_destination_as_ipv4,
        a_marked_connection_passes,
        the_proxys_uid_passes_and_no_other,
        loopback_and_the_pods_own_address_are_not_captured,
        the_proxys_own_inbound_ports_are_reached_directly,
        what_is_excluded_passes_and_the_rest_does_not,
        an_excluded_interface_is_not_captured_in_either_direction,
        an_excluded_uid_passes,
        one_canary_answers_applications_and_the_other_the_proxy_too,
        canaries_answer_whatever_is_excluded,
        a_connection_made_to_the_outbound_port_itself_is_told_apart,
        without_rules_a_connection_is_not_redirected,
        applying_twice_changes_nothing_and_keeps_open_connections,
        a_new_configuration_replaces_the_old_one,
        removing_gives_the_network_back,
        applying_to_a_running_namespace_cuts_connections_from_before,
        what_the_kernel_has_is_shown_with_its_counters,
        a_missing_rule_and_a_foreign_one_are_noticed,
        a_process_without_net_admin_gets_a_clear_refusal,
        capture_may_be_called_inside_an_async_runtime,
    ];
    let roles = [
        Role {
            name: "ask",
            run: ask_role,
        },
        Role {
            name: "apply",
            run: apply_role,
        },
    ];
    harness::main(scenarios, &roles)
}

fn an_applications_connection_lands_on_the_outbound_port_with_its_original_destination(
    entered: &Entered,
) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    for target in rig.targets(443) {
        assert_eq!(rig.ask(target), format!("outbound {target}"));
        assert_eq!(rig.ask_as(APP, target), format!("outbound {target}"));
    }
    // Beyond the router too, where nothing needs to exist.
    let nowhere = "203.0.113.9:25".parse().unwrap();
    assert_eq!(rig.ask(nowhere), "outbound 203.0.113.9:25");
    Verdict::Passed
}

fn a_connection_to_the_pod_lands_on_the_inbound_port_with_its_original_destination(
    entered: &Entered,
) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    for address in rig.pod.addresses() {
        let at = SocketAddr::new(*address, 8080);
        assert_eq!(rig.call_in(at), format!("inbound {at}"));
    }
    Verdict::Passed
}

fn ipv4_inside_an_ipv6_socket_has_its_original_destination_as_ipv4(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.inbound_port = 16003;
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, config.inbound_port));
    serve("dual", rig.pod.listen(at).unwrap());
    rig.apply(&config);
    for address in rig.pod.addresses() {
        let at = SocketAddr::new(*address, 8080);
        assert_eq!(rig.call_in(at), format!("dual {at}"));
    }
    Verdict::Passed
}

fn a_marked_connection_passes(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&CaptureConfig::new(Exempt::Mark(PROXY_MARK)));
    for target in rig.targets(443) {
        assert_eq!(rig.ask_marked(target, PROXY_MARK), "peer");
        assert_eq!(
            rig.ask_marked(target, PROXY_MARK + 1),
            format!("outbound {target}")
        );
        assert_eq!(rig.ask(target), format!("outbound {target}"));
    }
    Verdict::Passed
}

fn the_proxys_uid_passes_and_no_other(entered: &Entered) -> Verdict {
    if entered.privileges() == Privileges::SingleUid {
        return Verdict::NotRun("there is only one UID without root".into());
    }
    let rig = Rig::new(entered);
    rig.apply(&CaptureConfig::new(Exempt::Uid(PROXY_UID)));
    for target in rig.targets(443) {
        assert_eq!(rig.ask_as(RunAs::Proxy, target), "peer");
        assert_eq!(rig.ask_as(APP, target), format!("outbound {target}"));
        assert_eq!(
            rig.ask_as(RunAs::Operator, target),
            format!("outbound {target}")
        );
    }
    Verdict::Passed
}

fn loopback_and_the_pods_own_address_are_not_captured(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    let own = rig.pod.addresses().to_vec();
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for address in own.into_iter().chain(loopback) {
        let at = SocketAddr::new(address, 9999);
        serve("itself", rig.pod.listen(at).unwrap());
        assert_eq!(rig.ask(at), "itself direct");
    }
    Verdict::Passed
}

fn the_proxys_own_inbound_ports_are_reached_directly(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    for (address, port) in rig
        .pod
        .addresses()
        .iter()
        .flat_map(|a| [(*a, 15010), (*a, 15021)])
    {
        let at = SocketAddr::new(address, port);
        serve("proxy", rig.pod.listen(at).unwrap());
        assert_eq!(rig.call_in(at), "proxy direct");
    }
    Verdict::Passed
}

fn what_is_excluded_passes_and_the_rest_does_not(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    let (v4, v6) = (rig.peer.ipv4().unwrap(), rig.peer.ipv6().unwrap());
    config.exclude_outbound_ports = vec![443];
    config.exclude_outbound_cidrs = vec![format!("{v4}/32").parse().unwrap()];
    config.exclude_inbound_ports = vec![22];
    rig.apply(&config);
    rig.serve_on_peer(444);
    assert_eq!(rig.ask(SocketAddr::new(v6.into(), 443)), "peer");
    assert_eq!(rig.ask(SocketAddr::new(v4.into(), 444)), "peer");
    let other = SocketAddr::new(v6.into(), 444);
    assert_eq!(rig.ask(other), format!("outbound {other}"));

    let at = SocketAddr::new(rig.pod.addresses()[0], 22);
    serve("sshd", rig.pod.listen(at).unwrap());
    assert_eq!(rig.call_in(at), "sshd direct");

    config.exclude_outbound_ports.clear();
    config.exclude_outbound_cidrs = vec!["fd77::/16".parse().unwrap()];
    rig.apply(&config);
    assert_eq!(rig.ask(other), "peer");
    let v4 = SocketAddr::new(v4.into(), 444);
    assert_eq!(rig.ask(v4), format!("outbound {v4}"));
    Verdict::Passed
}

fn an_excluded_interface_is_not_captured_in_either_direction(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.exclude_interfaces = vec!["eth0".into()];
    rig.apply(&config);
    let at = SocketAddr::new(rig.pod.addresses()[1], 8080);
    serve("itself", rig.pod.listen(at).unwrap());
    assert_eq!(rig.call_in(at), "itself direct");
    for target in rig.targets(443) {
        assert_eq!(rig.ask(target), "peer");
    }
    Verdict::Passed
}

fn an_excluded_uid_passes(entered: &Entered) -> Verdict {
    if entered.privileges() == Privileges::SingleUid {
        return Verdict::NotRun("there is only one UID without root".into());
    }
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.exclude_uids = vec![33];
    rig.apply(&config);
    let target = rig.targets(443)[0];
    assert_eq!(rig.ask_as(RunAs::Application { uid: 33 }, target), "peer");
    assert_eq!(rig.ask_as(APP, target), format!("outbound {target}"));
    Verdict::Passed
}

fn one_canary_answers_applications_and_the_other_the_proxy_too(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&CaptureConfig::new(Exempt::Mark(PROXY_MARK)));
    for [application, proxy] in canaries() {
        assert_eq!(
            rig.ask_as(APP, application),
            format!("outbound {application}")
        );
        assert_eq!(rig.ask_as(APP, proxy), format!("outbound {proxy}"));
        assert_eq!(
            rig.ask_marked(proxy, PROXY_MARK),
            format!("outbound {proxy}")
        );
        assert!(rig.try_marked(application, PROXY_MARK).is_err());
    }
    if entered.privileges() == Privileges::Root {
        rig.apply(&CaptureConfig::new(Exempt::Uid(PROXY_UID)));
        for [application, proxy] in canaries() {
            assert_eq!(
                rig.ask_as(APP, application),
                format!("outbound {application}")
            );
            assert_eq!(rig.ask_as(RunAs::Proxy, proxy), format!("outbound {proxy}"));
            assert!(rig.ask_as(RunAs::Proxy, application).starts_with("error"));
        }
    }
    Verdict::Passed
}

fn canaries_answer_whatever_is_excluded(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.exclude_outbound_ports = vec![CANARY_APPLICATION_PORT, CANARY_PROXY_PORT];
    config.exclude_outbound_cidrs =
        vec!["192.0.2.0/24".parse().unwrap(), "100::/64".parse().unwrap()];
    config.exclude_interfaces = vec!["eth0".into()];
    rig.apply(&config);
    for canary in canaries().into_iter().flatten() {
        assert_eq!(rig.ask(canary), format!("outbound {canary}"));
    }
    Verdict::Passed
}

fn a_connection_made_to_the_outbound_port_itself_is_told_apart(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    for address in [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        Ipv6Addr::LOCALHOST.into(),
    ] {
        assert_eq!(rig.ask(SocketAddr::new(address, 15001)), "outbound direct");
    }
    // Redirected to where it was going anyway.
    let inbound = SocketAddr::new(rig.pod.addresses()[0], 15003);
    assert_eq!(rig.call_in(inbound), "inbound direct");
    Verdict::Passed
}

fn without_rules_a_connection_is_not_redirected(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let at = SocketAddr::new(rig.pod.addresses()[0], 15003);
    let answer = rig.call_in(at);
    assert!(
        ["inbound untracked", "inbound direct"].contains(&answer.as_str()),
        "{answer}"
    );
    let state = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert!(!state.is_present() && !state.is_complete());
    assert!(matches!(
        rig.pod.run(|| NfTables.verify(&rig.config())).unwrap(),
        Err(CaptureError::Differs { .. })
    ));
    Verdict::Passed
}

fn applying_twice_changes_nothing_and_keeps_open_connections(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    assert_eq!(rig.apply(&config), Applied::Changed);
    let before = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    let echo = SocketAddr::new(rig.pod.addresses()[0], 7);
    let mut open = rig.peer.connect(echo, PATIENCE).unwrap();
    let mut greeting = vec![0; format!("inbound {echo}").len()];
    open.read_exact(&mut greeting).unwrap();

    assert_eq!(rig.apply(&config), Applied::Unchanged);
    let after = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert_eq!(after.config(), before.config());
    assert_eq!(after.rules().len(), before.rules().len());
    open.write_all(b"x").unwrap();
    open.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "x");
    Verdict::Passed
}

fn a_new_configuration_replaces_the_old_one(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    let mut other = rig.config();
    other.exclude_outbound_ports = vec![443];
    assert_eq!(rig.apply(&other), Applied::Changed);
    let state = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert_eq!(state.config().as_ref(), Some(&other));
    let refused = rig
        .pod
        .run(|| NfTables.verify(&rig.config()))
        .unwrap()
        .unwrap_err();
    assert!(
        refused.to_string().contains("tcp dport 443 accept"),
        "{refused}"
    );
    rig.pod.run(|| NfTables.verify(&other)).unwrap().unwrap();

    let mut wrong = rig.config();
    wrong.outbound_port = 0;
    assert!(rig.pod.run(|| NfTables.apply(&wrong)).unwrap().is_err());
    rig.pod.run(|| NfTables.verify(&other)).unwrap().unwrap();
    Verdict::Passed
}

fn removing_gives_the_network_back(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    let remove = || rig.pod.run(|| NfTables.remove()).unwrap().unwrap();
    assert_eq!(remove(), Removed::Removed);
    for target in rig.targets(443) {
        assert_eq!(rig.ask(target), "peer");
    }
    assert_eq!(remove(), Removed::NothingThere);
    Verdict::Passed
}

fn applying_to_a_running_namespace_cuts_connections_from_before(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    // Rules that leave eth0 alone: connection tracking runs, as it does in a
    // namespace that has rules of someone else.
    let mut open_door = rig.config();
    open_door.exclude_interfaces = vec!["eth0".into()];
    rig.apply(&open_door);
    let echo = rig.targets(7)[0];
    serve_echo(rig.peer.listen(echo).unwrap());
    let mut before = rig.pod.connect(echo, PATIENCE).unwrap();
    before.write_all(b"x").unwrap();
    before.read_exact(&mut [0]).unwrap();

    rig.apply(&rig.config());
    // Its next packet is the first of an unknown connection, so the rules
    // decide it, and the proxy's end has never heard of it.
    before.set_read_timeout(Some(PATIENCE)).unwrap();
    let answered = before
        .write_all(b"x")
        .and_then(|()| before.read_exact(&mut [0]));
    assert!(answered.is_err(), "a connection from before went on");
    assert_eq!(rig.ask(echo), format!("outbound {echo}"));
    Verdict::Passed
}

fn what_the_kernel_has_is_shown_with_its_counters(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.exclude_outbound_cidrs =
        vec!["10.9.0.0/16".parse().unwrap(), "fd99::/32".parse().unwrap()];
    config.exclude_uids = vec![33];
    config.exclude_interfaces = vec!["net1".into()];
    config.exclude_inbound_ports = vec![22];
    config.exclude_outbound_ports = vec![25];
    rig.apply(&config);
    rig.ask(rig.targets(443)[0]);
    let state = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert!(state.is_complete(), "{state}");
    assert_eq!(state.config(), Some(config));
    let text = state.to_string();
    let captured = text
        .lines()
        .find(|line| line.contains("redirect to :15001 comment \"capture\""));
    assert!(
        captured.unwrap().contains("counter packets 1 bytes"),
        "{text}"
    );
    assert!(text.contains("# complete"), "{text}");
    Verdict::Passed
}

fn a_missing_rule_and_a_foreign_one_are_noticed(entered: &Entered) -> Verdict {
    use nlink::netlink::nftables::{Family, Rule};
    use nlink::netlink::{Connection, Nftables};
    let rig = Rig::new(entered);
    let config = rig.config();
    rig.apply(&config);
    let tamper = || async {
        let connection = Connection::<Nftables>::new().unwrap();
        let rules = connection.list_rules("byrnie", Family::Inet).await.unwrap();
        let capture = rules.iter().rfind(|rule| rule.chain == "output").unwrap();
        connection
            .del_rule("byrnie", "output", Family::Inet, capture.handle)
            .await
            .unwrap();
        let foreign = Rule::new("byrnie", "output").family(Family::Inet);
        connection
            .add_rule(foreign.match_tcp_dport(80).drop())
            .await
            .unwrap();
    };
    rig.pod
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(tamper());
        })
        .unwrap();
    let state = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert!(state.is_present() && !state.is_complete(), "{state}");
    assert!(state.to_string().contains("NOT COMPLETE"));
    let error = rig
        .pod
        .run(|| NfTables.verify(&config))
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("missing in chain output: meta l4proto tcp redirect"),
        "{error}"
    );
    assert!(error.contains("tcp dport 80"), "{error}");
    assert_eq!(rig.apply(&config), Applied::Changed);
    rig.pod.run(|| NfTables.verify(&config)).unwrap().unwrap();
    Verdict::Passed
}

fn a_process_without_net_admin_gets_a_clear_refusal(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let output = rig.role(APP, &["apply"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("the kernel refused to apply the capture rules"),
        "{text}"
    );
    assert!(
        text.contains("EPERM") && text.contains("CAP_NET_ADMIN"),
        "{text}"
    );
    let allowed = rig.role(RunAs::Operator, &["apply"]).output().unwrap();
    assert_eq!(String::from_utf8(allowed.stdout).unwrap().trim(), "Changed");
    Verdict::Passed
}

fn capture_may_be_called_inside_an_async_runtime(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    let applied = rig.pod.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async { NfTables.apply(&config).unwrap() })
    });
    assert_eq!(applied.unwrap(), Applied::Changed);
    rig.pod.run(|| NfTables.verify(&config)).unwrap().unwrap();
    Verdict::Passed
}

// ---- The rig: a pod with a proxy's listeners, and a peer

const APP: RunAs = RunAs::Application { uid: APPLICATION };

struct Rig {
    pod: Host,
    peer: Host,
    exempt: Exempt,
    _lab: Lab,
}

impl Rig {
    fn new(entered: &Entered) -> Self {
        let lab = Lab::new(entered, "capture").unwrap();
        let pod = lab.pod("pod", &lab.networks().pod(11), &[]).unwrap();
        let peer = lab.pod("peer", &lab.networks().pod(12), &[]).unwrap();
        let exempt = match entered.privileges() {
            Privileges::Root => Exempt::Uid(PROXY_UID),
            Privileges::SingleUid => Exempt::Mark(PROXY_MARK),
        };
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in loopback {
            serve(
                "outbound",
                pod.listen(SocketAddr::new(address, 15001)).unwrap(),
            );
        }
        for address in pod.addresses() {
            serve(
                "inbound",
                pod.listen(SocketAddr::new(*address, 15003)).unwrap(),
            );
        }
        let rig = Self {
            pod,
            peer,
            exempt,
            _lab: lab,
        };
        rig.serve_on_peer(443);
        rig
    }

    fn config(&self) -> CaptureConfig {
        CaptureConfig::new(self.exempt)
    }

    fn apply(&self, config: &CaptureConfig) -> Applied {
        self.pod.run(|| NfTables.apply(config)).unwrap().unwrap()
    }

    /// Both addresses of the peer.
    fn targets(&self, port: u16) -> Vec<SocketAddr> {
        let addresses = self.peer.addresses().iter();
        addresses
            .map(|address| SocketAddr::new(*address, port))
            .collect()
    }

    fn serve_on_peer(&self, port: u16) {
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
    fn ask(&self, to: SocketAddr) -> String {
        answer(self.pod.connect(to, PATIENCE).unwrap()).unwrap()
    }

    fn ask_marked(&self, to: SocketAddr, mark: u32) -> String {
        self.try_marked(to, mark).unwrap()
    }

    fn try_marked(&self, to: SocketAddr, mark: u32) -> std::io::Result<String> {
        let socket = self.pod.socket(to)?;
        self.pod.run(|| set_mark(&socket, mark))??;
        socket.connect_timeout(&to.into(), Duration::from_secs(1))?;
        answer(socket.into())
    }

    /// What answers a connection of a program with other privileges.
    fn ask_as(&self, run_as: RunAs, to: SocketAddr) -> String {
        let output = self
            .role(run_as, &["ask", &to.to_string()])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// What answers a connection from the peer to the pod.
    fn call_in(&self, at: SocketAddr) -> String {
        answer(self.peer.connect(at, PATIENCE).unwrap()).unwrap()
    }

    fn role(&self, run_as: RunAs, role: &[&str]) -> byrnie_netlab::HostCommand {
        self.pod
            .command(std::env::current_exe().unwrap())
            .arg("role")
            .args(role)
            .user(run_as)
    }
}

fn canaries() -> [[SocketAddr; 2]; 2] {
    [IpAddr::from(CANARY_V4), CANARY_V6.into()].map(|address| {
        [CANARY_APPLICATION_PORT, CANARY_PROXY_PORT].map(|port| SocketAddr::new(address, port))
    })
}

/// Answers every connection with its name and the original destination, then
/// with whatever comes in.
fn serve(name: &'static str, listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let seen = match original_dst(&stream) {
                Ok(original) => original.to_string(),
                Err(NotRedirected::Direct(_)) => "direct".into(),
                Err(NotRedirected::Untracked(_)) => "untracked".into(),
                Err(other) => other.to_string(),
            };
            write!(stream, "{name} {seen}").unwrap();
            std::thread::spawn(move || echo(stream));
        }
    });
}

fn serve_echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || echo(stream.unwrap()));
        }
    });
}

fn echo(stream: TcpStream) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream;
    // A client that goes away ends it too.
    let _ = std::io::copy(&mut reader, &mut writer);
}

fn answer(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

// ---- Roles

fn ask_role(args: &[String]) -> ExitCode {
    let to = args[0].parse().unwrap();
    match TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(answer) {
        Ok(text) => println!("{text}"),
        Err(error) => println!("error: {error}"),
    }
    ExitCode::SUCCESS
}

fn apply_role(_: &[String]) -> ExitCode {
    match NfTables.apply(&CaptureConfig::new(Exempt::Mark(PROXY_MARK))) {
        Ok(applied) => println!("{applied:?}"),
        Err(error) => println!("{error}"),
    }
    ExitCode::SUCCESS
}
