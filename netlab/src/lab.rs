//! A node with pods on a bridge, a router, and hosts beyond it.
//!
//! ```text
//!  pod ── veth ──┐                         ┌── veth ── external host
//!  pod ── veth ──┼── bridge ── veth ── router
//!  pod ── veth ──┘   (node)                └── veth ── external host
//! ```

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;

use crate::links::{self, End, INSIDE};
use crate::namespace::NetNs;
use crate::tap::{Tap, TapOptions};
use crate::{Entered, Host, LabNetworks, Privileges};

/// One lab: its namespaces live as long as it and the [`Host`]s it gave out.
#[derive(Debug)]
pub struct Lab {
    entered: Entered,
    networks: LabNetworks,
    node: Host,
    router: Host,
    others: Mutex<Vec<Host>>,
}

impl Lab {
    /// A lab with the default networks: a node with its bridge, and a router.
    ///
    /// # Errors
    /// [`LabError`] with the part that could not be made.
    pub fn new(entered: &Entered, name: &str) -> Result<Self, LabError> {
        Self::with_networks(entered, name, LabNetworks::default())
    }

    /// As [`Lab::new`], with the pods' networks chosen.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn with_networks(entered: &Entered, name: &str, networks: LabNetworks) -> Result<Self, LabError> {
        let failed = |part: &str| LabError::at(&format!("{name}: {part}"));
        let node = Host::new(&format!("{name}/node"), &networks.node(), entered).map_err(failed("the node"))?;
        links::make_bridge(node.namespace(), &with_prefix(&networks, &networks.node()))
            .map_err(failed("the pods' bridge"))?;
        let router = Host::new(&format!("{name}/router"), &networks.router(), entered).map_err(failed("the router"))?;
        links::make_cable(
            End { namespace: node.namespace(), name: "router" },
            End { namespace: router.namespace(), name: "pods" },
            networks.router().first(),
            Some(links::BRIDGE),
        )
        .and_then(|()| {
            let addresses = with_prefix(&networks, &networks.router());
            links::configure(router.namespace(), "pods", &addresses)
        })
        .map_err(failed("the router's port"))?;
        forward(router.namespace()).map_err(failed("forwarding on the router"))?;
        default_routes(node.namespace(), &networks, links::BRIDGE).map_err(failed("the node's default route"))?;
        Ok(Self { entered: *entered, networks, node, router, others: Mutex::default() })
    }

    /// The pods' networks.
    pub fn networks(&self) -> &LabNetworks {
        &self.networks
    }

    /// What the lab may do.
    pub fn privileges(&self) -> Privileges {
        self.entered.privileges()
    }

    /// The node: its namespace holds the bridge and its ports.
    pub fn node(&self) -> &Host {
        &self.node
    }

    /// The router between the pods and the external hosts.
    pub fn router(&self) -> &Host {
        &self.router
    }

    /// A pod with these addresses, which must be in the pods' networks (see
    /// [`LabNetworks::pod`]). Its default routes lead to the router; `routes`
    /// (destination, gateway) come on top. Its port on the bridge is called
    /// after it.
    ///
    /// # Errors
    /// [`LabError`] with the part that could not be made.
    pub fn pod(&self, name: &str, addresses: &[IpAddr], routes: &[(IpNet, IpAddr)]) -> Result<Host, LabError> {
        let failed = |part: &str| LabError::at(&format!("pod {name}: {part}"));
        let pod = Host::new(name, addresses, &self.entered).map_err(failed("its namespace"))?;
        links::make_cable(self.port(&interface_name(name)), inside(&pod), addresses.first(), Some(links::BRIDGE))
            .map_err(failed("its port on the bridge"))?;
        links::configure(pod.namespace(), INSIDE, &with_prefix(&self.networks, addresses))
            .map_err(failed("its addresses"))?;
        default_routes(pod.namespace(), &self.networks, INSIDE).map_err(failed("its default routes"))?;
        for (destination, gateway) in routes {
            links::add_route(pod.namespace(), *destination, Some(*gateway), INSIDE)
                .map_err(failed(&format!("its route to {destination}")))?;
        }
        self.remember(&pod);
        Ok(pod)
    }

    /// Joins two pods by a cable of their own: what one sends to the other's
    /// addresses goes through it from now on, past the bridge and its taps.
    /// For measurements, which want no more in the way than a cable. A pod can
    /// have one.
    ///
    /// # Errors
    /// [`LabError`] with the part that could not be made.
    pub fn cable(&self, one: &Host, other: &Host) -> Result<(), LabError> {
        let failed = |part: &str| LabError::at(&format!("cable from {} to {}: {part}", one.name(), other.name()));
        let end = |host| End { namespace: Host::namespace(host), name: DIRECT };
        links::make_cable(end(one), end(other), None, None).map_err(failed("its ends"))?;
        for (host, peer) in [(one, other), (other, one)] {
            // Its addresses here too: IPv6 answers for those of the interface that was asked, and no others.
            let own: Vec<_> = host.addresses().iter().map(|address| (*address, full_length(*address))).collect();
            links::configure(host.namespace(), DIRECT, &own).map_err(failed("its addresses"))?;
            for address in peer.addresses() {
                links::add_route(host.namespace(), IpNet::from(*address), None, DIRECT)
                    .map_err(failed("its routes"))?;
            }
        }
        Ok(())
    }

    /// A host behind the router, on a link of its own and not on the pods'
    /// bridge, with any addresses that are not in the pods' networks.
    ///
    /// # Errors
    /// [`LabError`] with the part that could not be made.
    pub fn external(&self, name: &str, addresses: &[IpAddr]) -> Result<Host, LabError> {
        let failed = |part: &str| LabError::at(&format!("external host {name}: {part}"));
        if let Some(address) = addresses.iter().find(|a| self.networks.contains(**a)) {
            let clash = io::Error::other(format!("{address} is in the pods' networks"));
            return Err(failed("its addresses")(clash));
        }
        let host = Host::new(name, addresses, &self.entered).map_err(failed("its namespace"))?;
        let uplink = interface_name(name);
        let router = self.router.namespace();
        let end = End { namespace: router, name: &uplink };
        links::make_cable(end, inside(&host), None, None).map_err(failed("its link"))?;
        let gateways: [IpAddr; 2] = [links::UPLINK_V4.into(), links::UPLINK_V6.into()];
        let [v4, v6] = gateways;
        links::configure(router, &uplink, &[(v4, 32), (v6, 64)]).map_err(failed("the router's end"))?;
        let alone: Vec<_> = addresses.iter().map(|a| (*a, full_length(*a))).collect();
        links::configure(host.namespace(), INSIDE, &alone).map_err(failed("its addresses"))?;
        for address in addresses {
            let gateway = if address.is_ipv4() { v4 } else { v6 };
            links::add_route(router, IpNet::from(*address), None, &uplink)
                .and_then(|()| links::add_route(host.namespace(), default_net(*address), Some(gateway), INSIDE))
                .map_err(failed("its routes"))?;
        }
        self.remember(&host);
        Ok(host)
    }

    /// Starts to listen on all ports of the pods' bridge.
    ///
    /// # Errors
    /// [`LabError`] when the packet socket or the file cannot be opened.
    pub fn tap(&self, options: TapOptions) -> Result<Tap, LabError> {
        Tap::start(Arc::clone(self.node.shared_namespace()), options)
            .map_err(LabError::at("the tap on the pods' bridge"))
    }

    /// Takes a pod off the bridge for good. Its namespace goes with the last
    /// clone of the [`Host`] and the last process in it; its address is free
    /// for another pod.
    ///
    /// # Errors
    /// [`LabError`] when the host is no pod of this lab, or was removed.
    pub fn remove(&self, pod: &Host) -> Result<(), LabError> {
        let port = interface_name(pod.name());
        links::remove_cable(self.port(&port)).map_err(LabError::at(&format!("pod {} leave", pod.name())))?;
        if let Ok(mut others) = self.others.lock() {
            others.retain(|other| other.name() != pod.name());
        }
        Ok(())
    }

    fn port<'a>(&'a self, name: &'a str) -> End<'a> {
        End { namespace: self.node.namespace(), name }
    }

    fn remember(&self, host: &Host) {
        if let Ok(mut others) = self.others.lock() {
            others.push(host.clone());
        }
    }
}

impl Drop for Lab {
    /// A lab that goes because a test fails says how to look around in it;
    /// with `BYRNIE_HOLD` in the environment it stays until the program is
    /// interrupted.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if std::env::var_os("BYRNIE_HOLD").is_none() {
            eprintln!("BYRNIE_HOLD=1 keeps the namespaces of a failed test for a look inside");
            return;
        }
        let others = self.others.lock().map(|hosts| hosts.clone());
        let others = others.unwrap_or_default();
        for host in [&self.node, &self.router].into_iter().chain(&others) {
            eprintln!("{}: {}", host.name(), host.enter_hint());
        }
        eprintln!("held until Ctrl-C");
        loop {
            std::thread::park();
        }
    }
}

/// A part of a lab that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {part}: {source}")]
pub struct LabError {
    part: String,
    source: io::Error,
}

impl LabError {
    pub(crate) fn at(part: &str) -> impl Fn(io::Error) -> Self + use<> {
        let part = part.to_owned();
        move |source| Self { part: part.clone(), source }
    }
}

/// Name of both ends of a cable between two pods.
const DIRECT: &str = "direct";

/// The end of a cable that a host has.
fn inside(host: &Host) -> End<'_> {
    End { namespace: host.namespace(), name: INSIDE }
}

fn with_prefix(networks: &LabNetworks, addresses: &[IpAddr]) -> Vec<(IpAddr, u8)> {
    let with = |address: &IpAddr| (*address, networks.prefix_len(*address));
    addresses.iter().map(with).collect()
}

fn default_routes(namespace: &NetNs, networks: &LabNetworks, interface: &str) -> io::Result<()> {
    for router in networks.router() {
        links::add_route(namespace, default_net(router), Some(router), interface)?;
    }
    Ok(())
}

/// The whole address family of `like`.
fn default_net(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn forward(namespace: &NetNs) -> io::Result<()> {
    namespace.run(|| {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let path = format!("/proc/sys/net/{switch}");
            std::fs::write(&path, "1").map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
        }
        Ok(())
    })?
}

/// The host's name as an interface may have it: `shop/orders` is
/// `shop-orders`; of long names the end is kept, which tells more.
fn interface_name(host: &str) -> String {
    let plain: Vec<char> = host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let skipped = plain.len().saturating_sub(15);
    plain.into_iter().skip(skipped).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_called_after_their_hosts() {
        assert_eq!(interface_name("shop/web"), "shop-web");
        assert_eq!(interface_name("platform/a-long-name"), "orm-a-long-name");
    }
}
