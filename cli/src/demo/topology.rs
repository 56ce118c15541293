//! Who is who in the demo, and where. The platform of the story: a client on the internet, an ingress outside of the
//! mesh, three services of a shop inside of it, an old tool that has nothing to do with any of it, and two hosts on the
//! internet of which the shop may call one.

use std::net::{IpAddr, SocketAddr};

use byrnie_netlab::LabNetworks;

/// The mesh's trust domain.
pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// Where every application listens.
pub(super) const PORT: u16 = 8080;

/// Where the control plane listens.
pub(super) const CONTROL_PLANE_PORT: u16 = byrnie_api::labels::CONTROL_PLANE_PORT;

/// A pod on the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pod {
    /// `namespace/name`; the name is its service account's, too.
    pub(super) name: &'static str,
    /// Of its addresses.
    pub(super) number: u8,
    /// Whether a proxy runs beside it.
    pub(super) proxied: bool,
}

/// The reverse proxy through which the client comes in; outside of the mesh.
pub(super) const INGRESS: Pod = Pod { name: "ingress/ingress", number: 11, proxied: false };
/// What the ingress calls.
pub(super) const WEB: Pod = Pod { name: "shop/web", number: 12, proxied: true };
/// What the web calls.
pub(super) const ORDERS: Pod = Pod { name: "shop/orders", number: 13, proxied: true };
/// What the orders call; it calls the partner outside.
pub(super) const STOCK: Pod = Pod { name: "shop/stock", number: 14, proxied: true };
/// Has an identity of the mesh, and its address has been taken by somebody else.
pub(super) const PAYMENTS: Pod = Pod { name: "shop/payments", number: 15, proxied: false };
/// In a namespace that is not enrolled.
pub(super) const TOOL: Pod = Pod { name: "legacy/tool", number: 21, proxied: false };
/// Where the control plane runs.
pub(super) const CONTROL_PLANE: Pod = Pod { name: "byrnie-system/control-plane", number: 2, proxied: false };

/// All pods.
pub(super) const PODS: [Pod; 7] = [CONTROL_PLANE, INGRESS, WEB, ORDERS, STOCK, PAYMENTS, TOOL];

/// Those with a proxy.
pub(super) fn proxied() -> impl Iterator<Item = Pod> {
    PODS.into_iter().filter(|pod| pod.proxied)
}

/// A host behind the router.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside {
    /// Its name in the demo, and in DNS where it has one.
    pub(super) name: &'static str,
    v4: [u8; 4],
    v6: u16,
}

/// Who starts it all. Addresses of documentation networks (RFC 5737, RFC 3849): nobody has them.
pub(super) const CLIENT: Outside = Outside { name: "client", v4: [198, 51, 100, 7], v6: 7 };
/// The host outside that the stock may call.
pub(super) const PARTNER: Outside = Outside { name: "partner.example", v4: [203, 0, 113, 10], v6: 0x10 };
/// A host outside that nobody may call.
pub(super) const FORBIDDEN: Outside = Outside { name: "forbidden.example", v4: [203, 0, 113, 66], v6: 0x66 };

impl Pod {
    /// Namespace and name.
    pub(super) fn parts(self) -> (&'static str, &'static str) {
        self.name.split_once('/').unwrap_or(("default", self.name))
    }

    /// IPv4, IPv6.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        LabNetworks::default().pod(self.number)
    }

    /// Its application, over IPv4.
    pub(super) fn socket(self) -> SocketAddr {
        let [v4, _] = self.addresses();
        SocketAddr::new(v4, PORT)
    }

    /// Its name in DNS: that of its headless Service.
    pub(super) fn dns(self) -> String {
        let (namespace, name) = self.parts();
        format!("{name}.{namespace}")
    }

    /// The SPIFFE ID that it should have.
    pub(super) fn spiffe_id(self) -> String {
        let (namespace, name) = self.parts();
        format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{name}")
    }

    /// The DNS name in its certificate.
    pub(super) fn certificate_name(self) -> String {
        let (namespace, name) = self.parts();
        format!("{name}.{namespace}.{TRUST_DOMAIN}")
    }

    /// Its name where a path has one component.
    pub(super) fn file_name(self) -> String {
        self.name.replace('/', "-")
    }
}

impl Outside {
    /// IPv4, IPv6.
    pub(super) fn addresses(self) -> [IpAddr; 2] {
        let v6 = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, self.v6);
        [IpAddr::from(self.v4), v6.into()]
    }

    /// Its server, over IPv4.
    pub(super) fn socket(self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.v4), PORT)
    }
}

/// `/etc/hosts` of every pod: what the cluster's DNS would say of headless Services, before and after.
pub(super) fn hosts_file() -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost\n");
    for pod in PODS {
        for address in pod.addresses() {
            text += &format!("{address} {0} {0}.svc.{TRUST_DOMAIN}\n", pod.dns());
        }
    }
    for outside in [PARTNER, FORBIDDEN] {
        for address in outside.addresses() {
            text += &format!("{address} {}\n", outside.name);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_an_address() {
        let numbers: std::collections::BTreeSet<_> = PODS.iter().map(|pod| pod.number).collect();
        assert_eq!(numbers.len(), PODS.len());
    }

    #[test]
    fn names_lead_to_pod_addresses() {
        let hosts = hosts_file();
        assert!(hosts.contains("10.77.0.13 orders.shop orders.shop.svc.cluster.local\n"), "{hosts}");
        assert!(hosts.contains("203.0.113.10 partner.example\n"), "{hosts}");
    }
}
