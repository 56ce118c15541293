//! How the rules come, change, are shown and go.

use std::io::{Read, Write};
use std::net::SocketAddr;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, RunAs};
use byrnie_redirect::{Applied, Capture, NfTables, Removed};

use crate::rig::{APP, PATIENCE, Rig, serve_echo};

pub(crate) fn applying_twice_changes_nothing_and_keeps_open_connections(entered: &Entered) -> Verdict {
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

pub(crate) fn a_new_configuration_replaces_the_old_one(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    let mut other = rig.config();
    other.exclude_outbound_ports = vec![443];
    assert_eq!(rig.apply(&other), Applied::Changed);
    let state = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert_eq!(state.config().as_ref(), Some(&other));
    let refused = rig.pod.run(|| NfTables.verify(&rig.config())).unwrap().unwrap_err();
    assert!(refused.to_string().contains("tcp dport 443 accept"), "{refused}");
    rig.pod.run(|| NfTables.verify(&other)).unwrap().unwrap();

    let mut wrong = rig.config();
    wrong.outbound_port = 0;
    assert!(rig.pod.run(|| NfTables.apply(&wrong)).unwrap().is_err());
    rig.pod.run(|| NfTables.verify(&other)).unwrap().unwrap();
    Verdict::Passed
}

pub(crate) fn removing_gives_the_network_back(entered: &Entered) -> Verdict {
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

pub(crate) fn applying_to_a_running_namespace_cuts_connections_from_before(entered: &Entered) -> Verdict {
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
    let answered = before.write_all(b"x").and_then(|()| before.read_exact(&mut [0]));
    assert!(answered.is_err(), "a connection from before went on");
    assert_eq!(rig.ask(echo), format!("outbound {echo}"));
    Verdict::Passed
}

pub(crate) fn what_the_kernel_has_is_shown_with_its_counters(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.exclude_outbound_cidrs = vec!["10.9.0.0/16".parse().unwrap(), "fd99::/32".parse().unwrap()];
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
    let captured = text.lines().find(|line| line.contains("redirect to :15001 comment \"capture\""));
    assert!(captured.unwrap().contains("counter packets 1 bytes"), "{text}");
    assert!(text.contains("# complete"), "{text}");
    Verdict::Passed
}

pub(crate) fn a_missing_rule_and_a_foreign_one_are_noticed(entered: &Entered) -> Verdict {
    use nlink::netlink::nftables::{Family, Rule};
    use nlink::netlink::{Connection, Nftables};
    let rig = Rig::new(entered);
    let config = rig.config();
    rig.apply(&config);
    let tamper = || async {
        let connection = Connection::<Nftables>::new().unwrap();
        let rules = connection.list_rules("byrnie", Family::Inet).await.unwrap();
        let capture = rules.iter().rfind(|rule| rule.chain == "output").unwrap();
        connection.del_rule("byrnie", "output", Family::Inet, capture.handle).await.unwrap();
        let foreign = Rule::new("byrnie", "output").family(Family::Inet);
        connection.add_rule(foreign.match_tcp_dport(80).drop()).await.unwrap();
    };
    rig.pod
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(tamper());
        })
        .unwrap();
    let state = rig.pod.run(|| NfTables.show()).unwrap().unwrap();
    assert!(state.is_present() && !state.is_complete(), "{state}");
    assert!(state.to_string().contains("NOT COMPLETE"));
    let error = rig.pod.run(|| NfTables.verify(&config)).unwrap().unwrap_err().to_string();
    assert!(error.contains("missing in chain output: meta l4proto tcp redirect"), "{error}");
    assert!(error.contains("tcp dport 80"), "{error}");
    assert_eq!(rig.apply(&config), Applied::Changed);
    rig.pod.run(|| NfTables.verify(&config)).unwrap().unwrap();
    Verdict::Passed
}

pub(crate) fn a_process_without_net_admin_gets_a_clear_refusal(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let output = rig.role(APP, &["apply"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the kernel refused to apply the capture rules"), "{text}");
    assert!(text.contains("EPERM") && text.contains("CAP_NET_ADMIN"), "{text}");
    let allowed = rig.role(RunAs::Operator, &["apply"]).output().unwrap();
    assert_eq!(String::from_utf8(allowed.stdout).unwrap().trim(), "Changed");
    Verdict::Passed
}

pub(crate) fn capture_may_be_called_inside_an_async_runtime(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    let applied = rig.pod.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { NfTables.apply(&config).unwrap() })
    });
    assert_eq!(applied.unwrap(), Applied::Changed);
    rig.pod.run(|| NfTables.verify(&config)).unwrap().unwrap();
    Verdict::Passed
}
