//! Keys and values of the maps.
//!
//! Every field has a fixed width, every gap is a named field that is written as zero (hash maps compare keys as bytes,
//! padding included), and every size is asserted. Numbers are in host byte order; addresses are as they are on the wire.
//! Booleans and enums travel as integers: a value that no variant has must not be undefined behaviour on either side.

use core::net::IpAddr;

use crate::direct::Permit;

/// An IPv6 address, or an IPv4 address in its mapped form (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2): the four words as they
/// lie in memory in network byte order, which is how the kernel's contexts show them.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address(pub [u32; 4]);

const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// The address of an `AF_INET` context: one word in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The IPv4 address as one word in network byte order, where this is one.
    #[inline(always)]
    #[must_use]
    pub const fn as_v4(&self) -> Option<u32> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED { Some(self.0[3]) } else { None }
    }

    /// 127.0.0.0/8, `::1`, and the unspecified addresses, which `connect` takes for loopback
    /// (net/ipv4/route.c `ip_route_output_key_hash_rcu`, net/ipv6/tcp_ipv6.c `tcp_v6_connect`).
    #[inline(always)]
    #[must_use]
    pub const fn is_local_host(&self) -> bool {
        match self.as_v4() {
            Some(word) => word == 0 || u32::from_be(word) >> 24 == 127,
            None => self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && u32::from_be(self.0[3]) <= 1,
        }
    }

    /// `0.0.0.0` or `::`, which a socket has that is not bound to an address.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        match self.as_v4() {
            Some(word) => word == 0,
            None => self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0,
        }
    }
}

impl From<IpAddr> for Address {
    /// An IPv4 address and its mapped form are one.
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let mut words = [0; 4];
                for (word, octets) in words.iter_mut().zip(v6.octets().as_chunks::<4>().0) {
                    *word = u32::from_ne_bytes(*octets);
                }
                Self(words)
            }
        }
    }
}

/// `CONFIG[0]`. Written by signetd before it attaches and when the pods' root appears; read by every program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Cgroup id of the pods' root; 0 while there is none.
    pub pods_root: u64,
    /// Cgroup id signetd itself runs in; its own connects pass.
    pub engine_cgroup: u64,
    /// Age of the heartbeat after which the engine counts as gone, in nanoseconds.
    pub engine_timeout: u64,
    /// Cookie of the node's own network namespace, which hostNetwork workloads share.
    pub node_netns: u64,
    /// Cgroup id of the kubelet; 0 while there is none.
    pub kubelet: u64,
    /// 1: pods nobody knows are denied while the engine is gone; 0: they pass.
    pub deny_unknown: u32,
    /// 1: what cannot be protected (UDP, SCTP, raw) is denied for enrolled workloads; 0: it passes.
    pub deny_unprotected: u32,
}

/// `WORKLOADS[cgroup id]`. Written by signetd alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// One of the `CAPTURE_*` values; any other means [`CAPTURE_NOT_READY`].
    pub capture: u32,
    /// 1: it shares the node's network namespace.
    pub host_network: u32,
    /// How many of `addresses` are set.
    pub address_count: u32,
    /// Always 0.
    pub padding: u32,
    /// Its own addresses.
    pub addresses: [Address; MAX_ADDRESSES],
}

/// Known, not in the mesh.
pub const CAPTURE_BYPASS: u32 = 0;
/// In the mesh, its listeners are not up: its connects wait for them.
pub const CAPTURE_NOT_READY: u32 = 1;
/// In the mesh: redirected to the engine.
pub const CAPTURE_REDIRECT: u32 = 2;

/// The most own addresses a workload can have. A pod has one or two; Multus adds one per extra interface.
pub const MAX_ADDRESSES: usize = 8;

/// Where a captured connection came from and where it wanted to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The enrolled workload's cgroup.
    pub cgroup: u64,
    /// The destination before any rewrite.
    pub destination: Address,
    /// The endpoint that was chosen where the destination is a Service of `SERVICES`; all zero where it is none.
    pub choice: Address,
    /// The destination's port.
    pub port: u16,
    /// The endpoint's port; 0 where none was chosen.
    pub choice_port: u16,
    /// Always 0.
    pub padding: u32,
}

/// One TCP connection: the key of `FLOWS`, and with no cookie that of `DIRECT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Cookie of the network namespace in `FLOWS`, because loopback tuples repeat across pods; 0 in `DIRECT`, and in `FLOWS`
    /// for the kubelet's connections.
    pub netns: u64,
    /// The client's end.
    pub local: Address,
    /// The other end: the engine's in `FLOWS`, the server's in `DIRECT`.
    pub remote: Address,
    /// The client's port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// Always 0.
    pub padding: u32,
}

impl Flow {
    /// The same connection as its other end names it.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            ..self
        }
    }

    /// The same without the namespace's cookie.
    #[inline(always)]
    #[must_use]
    pub const fn anywhere(self) -> Self {
        Self { netns: 0, ..self }
    }
}

/// `SOCKETS`, the storage of a captured socket: what later hooks must know of its connect. Freed with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// What `connect4/6` recorded.
    pub origin: Origin,
    /// What `sock_ops` published. Before that all zero, or on a direct socket the server that it may reach.
    pub flow: Flow,
    /// What a direct socket has its right from.
    pub permit: Permit,
    /// `bytes_received` when it entered FIN_WAIT2: a FIN after that counts as one more.
    pub received: u64,
    /// One of the `PATH_*` values.
    pub path: u32,
    /// One of the `STAGE_*` values, of a direct socket.
    pub stage: u32,
}

/// The socket is not captured (any more).
pub const PATH_NATIVE: u32 = 0;
/// It goes to the engine.
pub const PATH_REDIRECT: u32 = 1;
/// It goes to a server of this node, by itself.
pub const PATH_DIRECT: u32 = 2;
/// It is the kubelet's, and may be a probe.
pub const PATH_PROBE: u32 = 3;

/// Nothing but the connect has been seen.
pub const STAGE_CONNECT: u32 = 0;
/// `DIRECT` has its record.
pub const STAGE_PUBLISHED: u32 = 1;
/// The server's namespace has let its SYN through and answered: it may send.
pub const STAGE_OPEN: u32 = 2;
/// It is closed and its record taken back. A reset is sent after that (net/ipv4/tcp.c `__tcp_close`).
pub const STAGE_ENDED: u32 = 3;

/// `PORTS` key: a TCP port of a shared network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The port.
    pub port: u16,
    /// Always 0.
    pub padding: [u16; 3],
}

/// `PORTS` value: who listens there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortOwner {
    /// The enrolled workload's cgroup.
    pub cgroup: u64,
    /// Its listening sockets that the kernel saw and will see closing. Counted by atomic addition; the entry stays when it
    /// falls to 0, since removing it could meet the next listener.
    pub listeners: u64,
    /// Not 0: found listening at enrolment, by signetd; nobody sees these sockets closing.
    pub found: u32,
    /// Not 0: sockets of two workloads listen here, so nobody can say whose a connection is.
    pub contested: u32,
}

impl PortOwner {
    /// Whether a socket listens there, as far as is known.
    #[inline(always)]
    #[must_use]
    pub const fn is_listening(&self) -> bool {
        self.listeners != 0 || self.found != 0
    }

    /// The cgroup whose connection one to this port is, where that can be said.
    #[inline(always)]
    #[must_use]
    pub const fn sole(&self) -> Option<u64> {
        if self.is_listening() && self.contested == 0 { Some(self.cgroup) } else { None }
    }
}

/// `BOUND`, the storage of a bound socket of a hostNetwork workload. Freed with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The enrolled workload's cgroup.
    pub cgroup: u64,
    /// The port it is counted under.
    pub port: Port,
    /// 1 while the socket listens and is counted in `PORTS`.
    pub listening: u32,
    /// Always 0.
    pub padding: u32,
}

/// One record of `EVENTS`. Written by the programs, read by signetd.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// One of the `EVENT_*` values.
    pub kind: u32,
    /// Bytes of `path` that are set, without a terminating zero. [`PATH_TRUNCATED`] where it did not fit.
    pub path_length: u32,
    /// The cgroup (0 for `EVENT_CGROUP_*`, which carry the path).
    pub cgroup: u64,
    /// The cgroup's path from the root of its hierarchy, with a leading `/`.
    pub path: [u8; MAX_PATH],
}

/// A cgroup was made.
pub const EVENT_CGROUP_MADE: u32 = 1;
/// A cgroup was removed.
pub const EVENT_CGROUP_GONE: u32 = 2;
/// A connect was denied because nobody knows the cgroup, or waits because it is not ready.
pub const EVENT_AWAITED: u32 = 3;
/// [`Event::path_length`] of a path that is longer than [`MAX_PATH`].
pub const PATH_TRUNCATED: u32 = u32::MAX;
/// The longest cgroup path an event carries. Kubelet's with systemd and containerd are about 230 bytes.
pub const MAX_PATH: usize = 496;

/// Size of `EVENTS` in bytes: room for 250 records; what finds none is made up for by a walk. Its reader maps it twice into
/// its memory.
pub const EVENTS_SIZE: usize = 128 * 1024;
/// The most flows between applications and one engine.
pub const MAX_FLOWS: usize = 131_072;
/// The most workloads of one engine, and of other cgroups it keeps an entry for.
pub const MAX_WORKLOADS: usize = 16_384;
/// The most listening ports of hostNetwork workloads.
pub const MAX_PORTS: usize = 65_536;

/// Index of the plaintext listener (15006) in a namespace's sockmap.
pub const LISTENER_PLAINTEXT: u32 = 0;
/// Index of the HBONE listener (15008) in a namespace's sockmap.
pub const LISTENER_HBONE: u32 = 1;

/// Outbound capture, on loopback in each workload's network namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound plaintext capture, on loopback in each workload's network namespace.
pub const PLAINTEXT_PORT: u16 = 15006;
/// HBONE, in each workload's network namespace (istio/ztunnel `ARCHITECTURE.md`).
pub const HBONE_PORT: u16 = 15008;
/// The mark on the engine's sockets to applications, and on those that applications accept from it.
pub const ENGINE_MARK: u32 = 0x513;

const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<Config>() == 48);
const _: () = assert!(size_of::<Workload>() == 16 + 16 * MAX_ADDRESSES);
const _: () = assert!(size_of::<Origin>() == 48);
const _: () = assert!(size_of::<Flow>() == 48);
const _: () = assert!(size_of::<Captured>() == 144);
const _: () = assert!(size_of::<Port>() == 16);
const _: () = assert!(size_of::<PortOwner>() == 24);
const _: () = assert!(size_of::<Bound>() == 32);
const _: () = assert!(size_of::<Event>() == 16 + MAX_PATH);

#[cfg(feature = "user")]
mod user {
    use super::{Bound, Config, Flow, Origin, Port, PortOwner, Workload};
    use crate::direct::{Direct, Permit, Permitted, Service, Vip};

    macro_rules! pod {
        ($($name:ty),*) => {
            $(
                // SAFETY: `repr(C)` of integers alone, without padding (the asserts above), so every bit pattern is a
                // value and every byte is initialised.
                unsafe impl aya::Pod for $name {}
            )*
        };
    }

    pod!(Bound, Config, Direct, Flow, Origin, Permit, Permitted, Port, PortOwner, Service, Vip, Workload);
}

#[cfg(test)]
mod tests {
    use super::Address;

    fn v4(octets: [u8; 4]) -> Address {
        Address::v4(u32::from_ne_bytes(octets))
    }

    fn v6(last: u8) -> Address {
        Address([0, 0, 0, u32::from(last).to_be()])
    }

    #[test]
    fn loopback_and_unspecified_are_the_local_host() {
        for local in [v4([127, 0, 0, 1]), v4([127, 255, 3, 4]), v4([0; 4]), v6(0), v6(1)] {
            assert!(local.is_local_host(), "{local:?}");
        }
    }

    #[test]
    fn every_other_address_is_not() {
        for other in [v4([128, 0, 0, 1]), v4([10, 0, 0, 127]), v4([1, 0, 0, 0]), v6(2)] {
            assert!(!other.is_local_host(), "{other:?}");
        }
    }

    #[test]
    fn an_ipv4_address_survives_its_mapped_form() {
        assert_eq!(v4([10, 1, 2, 3]).as_v4(), Some(u32::from_ne_bytes([10, 1, 2, 3])));
        assert_eq!(v6(1).as_v4(), None);
    }
}
