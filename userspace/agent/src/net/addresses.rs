//! The addresses of the node itself.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;

/// The addresses that the devices of this process's network namespace have now, each with the prefix that it is given
/// there. What cannot be told is left out.
#[must_use]
pub fn own_addresses() -> Vec<IpNet> {
    getifaddrs().map(|devices| devices.filter_map(|device| network(&device)).collect()).unwrap_or_default()
}

fn network(device: &InterfaceAddress) -> Option<IpNet> {
    let (own, mask) = (address(device.address.as_ref()?)?, address(device.netmask.as_ref()?)?);
    IpNet::with_netmask(own, mask).ok()
}

fn address(socket: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = socket.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| socket.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ones_own_and_a_documentation_address_is_not() {
        let own = own_addresses();
        assert!(own.contains(&"127.0.0.1/8".parse().unwrap()), "{own:?}");
        assert!(own.iter().all(|own| own.addr() != "192.0.2.1".parse::<IpAddr>().unwrap()), "{own:?}");
    }
}
