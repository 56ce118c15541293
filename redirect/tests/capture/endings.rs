//! What the kernel sends for a socket that its program has closed already goes the way of the rest.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use byrnie_netlab::harness::Verdict;
use byrnie_netlab::{Entered, RunAs};
use socket2::SockRef;

use crate::rig::{APP, PATIENCE, Rig};
use crate::roles::POURED;

pub(crate) fn what_an_application_wrote_before_it_closed_arrives_whole(entered: &Entered) -> Verdict {
    let rig = Rig::new(entered);
    let mut config = rig.config();
    config.outbound_port = 16001;
    let listener = rig.pod.listen(SocketAddr::new(IpAddr::from(Ipv4Addr::LOCALHOST), 16001)).unwrap();
    rig.apply(&config);
    let target = rig.targets(443)[0];
    arrives_whole(&listener, || rig.role(APP, &["pour", &target.to_string()]));
    Verdict::Passed
}

/// Where it has a UID of its own, by the priority of its sockets.
pub(crate) fn what_the_proxy_wrote_before_it_closed_arrives_whole(entered: &Entered) -> Verdict {
    if entered.privileges() == byrnie_netlab::Privileges::SingleUid {
        return Verdict::NotRun("there is only one UID without root".into());
    }
    let rig = Rig::new(entered);
    let target = SocketAddr::new(rig.targets(444)[0].ip(), 444);
    let listener = rig.peer.listen(target).unwrap();
    rig.apply(&rig.config());
    arrives_whole(&listener, || rig.role(RunAs::Proxy, &["pour", &target.to_string(), "as-the-proxy"]));
    Verdict::Passed
}

fn arrives_whole(listener: &TcpListener, pour: impl Fn() -> byrnie_netlab::HostCommand) {
    // Small, so that most of it is still with the sender when that has gone.
    SockRef::from(listener).set_recv_buffer_size(4096).unwrap();
    let pouring = pour().output().unwrap();
    assert!(pouring.status.success(), "{}", String::from_utf8_lossy(&pouring.stderr));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map_err(|error| error.to_string());
    assert_eq!((bytes.len(), end), (POURED, Ok(POURED)));
}
