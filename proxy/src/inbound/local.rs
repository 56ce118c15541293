//! Which addresses are the pod's own.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How old the known addresses may be when one is not among them: an address that was just added is found, and a flood of
/// foreign ones does not make a flood of system calls.
const REFRESH: Duration = Duration::from_secs(1);

static KNOWN: Mutex<Option<(Instant, Vec<IpAddr>)>> = Mutex::new(None);

/// Whether `address` is one of the interfaces' of this network namespace, loopback apart.
pub(crate) fn is_own_address(address: IpAddr) -> bool {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((read, addresses)) = known.as_ref()
        && (addresses.contains(&address) || read.elapsed() < REFRESH)
    {
        return addresses.contains(&address);
    }
    let addresses = interface_addresses();
    let own = addresses.contains(&address);
    *known = Some((Instant::now(), addresses));
    own
}

fn interface_addresses() -> Vec<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::error!(%error, "the pod's own addresses can't be read; every inbound connection is refused");
            return Vec::new();
        }
    };
    interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| !address.is_loopback())
        .collect()
}
