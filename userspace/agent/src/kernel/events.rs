//! What the kernel tells on its own: cgroups made and removed, connects denied.
//!
//! One task reads the ring and ends with [`super::Kernel`] or with the channel's receiver. The channel is bounded: while
//! `reconcile` is busy the events wait in the ring, and what finds no room there is counted by the programs and becomes
//! one [`KernelEvent::Overrun`].

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use signet_common::abi::{EVENT_AWAITED, EVENT_CGROUP_GONE, EVENT_CGROUP_MADE, Event, PATH_TRUNCATED};
use signet_common::counter;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::warn;

use super::direct::DirectFlow;
use super::error::KernelError;
use super::object::Pins;
use crate::addr::CgroupId;

/// What the kernel tells on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A cgroup was made: path relative to the cgroup2 mount.
    CgroupMade(PathBuf),
    /// A cgroup was removed.
    CgroupGone(PathBuf),
    /// A connect of an unknown cgroup was denied, or one of a not-ready cgroup waits: look at it now.
    Awaited(CgroupId),
    /// Events were lost: walk the tree again.
    Overrun,
    /// A direct flow began under a permit that has been taken back meanwhile: ask policy about it.
    DirectStale(DirectFlow),
    /// A direct flow was answered by somebody else than its server, and can send nothing: end it.
    DirectStray(DirectFlow),
}

/// Reads the ring.
pub(super) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    counters: PerCpuArray<MapData, u64>,
    lost: u64,
    /// The cgroup root, as the kernel's paths begin.
    root: PathBuf,
    to: mpsc::Sender<KernelEvent>,
}

impl Reader {
    /// A reader of events below `root` (relative to the cgroup2 mount).
    pub(super) fn open(
        pins: &Pins,
        root: PathBuf,
        to: mpsc::Sender<KernelEvent>,
    ) -> Result<Self, KernelError> {
        let ring = pins.open("EVENTS")?;
        // SAFETY: the map keeps its descriptor until it is dropped, and the `AsyncFd` owns the map.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(io::Error::from)
            .map_err(KernelError::file("wait for events on", pins.map("EVENTS")))?;
        let counters = pins.open("COUNTERS")?;
        let lost = lost(&counters);
        Ok(Self { ring, counters, lost, root, to })
    }

    /// Reads until nobody listens.
    pub(super) async fn run(mut self) {
        while self.batch().await.is_some() {}
    }

    async fn batch(&mut self) -> Option<()> {
        let mut ready = match self.ring.readable_mut().await {
            Ok(ready) => ready,
            Err(error) => {
                warn!(%error, "cannot wait for kernel events; new cgroups are seen at their first connect only");
                return None;
            }
        };
        let ring = ready.get_inner_mut();
        while let Some(event) = next(ring, &self.root) {
            if let Some(event) = event {
                self.to.send(event).await.ok()?;
            }
        }
        ready.clear_ready();
        let lost = lost(&self.counters);
        if lost != self.lost {
            self.lost = lost;
            self.to.send(KernelEvent::Overrun).await.ok()?;
        }
        Some(())
    }
}

/// The next record; `Some(None)` for one that is of no interest.
fn next(ring: &mut RingBuf<MapData>, root: &Path) -> Option<Option<KernelEvent>> {
    ring.next().map(|record| parse(&record, root))
}

fn lost(counters: &PerCpuArray<MapData, u64>) -> u64 {
    counters.get(&counter::EVENTS_LOST, 0).map_or(0, |per_cpu| per_cpu.iter().sum())
}

fn parse(record: &[u8], root: &Path) -> Option<KernelEvent> {
    let word = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let made = match word(std::mem::offset_of!(Event, kind))? {
        EVENT_AWAITED => {
            let at = std::mem::offset_of!(Event, cgroup);
            let id = u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?);
            return Some(KernelEvent::Awaited(CgroupId(id)));
        }
        EVENT_CGROUP_MADE => true,
        EVENT_CGROUP_GONE => false,
        _ => return None,
    };
    let length = word(std::mem::offset_of!(Event, path_length))?;
    if length == PATH_TRUNCATED {
        return Some(KernelEvent::Overrun);
    }
    let at = std::mem::offset_of!(Event, path);
    let path = Path::new(OsStr::from_bytes(record.get(at..at.checked_add(length as usize)?)?));
    let path = path.strip_prefix("/").ok()?;
    if !path.starts_with(root) {
        return None;
    }
    let path = path.to_owned();
    Some(if made { KernelEvent::CgroupMade(path) } else { KernelEvent::CgroupGone(path) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u32, length: u32, cgroup: u64, path: &str) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(length.to_ne_bytes());
        bytes.extend(cgroup.to_ne_bytes());
        bytes.extend(path.as_bytes());
        bytes.resize(size_of::<Event>(), 0xaa);
        bytes
    }

    #[test]
    fn a_cgroup_below_the_root_is_told_relative_to_the_mount() {
        let made = record(EVENT_CGROUP_MADE, 10, 0, "/pods/pod1");
        let expected = KernelEvent::CgroupMade("pods/pod1".into());
        assert_eq!(parse(&made, Path::new("pods")), Some(expected.clone()));
        assert_eq!(parse(&made, Path::new("")), Some(expected));
    }

    #[test]
    fn a_cgroup_of_another_engine_is_not_told() {
        let gone = record(EVENT_CGROUP_GONE, 11, 0, "/pods2/pod1");
        assert_eq!(parse(&gone, Path::new("pods")), None);
    }

    #[test]
    fn a_path_that_did_not_fit_asks_for_a_walk() {
        let made = record(EVENT_CGROUP_MADE, PATH_TRUNCATED, 0, "");
        assert_eq!(parse(&made, Path::new("")), Some(KernelEvent::Overrun));
    }

    #[test]
    fn a_denied_connect_names_its_cgroup() {
        let denied = record(EVENT_AWAITED, 0, 42, "");
        assert_eq!(parse(&denied, Path::new("x")), Some(KernelEvent::Awaited(CgroupId(42))));
    }

    proptest! {
        #[test]
        fn no_record_is_read_out_of_bounds(bytes: Vec<u8>, kind in 0u32..4, length: u32) {
            let _ = parse(&bytes, Path::new(""));
            let mut long = record(kind, length, 1, "/a");
            long.extend(bytes);
            let _ = parse(&long, Path::new(""));
        }
    }
}
