//! The addresses of a lab. Every lab has namespaces of its own, so that two
//! labs may use the same ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The networks of the pods. The router has the first host address of each,
/// the node the last but one (IPv4) or `::ffff` (IPv6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabNetworks {
    /// The pods' IPv4 network, at least a /29.
    pub pods_v4: Ipv4Net,
    /// The pods' IPv6 network, at least a /112.
    pub pods_v6: Ipv6Net,
}

impl LabNetworks {
    /// The router's addresses on the pods' bridge.
    pub fn router(&self) -> [IpAddr; 2] {
        let v4 = u32::from(self.pods_v4.network()) | 1;
        let v6 = u128::from(self.pods_v6.network()) | 1;
        [Ipv4Addr::from(v4).into(), Ipv6Addr::from(v6).into()]
    }

    /// The node's addresses on the pods' bridge.
    pub fn node(&self) -> [IpAddr; 2] {
        let v4 = u32::from(self.pods_v4.broadcast()) & !1;
        let v6 = u128::from(self.pods_v6.network()) | 0xffff;
        [Ipv4Addr::from(v4).into(), Ipv6Addr::from(v6).into()]
    }

    /// The addresses of pod number `n`, with both families showing the same
    /// number: `10.77.0.11` and `fd77::11` for 11.
    pub fn pod(&self, n: u8) -> [IpAddr; 2] {
        let v4 = u32::from(self.pods_v4.network()) | u32::from(n);
        let digits = u128::from(n / 100) << 8 | u128::from(n / 10 % 10) << 4 | u128::from(n % 10);
        let v6 = u128::from(self.pods_v6.network()) | digits;
        [Ipv4Addr::from(v4).into(), Ipv6Addr::from(v6).into()]
    }

    /// Whether an address is in the pods' networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.pods_v4.contains(&v4),
            IpAddr::V6(v6) => self.pods_v6.contains(&v6),
        }
    }

    pub(crate) fn prefix_len(&self, address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => self.pods_v4.prefix_len(),
            IpAddr::V6(_) => self.pods_v6.prefix_len(),
        }
    }
}

impl Default for LabNetworks {
    /// `10.77.0.0/24` and `fd77::/64` (a unique local network, RFC 4193).
    fn default() -> Self {
        Self {
            pods_v4: Ipv4Net::new_assert(Ipv4Addr::new(10, 77, 0, 0), 24),
            pods_v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0), 64),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn both_families_of_a_pod_show_the_same_number() {
        let networks = LabNetworks::default();
        let shown = |addresses: [IpAddr; 2]| addresses.map(|a| a.to_string());
        assert_eq!(shown(networks.router()), ["10.77.0.1", "fd77::1"]);
        assert_eq!(shown(networks.node()), ["10.77.0.254", "fd77::ffff"]);
        assert_eq!(shown(networks.pod(11)), ["10.77.0.11", "fd77::11"]);
        assert_eq!(shown(networks.pod(205)), ["10.77.0.205", "fd77::205"]);
    }
}
