//! Signet's kernel programs: the entries are thin, one file per hook; what they decide is in `signet_common::decision`.
//!
//! | file | hook | what it does |
//! |---|---|---|
//! | `connect` | cgroup `connect4/6` | decides for a connect; `redirect`, `direct` and `service` are its parts |
//! | `peername` | cgroup `getpeername4/6` | gives a captured socket its original destination back |
//! | `flow` | `sock_ops` | publishes flow → origin, takes it back at the close; counts listeners; `direct` does it for direct flows |
//! | `bind` | cgroup `post_bind4/6` | marks the sockets of hostNetwork workloads with their owner |
//! | `egress` | cgroup `skb/egress` | drops what was captured and leaves another way; `wait` holds SYNs until the engine listens |
//! | `unprotected` | cgroup `sendmsg4/6`, `sock_create` | counts or denies what is not TCP |
//! | `steer` | `sk_lookup` | sends SYNs from outside to the engine's listeners, those of direct flows to the application |
//! | `hold` | `tcx/ingress` | holds SYNs from outside until the engine listens |
//! | `cgroups` | raw tracepoints `cgroup_mkdir/rmdir` | tells of cgroups |
//!
//! `maps` has the maps, `caller` the walk up the cgroups. All loops are bounded and nothing needs a helper that Linux
//! 6.1 lacks. There is no BPF LSM program: many kernels do not enable it.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bind;
mod caller;
mod cgroups;
mod connect;
mod direct;
mod egress;
mod flow;
mod hold;
mod maps;
mod peername;
mod probe;
mod redirect;
mod service;
mod steer;
mod unprotected;
mod wait;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program in which this could be reached.
    unsafe { core::hint::unreachable_unchecked() }
}

/// GPL-only helpers (`bpf_probe_read_kernel_str`, `bpf_ktime_get_ns`) ask for a compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
