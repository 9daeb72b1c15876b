//! Addresses and identifiers as newtypes, so that an original destination cannot be dialled as a peer by mistake.
//!
//! The role is in the type: what the kernel recorded, what a socket reports and what a manifest says are different
//! things even where all of them are a `SocketAddr` or a `u64`. IPv4-mapped IPv6 addresses never get past the
//! constructors: a dual-stack listener reports `::ffff:10.0.0.1`, policy and lookups speak of `10.0.0.1`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

macro_rules! socket_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Wraps `addr`, unmapping an IPv4-mapped IPv6 address.
            #[must_use]
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The address itself.
            #[must_use]
            pub fn socket(self) -> SocketAddr {
                self.0
            }

            /// The IP part.
            #[must_use]
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port part.
            #[must_use]
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

socket_newtype! {
    /// Where the application wanted to go before the kernel redirected it.
    OriginalDst
}
socket_newtype! {
    /// The other end of a connection as the socket reports it (`getpeername`).
    Peer
}
socket_newtype! {
    /// This end of a connection as the socket reports it (`getsockname`).
    Local
}

macro_rules! id_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id_newtype! {
    /// A cgroup v2 id: the inode number of its directory, and what `bpf_get_current_cgroup_id` returns.
    CgroupId
}
id_newtype! {
    /// What `SO_NETNS_COOKIE` and `bpf_get_netns_cookie` call a network namespace; never reused while the kernel runs.
    NetnsCookie
}

/// A workload's unique id: `<cluster>/<group>/<kind>/<namespace>/<name>/<uid>` or the Pod's `metadata.uid`.
///
/// A Pod that returns under the same name and IP has another one; pools and SVIDs are keyed by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct WorkloadUid(Arc<str>);

impl WorkloadUid {
    /// Wraps an id that a source has already made unique.
    #[must_use]
    pub fn new(uid: impl Into<Arc<str>>) -> Self {
        Self(uid.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Unmaps `::ffff:a.b.c.d` to `a.b.c.d`; every other address is returned as it is.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

pub use signet_common::abi::{
    ENGINE_MARK, HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT as INBOUND_PLAINTEXT_PORT,
};

/// Ports of the engine itself: a CONNECT or a plaintext connection to one of them is refused.
pub const ENGINE_PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_address_it_maps() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(OriginalDst::new(mapped).to_string(), "10.1.2.3:80");
    }
}
