//! The kubelet's connections, among which are the probes of pods.
//!
//! They come from no workload and carry no identity, and a pod whose policy is STRICT must be probed nevertheless. Who the
//! kubelet is, is known by its cgroup when it connects; its flow is published when the SYN leaves, and a pod's namespace
//! lets the SYN through to the application that a record of this node's kubelet is there for (`steer`). An address, which
//! anybody on the node has too, says nothing. The record goes with the kubelet's socket.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use signet_common::abi::{Address, Captured, Flow, Origin, PATH_PROBE};
use signet_common::decision::Fault;

use crate::caller::Current;
use crate::flow::{flow, watch_close};
use crate::maps::{FLOWS, SOCKETS, Storage, fault};

/// Marks a socket that the kubelet connects. Without memory for it, it is nobody's: a STRICT pod refuses it.
#[inline(always)]
pub fn mark(sk: *mut bpf_sock, current: &Current, destination: Address, port: u16) {
    if let Some(captured) = SOCKETS.make(sk) {
        let origin = Origin { cgroup: current.cgroup, destination, port, ..Origin::default() };
        *captured = Captured { origin, path: PATH_PROBE, ..Captured::default() };
    }
}

/// The SYN leaves: publishes the flow.
#[inline(always)]
pub fn publish(ctx: &SockOpsContext, captured: &mut Captured) {
    let flow = flow(ctx).anywhere();
    captured.flow = flow;
    watch_close(ctx);
    if FLOWS.insert(flow, captured.origin, 0).is_err() {
        debug!(ctx, "probe from port {} not published: FLOWS is full", flow.local_port);
        fault(Fault::FlowNotPublished);
    }
}

/// Whether a client's flow is the kubelet's.
#[inline(always)]
pub fn is_kubelets(flow: Flow) -> bool {
    FLOWS.get_ptr(flow).is_some()
}
