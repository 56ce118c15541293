//! Links, addresses and routes, over netlink. Every function acts on the
//! network namespace of the calling thread or of the given one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::{Connection, Route};
use nlink::{Ipv4Address, Ipv4Route, Ipv6Address, Ipv6Route};

use crate::NetNs;
use crate::namespace::runtime;

/// Name of the interface that a host has towards the others.
pub(crate) const INSIDE: &str = "eth0";

/// Name of the pods' bridge in the node's namespace.
pub(crate) const BRIDGE: &str = "pods";

/// The router's end of an uplink, which an external host uses as its gateway:
/// link-local, so that it takes no address from anyone's plan.
pub(crate) const UPLINK_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// As [`UPLINK_V4`], for IPv6.
pub(crate) const UPLINK_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Brings up loopback in the namespace of the calling thread, which must not
/// be inside an async runtime.
pub(crate) fn loopback_up() -> Result<(), String> {
    let up = async { Connection::<Route>::new()?.set_link_up("lo").await };
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(up).map_err(|error: nlink::Error| error.to_string())
}

/// The pods' bridge, up, with the node's addresses. It has a hardware address
/// of its own: otherwise it has its lowest port's, which changes when a port
/// with a lower one is added, and every pod that knows the node by the old one
/// is cut off from it for seconds.
pub(crate) fn make_bridge(node: &NetNs, addresses: &[(IpAddr, u8)]) -> io::Result<()> {
    in_namespace(node, async |links| {
        let mut bridge = BridgeLink::new(BRIDGE).stp(false).forward_delay_ms(0);
        if let Some((address, _)) = addresses.first() {
            bridge = bridge.address(hardware_address(*address));
        }
        links.add_link(bridge).await?;
        links.set_link_up(BRIDGE).await?;
        add_addresses(&links, BRIDGE, addresses).await
    })
}

/// One end of a cable: an interface that is to be in a namespace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    /// Where it is.
    pub(crate) namespace: &'a NetNs,
    /// Its name there.
    pub(crate) name: &'a str,
}

/// A cable from a host to the namespace where its other end is `at`, which
/// becomes a port of `bridge` if there is one. The host's hardware address
/// comes from its IP `address`, so that a new host with an old address is
/// found at once by those who know the old one.
pub(crate) fn make_cable(at: End<'_>, host: End<'_>, address: Option<&IpAddr>, bridge: Option<&str>) -> io::Result<()> {
    in_namespace(at.namespace, async |links| {
        let mut cable = VethLink::new(at.name, host.name).peer_netns_fd(host.namespace);
        if let Some(address) = address {
            cable = cable.peer_address(hardware_address(*address));
        }
        links.add_link(cable).await?;
        if let Some(bridge) = bridge {
            links.set_link_master(at.name, bridge).await?;
        }
        links.set_link_up(at.name).await
    })
}

/// Takes a cable away, both ends of it.
pub(crate) fn remove_cable(at: End<'_>) -> io::Result<()> {
    in_namespace(at.namespace, async |links| links.del_link(at.name).await)
}

/// A locally administered address (IEEE 802) that ends in the last four bytes
/// of the IP address.
fn hardware_address(address: IpAddr) -> [u8; 6] {
    let bits = match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let [.., a, b, c, d] = bits.to_be_bytes();
    [0x02, 0x77, a, b, c, d]
}

/// Addresses for an interface, which is brought up.
pub(crate) fn configure(namespace: &NetNs, interface: &str, addresses: &[(IpAddr, u8)]) -> io::Result<()> {
    in_namespace(namespace, async |links| {
        links.set_link_up(interface).await?;
        add_addresses(&links, interface, addresses).await
    })
}

/// A route: `destination` via `gateway`, or directly on the link.
pub(crate) fn add_route(
    namespace: &NetNs,
    destination: IpNet,
    gateway: Option<IpAddr>,
    interface: &str,
) -> io::Result<()> {
    in_namespace(namespace, async |links| match (destination, gateway) {
        (IpNet::V4(net), None) => {
            let route = Ipv4Route::from_addr(net.network(), net.prefix_len()).dev(interface);
            let link = nlink::netlink::types::route::RouteScope::Link;
            links.add_route(route.scope(link)).await
        }
        (IpNet::V4(net), Some(IpAddr::V4(gateway))) => {
            let route = Ipv4Route::from_addr(net.network(), net.prefix_len()).dev(interface);
            links.add_route(route.gateway(gateway).onlink()).await
        }
        (IpNet::V6(net), None) => {
            let route = Ipv6Route::from_addr(net.network(), net.prefix_len()).dev(interface);
            links.add_route(route).await
        }
        (IpNet::V6(net), Some(IpAddr::V6(gateway))) => {
            let route = Ipv6Route::from_addr(net.network(), net.prefix_len()).dev(interface);
            links.add_route(route.gateway(gateway)).await
        }
        (net, Some(gateway)) => Err(nlink::Error::invalid_message(format!("a route to {net} cannot go via {gateway}"))),
    })
}

/// Names and received packets of the ports of a bridge, by interface index.
pub(crate) fn bridge_ports(node: &NetNs) -> io::Result<Vec<Port>> {
    in_namespace(node, async |links| {
        let all = links.get_links().await?;
        let bridge = all.iter().find(|link| link.name() == Some(BRIDGE)).map(|link| link.ifindex());
        Ok(all
            .iter()
            .filter(|link| link.master().is_some() && link.master() == bridge)
            .map(|link| Port {
                index: link.ifindex(),
                name: link.name_or("?").to_owned(),
                received: link.stats().map_or(0, |stats| stats.rx_packets()),
            })
            .collect())
    })
}

/// A port of the pods' bridge.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    /// Interface index in the node's namespace.
    pub(crate) index: u32,
    /// Its name there.
    pub(crate) name: String,
    /// Packets that came in through it so far.
    pub(crate) received: u64,
}

async fn add_addresses(links: &Connection<Route>, interface: &str, addresses: &[(IpAddr, u8)]) -> nlink::Result<()> {
    for (address, length) in addresses {
        match address {
            IpAddr::V4(v4) => {
                let address = Ipv4Address::new(interface, *v4, *length);
                links.add_address(address).await?;
            }
            IpAddr::V6(v6) => {
                let address = Ipv6Address::new(interface, *v6, *length).nodad();
                links.add_address(address).await?;
            }
        }
    }
    Ok(())
}

fn in_namespace<T: Send>(
    namespace: &NetNs,
    work: impl AsyncFnOnce(Connection<Route>) -> nlink::Result<T> + Send,
) -> io::Result<T> {
    let done = namespace.block_on(|| async move { work(Connection::<Route>::new()?).await })?;
    done.map_err(|error| match error.errno() {
        Some(number) => {
            let plain = io::Error::from_raw_os_error(number);
            io::Error::new(plain.kind(), error.to_string())
        }
        None => io::Error::other(error.to_string()),
    })
}
