//! Which network namespaces are steered: one sockmap, one copy of the program and one link each, all pinned by cookie.
//!
//! `sk_lookup`'s context does not say which namespace it runs in, so each needs a program that knows its own sockmap.
//! The object is read again for each, which costs a few milliseconds. A link dies with its namespace; its pins stay until
//! [`unsteer`].

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use aya::Ebpf;
use aya::maps::{Array, MapData, SockMap};
use signet_common::abi::{LISTENER_HBONE, LISTENER_PLAINTEXT};

use super::SteeredListeners;
use super::error::KernelError;
use super::hold;
use super::link::{self, AttachType, Target};
use super::object::{Loader, Pins, list};
use super::programs::{self, STEER_NODE, STEER_POD};
use crate::addr::NetnsCookie;

/// A namespace's own copy of the program and its sockmap, before there are listeners: while there are, and the sockmap is empty,
/// a predecessor's program refuses what comes.
pub struct Steering {
    cookie: NetnsCookie,
    /// The namespace is the node's.
    pub(super) host: bool,
    ebpf: Ebpf,
    program: OwnedFd,
}

/// Loads what a namespace needs.
pub(super) fn prepare(
    pins: &Pins,
    loader: &mut Loader,
    cookie: NetnsCookie,
    host: bool,
) -> Result<Steering, KernelError> {
    let mut ebpf = loader.load_with(&sockmap_pin(pins, cookie))?;
    name(&mut ebpf, cookie)?;
    let program = programs::load(&mut ebpf, if host { STEER_NODE } else { STEER_POD })?;
    Ok(Steering { cookie, host, ebpf, program })
}

/// Fills the namespace's sockmap, then puts the program behind its link.
pub(super) fn steer(
    pins: &Pins,
    netns: BorrowedFd<'_>,
    steering: &mut Steering,
    to: SteeredListeners<'_>,
) -> Result<(), KernelError> {
    fill(&mut steering.ebpf, to)?;
    let pin = link_pin(pins, steering.cookie);
    link::put(&pin, steering.program.as_fd(), Target::Open(netns), AttachType::SkLookup)
}

/// Removes the link, then the sockmap: while the link is there, it must not find an empty map and drop.
pub(super) fn unsteer(pins: &Pins, cookie: NetnsCookie) -> Result<(), KernelError> {
    link::remove(&link_pin(pins, cookie))?;
    let sockmap = sockmap_pin(pins, cookie);
    match fs::remove_file(&sockmap) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(KernelError::file("remove", sockmap)(e)),
        _ => Ok(()),
    }
}

/// The namespaces with a pinned link, of whichever of the two programs, or sockmap.
pub(super) fn steered(pins: &Pins) -> Vec<NetnsCookie> {
    let names = |dir, prefix| {
        // A directory that cannot be read has nothing that could be removed either.
        let entries = list(dir).unwrap_or_default();
        entries.into_iter().filter_map(move |entry| {
            let cookie = entry.file_name()?.to_str()?.strip_prefix(prefix)?.split('-').next()?;
            Some(NetnsCookie(cookie.parse().ok()?))
        })
    };
    let links = pins.links();
    let linked = names(&links, LINK_PREFIX).chain(names(&links, hold::PREFIX));
    let mut all: Vec<_> = linked.chain(names(&pins.namespaces(), "")).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn fill(ebpf: &mut Ebpf, to: SteeredListeners<'_>) -> Result<(), KernelError> {
    let missing = KernelError::MissingPart { kind: "map", name: "LISTENERS" };
    let map = ebpf.map_mut("LISTENERS").ok_or(missing)?;
    let mut sockmap: SockMap<&mut MapData> = map.try_into().map_err(KernelError::map("open", "LISTENERS"))?;
    for (index, listener) in [(LISTENER_PLAINTEXT, to.plaintext), (LISTENER_HBONE, to.hbone)] {
        sockmap
            .set(index, &listener.as_raw_fd(), 0)
            .map_err(KernelError::map("put a listener into", "LISTENERS"))?;
    }
    Ok(())
}

/// Tells the program which namespace it is in: flows to servers of another one are let in nowhere else.
fn name(ebpf: &mut Ebpf, cookie: NetnsCookie) -> Result<(), KernelError> {
    let map = ebpf.map_mut("NETNS").ok_or(KernelError::MissingPart { kind: "map", name: "NETNS" })?;
    let mut netns: Array<&mut MapData, u64> = map.try_into().map_err(KernelError::map("open", "NETNS"))?;
    netns.set(0, cookie.0, 0).map_err(KernelError::map("write", "NETNS"))
}

fn sockmap_pin(pins: &Pins, cookie: NetnsCookie) -> PathBuf {
    pins.namespaces().join(cookie.to_string())
}

fn link_pin(pins: &Pins, cookie: NetnsCookie) -> PathBuf {
    pins.links().join(format!("{LINK_PREFIX}{cookie}"))
}

const LINK_PREFIX: &str = "netns-";
