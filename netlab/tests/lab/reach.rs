//! Who reaches whom.

use std::net::{IpAddr, SocketAddr};

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, Lab, TapOptions};

use crate::support::{AddressOfFamily, PATIENCE, ask, serve, two_pods};

pub(crate) fn pods_reach_each_other_over_ipv4_and_ipv6(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "reach").unwrap();
    let (a, b) = two_pods(&lab);
    for address in b.addresses() {
        assert_eq!(ask(&a, serve(&b, *address, 80)), a.addresses_of_family(*address));
    }
    for address in lab.node().addresses() {
        assert_eq!(ask(&a, serve(lab.node(), *address, 81)), a.addresses_of_family(*address));
    }
    Verdict::Passed
}

pub(crate) fn an_external_host_sees_the_pods_own_address_and_is_not_on_the_bridge(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "external").unwrap();
    let (a, _) = two_pods(&lab);
    let addresses: [IpAddr; 2] = ["198.51.100.10".parse().unwrap(), "2001:db8::10".parse().unwrap()];
    let outside = lab.external("partner", &addresses).unwrap();
    for address in addresses {
        assert_eq!(ask(&a, serve(&outside, address, 443)), a.addresses_of_family(address));
    }
    let report = lab.tap(TapOptions::new("")).unwrap().stop().unwrap();
    let ports: Vec<_> = report.interfaces.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(ports, ["a", "b", "router"]);
    let clash = lab.external("clash", &[lab.networks().pod(9)[0]]).unwrap_err();
    assert!(clash.to_string().contains("external host clash"), "{clash}");
    Verdict::Passed
}

pub(crate) fn a_cable_between_two_pods_goes_past_the_bridge(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "cable").unwrap();
    let (a, b) = two_pods(&lab);
    lab.cable(&a, &b).unwrap();
    let tap = lab.tap(TapOptions::new("").between(a.addresses().iter().chain(b.addresses()).copied())).unwrap();
    for address in b.addresses() {
        assert_eq!(ask(&a, serve(&b, *address, 80)), a.addresses_of_family(*address));
    }
    assert_eq!(tap.stop().unwrap().packets, 0);
    for address in lab.node().addresses() {
        assert_eq!(ask(&a, serve(lab.node(), *address, 81)), a.addresses_of_family(*address));
    }
    Verdict::Passed
}

pub(crate) fn two_labs_with_the_same_addresses_do_not_meet(entered: &Entered) -> Verdict {
    let labs = [Lab::new(entered, "one").unwrap(), Lab::new(entered, "two").unwrap()];
    let pairs = labs.each_ref().map(two_pods);
    let address = pairs[0].1.addresses()[0];
    let listener = serve(&pairs[0].1, address, 80);
    let refused = pairs[1].0.connect(listener.0, PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(ask(&pairs[0].0, listener), pairs[0].0.addresses_of_family(address));
    Verdict::Passed
}

pub(crate) fn a_new_pod_with_an_old_address_is_found_at_once(entered: &Entered) -> Verdict {
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
        assert_eq!(ask(&a, serve(&new, *address, 80)), a.addresses_of_family(*address));
    }
    Verdict::Passed
}

pub(crate) fn sockets_stay_on_their_host_in_async_code(entered: &Entered) -> Verdict {
    let lab = Lab::new(entered, "async").unwrap();
    let (a, b) = two_pods(&lab);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = b.addresses()[1];
    let seen = runtime.block_on(async {
        let listener = b.listen(SocketAddr::new(address, 80)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (client, accepted) = tokio::join!(a.connect_async(SocketAddr::new(address, 80)), listener.accept());
        client.unwrap();
        accepted.unwrap().1.ip()
    });
    assert_eq!(seen, a.addresses()[1]);
    Verdict::Passed
}
