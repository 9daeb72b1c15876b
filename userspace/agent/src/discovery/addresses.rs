//! Addresses and ports as manifests write them.
//!
//! An object that claims loopback, multicast or the unspecified address is refused: lookups by address would hand other
//! workloads' traffic to it.

use std::net::IpAddr;

use ipnet::IpNet;
use signet_manifests::{Document, DocumentError};

/// An address that a workload, endpoint or Service can have.
pub(crate) fn unicast(document: &Document, field: &str, text: &str) -> Result<IpAddr, DocumentError> {
    let address =
        text.parse::<IpAddr>().map_err(|_| document.error(field, format!("{text:?} is no IP address")))?;
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(document.error(field, format!("{address} cannot be anybody's own address")));
    }
    Ok(address)
}

/// `ipBlocks` and friends: a CIDR, or an address alone.
pub(crate) fn block(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => {
            text.parse::<IpNet>().map_err(|_| format!("{text:?} is neither an IP address nor a CIDR"))?
        }
    };
    Ok(unmapped(net).trunc())
}

/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`: flows carry unmapped addresses.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(prefix)) => IpNet::new_assert(v4.into(), prefix),
        _ => net,
    }
}

/// A port as a number field holds it.
pub(crate) fn port(document: &Document, field: &str, number: i64) -> Result<u16, DocumentError> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| document.error(field, format!("{number} is no port: 1 to 65535")))
}

/// A port as a policy writes it, a string.
pub(crate) fn port_text(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("{text:?} is no port: \"1\" to \"65535\"")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_a_cidr_or_an_address() {
        for (text, block_text) in [
            ("10.0.0.1", "10.0.0.1/32"),
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("fd00::1", "fd00::1/128"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(block(text).unwrap().to_string(), block_text, "{text}");
        }
        for text in ["", "10.0.0", "10.0.0.1/33", "example.com", "10.0.0.1 "] {
            assert!(block(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_text_is_a_plain_number() {
        assert_eq!(port_text("80"), Ok(80));
        for text in ["", "0", "65536", "-1", "+80", "http", " 80"] {
            assert!(port_text(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_ipv4_cidr_is_kept(a in any::<[u8; 4]>(), prefix in 0u8..=32) {
            let text = format!("{}/{prefix}", IpAddr::from(a));
            prop_assert!(block(&text).unwrap().contains(&IpAddr::from(a)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = (block(&text), port_text(&text));
        }
    }
}
