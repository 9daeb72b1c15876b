//! The `:authority` of a CONNECT: `<ip>:<port>` or `<service hostname>:<port>` (istio/ztunnel `src/proxy/inbound.rs`).
//!
//! It comes from a peer, so it is parsed once, bounded, into a type that cannot hold anything else: no user info, no
//! missing or zero port, no bare IPv6, no character that is not a host name's. Whether the peer may ask for it is
//! `inbound`'s question.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::addr::canonical;

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authority {
    /// An address, IPv4-mapped IPv6 unmapped.
    Address(SocketAddr),
    /// A port of a Service, by host name in lower case.
    Service {
        /// `<name>.<namespace>.svc.<cluster domain>`.
        hostname: String,
        /// The Service's port, not the application's.
        port: u16,
    },
}

/// Why a text is no authority. The text itself is the peer's and so not repeated at length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// Longer than a host name with a port can be.
    #[error("the CONNECT's authority has {0} bytes, at most {MAX_LEN} are legal")]
    TooLong(usize),
    /// No `:port`, or one that is not 1 to 65535.
    #[error("the CONNECT's authority {0:?} has no port between 1 and 65535")]
    Port(String),
    /// Neither an address nor a host name.
    #[error("the CONNECT's authority {0:?} names no IPv4 address, [IPv6 address] or host name")]
    Host(String),
}

impl Authority {
    /// Parses `a.b.c.d:port`, `[v6]:port` or `hostname:port`.
    ///
    /// # Errors
    /// The rule that was broken.
    pub(crate) fn parse(text: &str) -> Result<Self, AuthorityError> {
        if text.len() > MAX_LEN {
            return Err(AuthorityError::TooLong(text.len()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AuthorityError::Port(text.into()))?;
        let port = parse_port(port).ok_or_else(|| AuthorityError::Port(text.into()))?;
        if let Some(ip) = parse_ip(host) {
            return Ok(Self::Address(canonical(SocketAddr::new(ip, port))));
        }
        if !is_hostname(host) {
            return Err(AuthorityError::Host(text.into()));
        }
        Ok(Self::Service { hostname: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Service { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

/// Digits only: `u16::from_str` would take `+80`.
fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn parse_ip(host: &str) -> Option<IpAddr> {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    host.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

/// RFC 1123 §2.1, with `_` as Kubernetes users have it in external names.
fn is_hostname(host: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    host.len() <= MAX_HOSTNAME
        && host.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(legal))
}

/// RFC 1035 §2.3.4, without the root's dot.
const MAX_HOSTNAME: usize = 253;
/// A host name, `:`, five digits.
const MAX_LEN: usize = MAX_HOSTNAME + 6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_of_both_families_are_addresses() {
        let parse = |text| Authority::parse(text).unwrap();
        assert_eq!(parse("10.0.0.1:80"), Authority::Address("10.0.0.1:80".parse().unwrap()));
        assert_eq!(parse("[fd00::1]:80"), Authority::Address("[fd00::1]:80".parse().unwrap()));
        assert_eq!(parse("[::ffff:10.0.0.1]:80"), Authority::Address("10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn a_host_name_is_a_service_in_lower_case() {
        let expected = Authority::Service { hostname: "web.ns.svc.cluster.local".into(), port: 8080 };
        assert_eq!(Authority::parse("Web.ns.svc.cluster.local:8080").unwrap(), expected);
    }

    #[test]
    fn what_is_no_authority_is_refused_with_its_rule() {
        for text in ["10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:+80", "10.0.0.1:65536", "web", ""] {
            assert!(matches!(Authority::parse(text), Err(AuthorityError::Port(_))), "{text:?}");
        }
        for text in
            ["fd00::1:80", "[fd00::1:80", ":80", "a b:80", "user@web:80", "web..ns:80", "[10.0.0.1]:80"]
        {
            assert!(matches!(Authority::parse(text), Err(AuthorityError::Host(_))), "{text:?}");
        }
        let long = format!("{}:80", "a".repeat(300));
        assert!(matches!(Authority::parse(&long), Err(AuthorityError::TooLong(303))));
    }

    proptest! {
        #[test]
        fn any_text_is_an_authority_that_reads_back_or_an_error(text in "\\PC{0,300}") {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&authority.to_string()).unwrap(), authority);
            }
        }

        #[test]
        fn every_socket_address_reads_back(ip: IpAddr, port in 1u16..) {
            let address = canonical(SocketAddr::new(ip, port));
            prop_assert_eq!(Authority::parse(&address.to_string()).unwrap(), Authority::Address(address));
        }
    }
}
