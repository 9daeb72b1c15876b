//! What can go wrong at the kernel's door, sorted by who has to act.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::addr::{CgroupId, NetnsCookie};

/// Why the kernel side could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    // Whoever built the binary.
    /// There is nothing to load.
    #[error("this binary was built without the eBPF object: build it with `cargo xtask build`")]
    NoObject,
    /// The object lacks something this binary expects.
    #[error("the embedded eBPF object has no {kind} {name}: rebuild both with `cargo xtask build`")]
    MissingPart {
        /// `program` or `map`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },

    // Whoever runs the machine.
    /// No cgroup2 file system is mounted.
    #[error(
        "no cgroup2 file system is mounted: boot the node with it (`systemd.unified_cgroup_hierarchy=1` on the kernel's \
         command line), or mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`)"
    )]
    NoCgroup2,
    /// The cgroup root is elsewhere.
    #[error("the cgroup root {} is not below the cgroup2 mount {}: correct capture.cgroupRoot", root.display(), mount.display())]
    OutsideCgroup2 {
        /// `capture.cgroupRoot`.
        root: PathBuf,
        /// Where cgroup2 is mounted.
        mount: PathBuf,
    },
    /// Another process is the engine of this instance.
    #[error("another signetd runs with the pins {path}: stop it first, or give `instance` another name", path = path.display())]
    InstanceInUse {
        /// The instance's pins.
        path: PathBuf,
    },
    /// bpffs cannot be mounted.
    #[error("cannot mount bpffs at {path}: {source}; mount it there, or run with CAP_SYS_ADMIN", path = path.display())]
    MountBpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no bpffs, and it is the node's to mount.
    #[error(
        "no bpffs at {path}, and capture.mountBpffs is off: mount it on the node (`mount -t bpf bpf /sys/fs/bpf`); a \
         container's own would end with it, and the capture too",
        path = path.display()
    )]
    NoBpffs {
        /// Where.
        path: PathBuf,
    },
    /// The object does not load.
    #[error("cannot load the eBPF object: {0}; `signet check` says what this kernel lacks")]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier or the kernel refused a program.
    #[error("cannot load the eBPF program {name}: {reason}; `signet check` says what this kernel lacks")]
    Program {
        /// Which.
        name: &'static str,
        /// Why, with the verifier's verdict.
        reason: String,
    },
    /// A link could not be made, replaced or pinned.
    #[error("cannot {action} the link {path}: {source}", path = path.display())]
    Link {
        /// What was tried.
        action: &'static str,
        /// The link's pin.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory could not be used.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    // Load, or the kernel.
    /// A map refused an operation.
    #[error("cannot {action} the map {map}: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// On which map.
        map: &'static str,
        /// Why.
        source: Box<aya::maps::MapError>,
    },
    /// The kernel's list of listening sockets could not be read.
    #[error("cannot list the listening sockets of network namespace {netns}: {source}")]
    SocketList {
        /// Which namespace.
        netns: NetnsCookie,
        /// Why.
        source: io::Error,
    },
    /// The devices of a network namespace could not be listed.
    #[error("cannot list the devices of network namespace {netns}: {source}")]
    Devices {
        /// Which namespace.
        netns: NetnsCookie,
        /// Why.
        source: io::Error,
    },

    /// A network namespace could not be kept open.
    #[error("cannot keep network namespace {netns} open: {source}; raise the limit of open files")]
    Namespace {
        /// Which namespace.
        netns: NetnsCookie,
        /// Why.
        source: io::Error,
    },

    // Whoever calls.
    /// The workload has too many addresses.
    #[error("cgroup {cgroup} has more than {max} addresses (the first not kept is {address})", max = signet_common::abi::MAX_ADDRESSES)]
    TooManyAddresses {
        /// The workload.
        cgroup: CgroupId,
        /// The first that did not fit.
        address: IpAddr,
    },
}

impl KernelError {
    /// A file or directory is not there, and nothing else is wrong.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Wraps a map's refusal.
    pub(super) fn map(action: &'static str, map: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map { action, map, source: Box::new(source) }
    }

    /// Wraps a file's refusal.
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
