//! What passes by the proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Privileges, RunAs};
use byrnie_redirect::{CaptureConfig, CaptureError, Exempt, PROXY_MARK, PROXY_UID};

use crate::rig::{APP, Rig, serve};

pub(crate) fn a_marked_connection_passes(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&CaptureConfig::new(Exempt::Mark(PROXY_MARK)));
    for target in rig.targets(443) {
        assert_eq!(rig.ask_marked(target, PROXY_MARK), "peer");
        assert_eq!(rig.ask_marked(target, PROXY_MARK + 1), format!("outbound {target}"));
        assert_eq!(rig.ask(target), format!("outbound {target}"));
    }
    Verdict::Passed
}

pub(crate) fn the_proxys_uid_passes_and_no_other(entered: &Entered) -> Verdict {
    if entered.privileges() == Privileges::SingleUid {
        return Verdict::NotRun("there is only one UID without root".into());
    }
    let rig = Rig::new(entered);
    rig.apply(&CaptureConfig::new(Exempt::Uid(PROXY_UID)));
    for target in rig.targets(443) {
        assert_eq!(rig.ask_as(RunAs::Proxy, target), "peer");
        assert_eq!(rig.ask_as(APP, target), format!("outbound {target}"));
        assert_eq!(rig.ask_as(RunAs::Operator, target), format!("outbound {target}"));
    }
    Verdict::Passed
}

pub(crate) fn loopback_and_the_pods_own_address_are_not_captured(entered: &Entered) -> Verdict {
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

pub(crate) fn the_proxys_own_inbound_ports_are_reached_directly(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    for (address, port) in rig.pod.addresses().iter().flat_map(|a| [(*a, 15010), (*a, 15021)]) {
        let at = SocketAddr::new(address, port);
        serve("proxy", rig.pod.listen(at).unwrap());
        assert_eq!(rig.call_in(at), "proxy direct");
    }
    Verdict::Passed
}

pub(crate) fn what_is_excluded_passes_and_the_rest_does_not(entered: &Entered) -> Verdict {
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

/// An application with a socket of IPv6 dials it that way; on the wire it is IPv4.
pub(crate) fn a_network_excluded_as_ipv4_inside_ipv6_passes(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let v4 = rig.peer.ipv4().unwrap();
    let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), 443);
    rig.apply(&rig.config());
    assert_eq!(rig.ask(mapped), format!("outbound {v4}:443"));
    let mut config = rig.config();
    config.exclude_outbound_cidrs = vec![format!("::ffff:{v4}/128").parse().unwrap()];
    rig.apply(&config);
    assert_eq!(rig.ask(mapped), "peer");
    assert_eq!(rig.ask(SocketAddr::new(v4.into(), 443)), "peer");
    let v6 = rig.targets(443)[1];
    assert_eq!(rig.ask(v6), format!("outbound {v6}"));
    Verdict::Passed
}

pub(crate) fn an_excluded_interface_is_not_captured_in_either_direction(entered: &Entered) -> Verdict {
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

pub(crate) fn an_excluded_uid_passes(entered: &Entered) -> Verdict {
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

pub(crate) fn without_rules_a_connection_is_not_redirected(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let at = SocketAddr::new(rig.pod.addresses()[0], 15003);
    let answer = rig.call_in(at);
    assert!(["inbound untracked", "inbound direct"].contains(&answer.as_str()), "{answer}");
    let state = rig.back_end(|it| it.show()).unwrap();
    assert!(!state.is_present() && !state.is_complete());
    assert!(matches!(rig.back_end(|it| it.verify(&rig.config())), Err(CaptureError::Differs { .. })));
    Verdict::Passed
}
