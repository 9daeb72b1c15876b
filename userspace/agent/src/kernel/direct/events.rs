//! What the programs tell of direct flows: ends to the proxies, what must be looked at to `reconcile`.
//!
//! One task reads the ring and ends with [`super::super::Kernel`] or with a channel's receiver. At thousands of short
//! connections a second a wake-up for each would cost more than they do, so after each reading the task rests a moment:
//! the kernel wakes it only where it has read all before, and what comes meanwhile waits in the ring.

use std::io;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use signet_common::direct::{DIRECT_ENDED, DIRECT_STALE, DIRECT_STRAY, DirectEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::warn;

use super::flows::{DirectEnd, end};
use crate::kernel::KernelEvent;
use crate::kernel::error::KernelError;
use crate::kernel::object::Pins;

/// Reads the ring.
pub(in crate::kernel) struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
    ended: mpsc::Sender<Vec<DirectEnd>>,
    other: mpsc::Sender<KernelEvent>,
}

/// What one record says.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Ended(DirectEnd),
    Other(KernelEvent),
}

impl Reader {
    /// A reader, and where the ends come out; what must be looked at goes to `other`.
    pub(in crate::kernel) fn open(
        pins: &Pins,
        other: mpsc::Sender<KernelEvent>,
    ) -> Result<(Self, mpsc::Receiver<Vec<DirectEnd>>), KernelError> {
        let ring = pins.open("DIRECT_EVENTS")?;
        // SAFETY: the map keeps its descriptor until it is dropped, and the `AsyncFd` owns the map.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(io::Error::from)
            .map_err(KernelError::file("wait for events on", pins.map("DIRECT_EVENTS")))?;
        let (ended, ends) = mpsc::channel(WAITING);
        Ok((Self { ring, ended, other }, ends))
    }

    /// Reads until nobody listens.
    pub(in crate::kernel) async fn run(mut self) {
        while self.batch().await.is_some() {
            tokio::time::sleep(REST).await;
        }
    }

    async fn batch(&mut self) -> Option<()> {
        let mut ready = match self.ring.readable_mut().await {
            Ok(ready) => ready,
            Err(error) => {
                warn!(%error, "cannot wait for the ends of direct flows; they are missing in metrics and access log");
                return None;
            }
        };
        let (mut ends, ring) = (Vec::new(), ready.get_inner_mut());
        let mut others = Vec::new();
        while let Some(record) = ring.next() {
            match parse(&record) {
                Some(Told::Ended(end)) => ends.push(end),
                Some(Told::Other(event)) => others.push(event),
                None => {}
            }
        }
        ready.clear_ready();
        for event in others {
            self.other.send(event).await.ok()?;
        }
        if ends.is_empty() { Some(()) } else { self.ended.send(ends).await.ok() }
    }
}

fn parse(record: &[u8]) -> Option<Told> {
    let bytes = record.get(..size_of::<DirectEvent>())?;
    // SAFETY: as many bytes as the type has, which is `repr(C)` of integers alone without padding (asserted beside it), so
    // every bit pattern is a value; unaligned, because a slice promises nothing.
    let event = unsafe { bytes.as_ptr().cast::<DirectEvent>().read_unaligned() };
    let end = end(&event);
    match event.kind {
        DIRECT_ENDED => Some(Told::Ended(end)),
        DIRECT_STALE => Some(Told::Other(KernelEvent::DirectStale(end.flow))),
        DIRECT_STRAY => Some(Told::Other(KernelEvent::DirectStray(end.flow))),
        _ => None,
    }
}

/// Between two readings. The ring has room for six times as long at 20,000 connections a second.
const REST: Duration = Duration::from_millis(20);
/// Batches that wait outside of the ring.
const WAITING: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_record_is_read_out_of_bounds(bytes: Vec<u8>, kind in 0u8..5) {
            let _ = parse(&bytes);
            let mut whole = bytes;
            whole.resize(size_of::<DirectEvent>(), 0);
            whole[std::mem::offset_of!(DirectEvent, kind)] = kind;
            prop_assert_eq!(parse(&whole).is_some(), (1..=3).contains(&kind) && whole[185..188] == [0; 3]);
        }
    }
}
