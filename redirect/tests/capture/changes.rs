//! How the rules come, change, are shown and go.

use std::io::{Read, Write};
use std::net::SocketAddr;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Privileges, RunAs};
use byrnie_redirect::{Applied, BackEnd, Removed};

use crate::rig::{APP, PATIENCE, Rig, chosen, serve_echo};

pub(crate) fn applying_twice_changes_nothing_and_keeps_open_connections(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    assert_eq!(rig.apply(&config), Applied::Changed);
    let before = rig.back_end(|it| it.show()).unwrap();
    let echo = SocketAddr::new(rig.pod.addresses()[0], 7);
    let mut open = rig.peer.connect(echo, PATIENCE).unwrap();
    let mut greeting = vec![0; format!("inbound {echo}").len()];
    open.read_exact(&mut greeting).unwrap();

    assert_eq!(rig.apply(&config), Applied::Unchanged);
    let after = rig.back_end(|it| it.show()).unwrap();
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
    let state = rig.back_end(|it| it.show()).unwrap();
    assert_eq!(state.config().as_ref(), Some(&other));
    let refused = rig.back_end(|it| it.verify(&rig.config())).unwrap_err();
    assert!(refused.to_string().contains("tcp dport 443 accept"), "{refused}");
    rig.back_end(|it| it.verify(&other)).unwrap();

    let mut wrong = rig.config();
    wrong.outbound_port = 0;
    assert!(rig.back_end(|it| it.apply(&wrong)).is_err());
    rig.back_end(|it| it.verify(&other)).unwrap();
    Verdict::Passed
}

pub(crate) fn removing_gives_the_network_back(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    let remove = || rig.back_end(|it| it.remove()).unwrap();
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
    if entered.privileges() == Privileges::Root {
        // To iptables the kernel gives no rule about a UID that the user namespace does not have.
        config.exclude_uids = vec![33];
    }
    config.exclude_interfaces = vec!["net1".into()];
    config.exclude_inbound_ports = vec![22];
    config.exclude_outbound_ports = vec![25];
    rig.apply(&config);
    rig.ask(rig.targets(443)[0]);
    let state = rig.back_end(|it| it.show()).unwrap();
    assert!(state.is_complete(), "{state}");
    assert_eq!(state.config(), Some(config));
    let text = state.to_string();
    let captured = text.lines().find(|line| line.contains("redirect to :15001 comment \"capture\""));
    assert!(captured.unwrap().contains("counter packets 1 bytes"), "{text}");
    assert!(text.contains("# complete"), "{text}");
    Verdict::Passed
}

pub(crate) fn a_process_without_net_admin_gets_a_clear_refusal(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let back_end = chosen().to_string();
    let output = rig.role(APP, &["apply", &back_end]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    // iptables-legacy is asked itself; of the others the kernel is, by netlink.
    let said = match chosen() {
        BackEnd::IptablesLegacy => "could not apply the capture rules",
        _ => "the kernel refused to apply the capture rules: EPERM",
    };
    assert!(text.contains(said) && text.contains("CAP_NET_ADMIN"), "{text}");
    let allowed = rig.role(RunAs::Operator, &["apply", &back_end]).output().unwrap();
    assert_eq!(String::from_utf8(allowed.stdout).unwrap().trim(), "Changed");
    Verdict::Passed
}

pub(crate) fn capture_may_be_called_inside_an_async_runtime(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let config = rig.config();
    let applied = rig.back_end(|it| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { it.apply(&config).unwrap() })
    });
    assert_eq!(applied, Applied::Changed);
    rig.back_end(|it| it.verify(&config)).unwrap();
    Verdict::Passed
}
