//! What lands at the proxy, and with which original destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Privileges, RunAs};
use byrnie_redirect::{
    CANARY_APPLICATION_PORT, CANARY_PROXY_PORT, CANARY_V4, CANARY_V6, CaptureConfig, Exempt, PROXY_MARK, PROXY_UID,
};

use crate::rig::{APP, Rig, serve};

pub(crate) fn an_applications_connection_lands_on_the_outbound_port_with_its_original_destination(
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

pub(crate) fn a_connection_to_the_pod_lands_on_the_inbound_port_with_its_original_destination(
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

pub(crate) fn ipv4_inside_an_ipv6_socket_has_its_original_destination_as_ipv4(entered: &Entered) -> Verdict {
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

pub(crate) fn a_connection_made_to_the_outbound_port_itself_is_told_apart(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&rig.config());
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        assert_eq!(rig.ask(SocketAddr::new(address, 15001)), "outbound direct");
    }
    // Redirected to where it was going anyway.
    let inbound = SocketAddr::new(rig.pod.addresses()[0], 15003);
    assert_eq!(rig.call_in(inbound), "inbound direct");
    Verdict::Passed
}

pub(crate) fn one_canary_answers_applications_and_the_other_the_proxy_too(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    rig.apply(&CaptureConfig::new(Exempt::Mark(PROXY_MARK)));
    for [application, proxy] in canaries() {
        assert_eq!(rig.ask_as(APP, application), format!("outbound {application}"));
        assert_eq!(rig.ask_as(APP, proxy), format!("outbound {proxy}"));
        assert_eq!(rig.ask_marked(proxy, PROXY_MARK), format!("outbound {proxy}"));
        assert!(rig.try_marked(application, PROXY_MARK).is_err());
    }
    if entered.privileges() == Privileges::Root {
        rig.apply(&CaptureConfig::new(Exempt::Uid(PROXY_UID)));
        for [application, proxy] in canaries() {
            assert_eq!(rig.ask_as(APP, application), format!("outbound {application}"));
            assert_eq!(rig.ask_as(RunAs::Proxy, proxy), format!("outbound {proxy}"));
            assert!(rig.ask_as(RunAs::Proxy, application).starts_with("error"));
        }
    }
    Verdict::Passed
}

pub(crate) fn canaries_answer_whatever_is_excluded(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.exclude_outbound_ports = vec![CANARY_APPLICATION_PORT, CANARY_PROXY_PORT];
    config.exclude_outbound_cidrs = vec!["192.0.2.0/24".parse().unwrap(), "100::/64".parse().unwrap()];
    config.exclude_interfaces = vec!["eth0".into()];
    rig.apply(&config);
    for canary in canaries().into_iter().flatten() {
        assert_eq!(rig.ask(canary), format!("outbound {canary}"));
    }
    Verdict::Passed
}

pub(crate) fn canaries() -> [[SocketAddr; 2]; 2] {
    [IpAddr::from(CANARY_V4), CANARY_V6.into()]
        .map(|address| [CANARY_APPLICATION_PORT, CANARY_PROXY_PORT].map(|port| SocketAddr::new(address, port)))
}
