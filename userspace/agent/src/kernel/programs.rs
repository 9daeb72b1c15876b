//! Which programs there are, where each attaches, and how it is put into the kernel.

use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::programs::{Program, ProgramError, RawTracePoint};

use super::error::KernelError;
use super::link::AttachType;
use super::verifier;

/// Programs on the cgroup root: name in the object, name of the link's pin, attach type.
pub(super) const CGROUP_PROGRAMS: [(&str, &str, AttachType); 11] = [
    // The record's publisher and the return path first, the rewriting last: no connect is redirected half-way.
    (SOCK_OPS, "sock_ops", AttachType::SockOps),
    ("signet_getpeername4", "getpeername4", AttachType::GetPeerName4),
    ("signet_getpeername6", "getpeername6", AttachType::GetPeerName6),
    ("signet_post_bind4", "post_bind4", AttachType::PostBind4),
    ("signet_post_bind6", "post_bind6", AttachType::PostBind6),
    ("signet_sock_create", "sock_create", AttachType::SockCreate),
    ("signet_sendmsg4", "sendmsg4", AttachType::SendMsg4),
    ("signet_sendmsg6", "sendmsg6", AttachType::SendMsg6),
    ("signet_egress", "egress", AttachType::Egress),
    ("signet_connect4", "connect4", AttachType::Connect4),
    ("signet_connect6", "connect6", AttachType::Connect6),
];

/// Also for the engine's own sockets.
pub(super) const SOCK_OPS: &str = "signet_sock_ops";
/// The programs for network namespaces.
pub(super) const STEER_POD: &str = "signet_steer_pod";
/// For the one that the node's workloads share.
pub(super) const STEER_NODE: &str = "signet_steer_node";

/// For the devices of a namespace.
pub(super) const HOLD: &str = "signet_hold";

/// The tracepoints. They belong to the process: nobody reads the events of a dead one.
const TRACEPOINTS: [(&str, &str); 2] =
    [("signet_cgroup_mkdir", "cgroup_mkdir"), ("signet_cgroup_rmdir", "cgroup_rmdir")];

/// Puts one program into the kernel, if it is not there yet, and returns it.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, KernelError> {
    let program = find(ebpf, name)?;
    let loaded = match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSkb(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        _ => return Err(KernelError::MissingPart { kind: "program", name }),
    };
    let loaded = match loaded {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        other => other,
    };
    let fd = loaded.and_then(|()| Ok(program.fd()?.as_fd().try_clone_to_owned()?));
    fd.map_err(|e| verifier::refusal(name, &e))
}

/// Loads the tracepoints and attaches them until `ebpf` is dropped.
pub(super) fn trace_cgroups(ebpf: &mut Ebpf) -> Result<(), KernelError> {
    for (name, tracepoint) in TRACEPOINTS {
        let program: &mut RawTracePoint =
            find(ebpf, name)?.try_into().map_err(|e: ProgramError| verifier::refusal(name, &e))?;
        let attached = program.load().and_then(|()| program.attach(tracepoint));
        attached.map_err(|e| verifier::refusal(name, &e))?;
    }
    Ok(())
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    ebpf.program_mut(name).ok_or(KernelError::MissingPart { kind: "program", name })
}
