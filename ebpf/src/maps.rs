//! The maps, and what every hook does with them: count, and reach a socket's storage.
//!
//! | map | written by | read by | an entry ends |
//! |---|---|---|---|
//! | `CONFIG` | signetd | all | never |
//! | `HEARTBEAT` | signetd | `caller` | never |
//! | `WORKLOADS` | signetd | `caller` | signetd removes it |
//! | `SOCKETS` | `connect`, `flow`, `direct` | `egress`, `flow`, `direct`, `peername` | with its socket |
//! | `EPOCH` | signetd | `connect`, `direct` | never; it only grows |
//! | `PERMITS` | signetd; `connect` marks the used | `connect`, signetd | signetd removes it |
//! | `DIRECT` | `direct`, `steer` | `direct`, `steer`, `hold`, `peername`, signetd | with its client's socket |
//! | `DIRECT_EVENTS` | `direct` | signetd | when it is read |
//! | `SERVICES` | signetd | `service` | signetd removes it |
//! | `NETNS` | signetd, one map per namespace | `steer` | with its program |
//! | `FLOWS` | `flow`, `probe`, `wait` | `peername`, `steer`, `hold`, signetd | when the connection ends; signetd removes a gone workload's, and when it starts beside no other all but the kubelet's |
//! | `BOUND` | `bind`, `flow` | `flow` | with its socket |
//! | `PORTS` | `flow`, signetd | `connect`, `steer`, signetd | signetd removes a gone workload's |
//! | `LISTENERS` | signetd, one map per namespace | `steer` | when the listener closes |
//! | `TOLD` | `caller` | `caller` | least recently used |
//! | `COUNTERS` | all | signetd | never |
//! | `EVENTS` | `caller`, `cgroups` | signetd | when it is read |

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage, SockMap};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use signet_common::abi::{
    Address, Bound, Captured, Config, EVENTS_SIZE, Event, Flow, MAX_FLOWS, MAX_PORTS, MAX_WORKLOADS, Origin,
    Port, PortOwner, Workload,
};
use signet_common::counter::{self, COUNTERS as SLOTS};
use signet_common::decision::{Decision, Fault, Reason, Verdict, on_fault};
use signet_common::direct::{
    DIRECT_EVENTS_SIZE, Direct, DirectEvent, MAX_DIRECT, MAX_PERMITS, MAX_SERVICES, Permit, Permitted,
    Service, Vip,
};

/// `AF_INET`; everything else that reaches the programs is `AF_INET6`.
pub const AF_INET: u32 = 2;
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();
#[btf_map]
pub static WORKLOADS: HashMap<u64, Workload, MAX_WORKLOADS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static SOCKETS: SkStorage<Captured> = SkStorage::new();
#[btf_map]
pub static EPOCH: Array<u64, 1> = Array::new();
#[btf_map]
pub static PERMITS: HashMap<Permitted, Permit, MAX_PERMITS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static DIRECT: HashMap<Flow, Direct, MAX_DIRECT, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static DIRECT_EVENTS: RingBuf<DirectEvent, DIRECT_EVENTS_SIZE> = RingBuf::new();
#[btf_map]
pub static SERVICES: HashMap<Vip, Service, MAX_SERVICES, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static NETNS: Array<u64, 1> = Array::new();
#[btf_map]
pub static FLOWS: HashMap<Flow, Origin, MAX_FLOWS, ON_DEMAND> = HashMap::new();
#[btf_map]
pub static BOUND: SkStorage<Bound> = SkStorage::new();
#[btf_map]
pub static PORTS: HashMap<Port, PortOwner, MAX_PORTS> = HashMap::new();
#[btf_map]
pub static LISTENERS: SockMap<2> = SockMap::new();
#[btf_map]
pub static TOLD: LruHashMap<u64, u64, 1024> = LruHashMap::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, EVENTS_SIZE> = RingBuf::new();

/// Reads a field of a kernel context or socket. Volatile: the verifier wants an access at a constant offset, and the
/// optimiser would merge two reads into one at a computed offset.
macro_rules! read {
    ($pointer:expr, $($field:tt)+) => {
        core::ptr::read_volatile(&raw const (*$pointer).$($field)+)
    };
}
/// Writes a field, in the same way.
macro_rules! write {
    ($pointer:expr, $field:ident $([$index:literal])?, $value:expr) => {
        core::ptr::write_volatile(&raw mut (*$pointer).$field $([$index])?, $value)
    };
}
/// Reads a field of four words as an address.
macro_rules! words {
    ($pointer:expr, $field:ident) => {
        signet_common::abi::Address([
            $crate::maps::read!($pointer, $field[0]),
            $crate::maps::read!($pointer, $field[1]),
            $crate::maps::read!($pointer, $field[2]),
            $crate::maps::read!($pointer, $field[3]),
        ])
    };
}
pub(crate) use {read, words, write};

/// The address of a socket of that family. Takes both forms read: two reads of which one is made would be merged, volatile
/// or not.
#[inline(always)]
pub fn of_family(family: u32, v4: u32, v6: Address) -> Address {
    if family == AF_INET { Address::v4(v4) } else { v6 }
}

/// The configuration; `None` only if the map were gone, which the kernel rules out for an array.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// The epoch that permits must have; 0, which none has, only if the map were gone.
#[inline(always)]
pub fn epoch() -> u64 {
    match EPOCH.get_ptr(0) {
        // SAFETY: one aligned word. Volatile: it is read twice on purpose.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    }
}

/// Adds one to a counter.
#[inline(always)]
pub fn count(slot: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: a per-CPU slot; a program that interrupts this one on the same CPU can at worst lose an increment.
        unsafe { *counter += 1 };
    }
}

/// Counts a decision and hands back its verdict.
#[inline(always)]
pub fn counted(decision: Decision) -> Verdict {
    count(counter::of_decision(decision));
    decision.verdict
}

/// Counts a fault and hands back what it means.
#[inline(always)]
pub fn fault(fault: Fault) -> Verdict {
    count(counter::of_fault(fault));
    counted(Decision { verdict: on_fault(fault), reason: Reason::Fault })
}

/// A map whose values live with sockets.
pub trait Storage<T> {
    /// The value of `sk`, where it has one.
    fn of(&self, sk: *mut bpf_sock) -> Option<&mut T>;
    /// The value of `sk`, made of zeros where it has none. `None` means that there is no memory.
    fn make(&self, sk: *mut bpf_sock) -> Option<&mut T>;
    /// Forgets the value of `sk`.
    fn forget(&self, sk: *mut bpf_sock);
}

impl<T> Storage<T> for SkStorage<T> {
    #[inline(always)]
    fn of(&self, sk: *mut bpf_sock) -> Option<&mut T> {
        let map = core::ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: `map` is this map and the verifier checks that `sk` is a socket; the answer is its value or null.
        unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<T>().as_mut() }
    }

    #[inline(always)]
    fn make(&self, sk: *mut bpf_sock) -> Option<&mut T> {
        let map = core::ptr::from_ref(self).cast_mut().cast::<c_void>();
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as above; zeros are a value of every type that a map has.
        unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), create).cast::<T>().as_mut() }
    }

    #[inline(always)]
    fn forget(&self, sk: *mut bpf_sock) {
        let map = core::ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: as above. An error means that there was nothing to forget.
        unsafe { bpf_sk_storage_delete(map, sk.cast()) };
    }
}
