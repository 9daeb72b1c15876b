//! `cgroup_mkdir` and `cgroup_rmdir`: tells signetd of cgroups before their first process runs.
//!
//! Raw tracepoints (include/trace/events/cgroup.h): the second argument is the path from the root of the hierarchy. They
//! fire for every hierarchy, cgroup v1 included, and for cgroups of no interest; signetd sorts that out, since telling
//! hierarchies apart here would need field offsets that Rust cannot relocate. They attach by name: BTF tracepoints would
//! give the same two arguments, but signetd would have to parse the type information of the whole kernel for two ids.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use signet_common::abi::{EVENT_CGROUP_GONE, EVENT_CGROUP_MADE, Event, MAX_PATH, PATH_TRUNCATED};
use signet_common::counter;

use crate::maps::{EVENTS, count};

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn signet_cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    tell(&ctx, EVENT_CGROUP_MADE)
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn signet_cgroup_rmdir(ctx: RawTracePointContext) -> i32 {
    tell(&ctx, EVENT_CGROUP_GONE)
}

#[inline(always)]
fn tell(ctx: &RawTracePointContext, kind: u32) -> i32 {
    let path: *const u8 = ctx.arg(1);
    let Some(mut event) = EVENTS.reserve(0) else {
        count(counter::EVENTS_LOST);
        return 0;
    };
    let record: *mut Event = event.as_mut_ptr();
    // SAFETY: the record is reserved, of this size, and ours until it is submitted; the helper writes at most its size
    // and reads a kernel string safely.
    unsafe {
        (*record).kind = kind;
        (*record).cgroup = 0;
        let room = core::ptr::from_mut(&mut (*record).path).cast();
        let written = bpf_probe_read_kernel_str(room, MAX_PATH as u32, path.cast());
        (*record).path_length = length(written);
    }
    event.submit(0);
    0
}

/// Bytes of the path without the terminating zero. A path that fills the room was cut, or may have been.
#[inline(always)]
fn length(written: i64) -> u32 {
    match written {
        1..MAX_WRITTEN => (written - 1) as u32,
        _ => PATH_TRUNCATED,
    }
}

const MAX_WRITTEN: i64 = MAX_PATH as i64;
