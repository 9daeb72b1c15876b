//! The addresses of the node itself.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Whether a device of this process's network namespace has the address now. An address that cannot be told is not.
#[must_use]
pub fn is_own_address(address: IpAddr) -> bool {
    let Ok(mut devices) = getifaddrs() else { return false };
    devices.any(|device| {
        let Some(own) = device.address else { return false };
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
        let own = v4.or_else(|| own.as_sockaddr_in6().map(|own| IpAddr::V6(own.ip())));
        own == Some(address.to_canonical())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_ones_own_and_a_documentation_address_is_not() {
        assert!(is_own_address("127.0.0.1".parse().unwrap()));
        assert!(!is_own_address("192.0.2.1".parse().unwrap()));
    }
}
