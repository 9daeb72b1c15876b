//! Connections between two workloads of this node that the kernel authorises: permits, live flows, and Services.
//!
//! The engine decides the first connection of a (client, server, port) and writes a [`Permit`]; the programs let the next
//! ones through by themselves. A permit holds while its epoch is the one in `EPOCH`, so one write takes all of them back.
//! [`Service`] has the candidates of one virtual address in one value: a reader sees the old list or the new one, never a
//! mixture. What does not fit ([`MAX_BACKENDS`]) goes through the engine.

use crate::abi::{Address, Flow, Origin};

/// `PERMITS` key: who may connect where. Written by signetd alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permitted {
    /// The client workload's cgroup.
    pub client: u64,
    /// The server's address.
    pub server: Address,
    /// The server's port.
    pub port: u16,
    /// Always 0.
    pub padding: [u16; 3],
}

/// `PERMITS` value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// It holds while this is `EPOCH`.
    pub epoch: u64,
    /// The server workload's cgroup.
    pub server: u64,
    /// Cookie of the server's network namespace: an address that has gone to another pod is let in nowhere.
    pub netns: u64,
    /// 1: the server shares the node's namespace, and must own the port too.
    pub host_network: u32,
    /// Not 0: a connection has used it since signetd wrote it.
    pub used: u32,
}

/// `DIRECT` value: one live flow. The key is its [`Flow`] without a cookie: both addresses are real, and unique on the
/// node. Made and removed by the client's socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The client, and what it asked for.
    pub origin: Origin,
    /// What it has its right from.
    pub permit: Permit,
    /// Cookie of the client's network namespace.
    pub netns: u64,
    /// Cookie of the client's socket.
    pub socket: u64,
    /// When its SYN left, by `bpf_ktime_get_ns`.
    pub started: u64,
    /// One of the `ADMISSION_*` values: how far the server's side is.
    pub admission: u32,
    /// 1: the client's side is established.
    pub established: u32,
}

/// Its SYN has not been seen in the server's namespace.
pub const ADMISSION_NONE: u32 = 0;
/// Its SYN was let through to the server.
pub const ADMISSION_SYN: u32 = 1;
/// The server has the connection: no other SYN is let through for it.
pub const ADMISSION_DONE: u32 = 2;

/// One record of `DIRECT_EVENTS`. Written by `sock_ops`, read by signetd.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectEvent {
    /// The flow.
    pub flow: Flow,
    /// Its record.
    pub record: Direct,
    /// When this was, by `bpf_ktime_get_ns`.
    pub at: u64,
    /// Bytes of the application that the server has acknowledged.
    pub sent: u64,
    /// Bytes of the server that have arrived.
    pub received: u64,
    /// One of the `DIRECT_*` values.
    pub kind: u32,
    /// Always 0.
    pub padding: u32,
}

/// The flow has ended.
pub const DIRECT_ENDED: u32 = 1;
/// The flow was published under a permit that has been taken back meanwhile: it must be looked at.
pub const DIRECT_STALE: u32 = 2;
/// Somebody else than the server has answered: it must be destroyed. It has sent nothing, and can not.
pub const DIRECT_STRAY: u32 = 3;

/// How far a client's socket is, by TCP's own counters, which count SYN and FIN as a byte each.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// `bytes_acked`.
    pub acknowledged: u64,
    /// `bytes_received`.
    pub received: u64,
    /// Its SYN was answered.
    pub is_established: bool,
    /// Its FIN was acknowledged.
    pub is_fin_acknowledged: bool,
    /// The server's FIN has arrived.
    pub is_fin_received: bool,
}

impl Progress {
    /// The application's bytes: those that the server has acknowledged, and those that have come from it.
    #[inline(always)]
    #[must_use]
    pub const fn payload(&self) -> (u64, u64) {
        let sent = self.is_established as u64 + self.is_fin_acknowledged as u64;
        (self.acknowledged.saturating_sub(sent), self.received.saturating_sub(self.is_fin_received as u64))
    }
}

/// `SERVICES` key: a virtual address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vip {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: u16,
    /// Always 0.
    pub padding: [u16; 3],
}

/// One candidate of a Service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// Always 0.
    pub padding: [u16; 3],
}

/// `SERVICES` value: the candidates from which the engine would choose. Written by signetd alone, as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// How many of `backends` are set.
    pub count: u32,
    /// 1: a client gets the same one each time.
    pub affinity: u32,
    /// The candidates.
    pub backends: [Backend; MAX_BACKENDS],
}

impl Default for Service {
    fn default() -> Self {
        Self { count: 0, affinity: 0, backends: [Backend::default(); MAX_BACKENDS] }
    }
}

/// The most candidates of a Service that the kernel chooses from. A power of two: the verifier sees a mask.
pub const MAX_BACKENDS: usize = 64;
/// The most Services that have an endpoint on this node, a virtual address and port each.
pub const MAX_SERVICES: usize = 16_384;
/// The most permits of one engine.
pub const MAX_PERMITS: usize = 65_536;
/// The most live direct flows.
pub const MAX_DIRECT: usize = 131_072;
/// Size of `DIRECT_EVENTS` in bytes: 2,600 records, an eighth of a second at 20,000 connections a second. Its reader maps
/// it twice into its memory.
pub const DIRECT_EVENTS_SIZE: usize = 512 * 1024;

const _: () = assert!(size_of::<Permitted>() == 32);
const _: () = assert!(size_of::<Permit>() == 32);
const _: () = assert!(size_of::<Direct>() == 112);
const _: () = assert!(size_of::<DirectEvent>() == 192);
const _: () = assert!(size_of::<Vip>() == 24);
const _: () = assert!(size_of::<Backend>() == 24);
const _: () = assert!(size_of::<Service>() == 8 + 24 * MAX_BACKENDS);
const _: () = assert!(MAX_BACKENDS.is_power_of_two());

/// How much a client belongs to a backend, for `sessionAffinity: ClientIP`: it gets the one with the most (rendezvous
/// hashing). Kernel and engine ask this one function, so both send a client to the same place, and a backend that comes
/// or goes moves nobody but its own clients.
#[inline(always)]
#[must_use]
pub const fn affinity(client: &Address, backend: &Address, port: u16) -> u64 {
    let mut hash = port as u64;
    let mut index = 0;
    while index < 4 {
        hash = mix(hash ^ (((client.0[index] as u64) << 32) | backend.0[index] as u64));
        index += 1;
    }
    hash
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[inline(always)]
const fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> Address {
        Address::v4(u32::from_ne_bytes([10, 0, 0, last]))
    }

    fn chosen(client: u8, backends: u8) -> u8 {
        (1..=backends).max_by_key(|backend| affinity(&v4(client), &v4(*backend), 80)).unwrap_or(0)
    }

    #[test]
    fn clients_spread_evenly_over_the_backends() {
        let mut counts = [0_u32; 5];
        (0..=249).for_each(|client| counts[usize::from(chosen(client, 4))] += 1);
        assert!(counts[1..].iter().all(|count| (35..=90).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_backend_that_comes_moves_only_the_clients_it_gets() {
        for client in 0..=249 {
            let (before, after) = (chosen(client, 4), chosen(client, 5));
            assert!(after == before || after == 5, "{client}: from {before} to {after}");
        }
    }
}
