//! Tunnels at rest, of the whole node, for the next application connection between the same two workloads.
//!
//! A tunnel is found by the two workloads, the address and the SVID it was made with, as HBONE's connections are, so
//! neither a reused pod IP nor a rotated key ever meets an old one; each worker has its own; one whose proof has expired is
//! given to nobody. The last one that came is given away first, so that those which are too many grow old and go. All of them
//! are watched by one task, which hears of a peer that closes or leaves: nothing waits at a tunnel that nobody uses.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::pki_types::UnixTime;
use signet_identity::SpiffeId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::tunnel::Tunnel;
use crate::addr::WorkloadUid;
use crate::mtls::Authenticated;
use crate::proxy::hbone::PoolKey;
use crate::workers::WorkerId;

/// Native tunnels at rest. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// What tunnels must have in common to serve each other's connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    pub(crate) key: PoolKey,
    /// Serial number of the client's SVID.
    pub(crate) svid: Arc<str>,
    /// Whose event loop has the tunnel's socket.
    pub(crate) worker: WorkerId,
}

/// A tunnel, and what its handshake has proved.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) tunnel: Tunnel,
    pub(crate) peer: Authenticated,
}

#[derive(Default)]
struct Shared {
    /// Written by connections as they begin and end, by the watcher, and by `forget`. Never held across an await.
    slots: Mutex<HashMap<Slot, Vec<Resting>>>,
    bell: Arc<Bell>,
    watcher: OnceLock<AbortOnDropHandle<()>>,
}

struct Resting {
    proven: Proven,
    since: Instant,
}

/// Rung by the runtime when something happens at any tunnel at rest.
#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.notify_one();
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A tunnel at rest whose peer is one of `expected`, still.
    pub(crate) fn take(&self, slot: &Slot, expected: &[SpiffeId]) -> Option<Proven> {
        let now = UnixTime::now();
        loop {
            let Proven { tunnel, peer } = self.shared.slots.lock().get_mut(slot)?.pop()?.proven;
            let disturbed = tunnel.poll_disturbed(&mut Context::from_waker(Waker::noop())).is_ready();
            if !disturbed && expected.contains(&peer.peer) && !peer.is_expired(now) {
                return Some(Proven { tunnel, peer });
            }
        }
    }

    /// Keeps a tunnel for the next connection, if it can have one.
    pub(crate) fn put(&self, slot: Slot, proven: Proven) {
        let waker = Waker::from(Arc::clone(&self.shared.bell));
        let Proven { tunnel, .. } = &proven;
        if !tunnel.is_at_rest()
            || tunnel.peer_leaves()
            || tunnel.poll_disturbed(&mut Context::from_waker(&waker)).is_ready()
        {
            return;
        }
        self.watch();
        let mut slots = self.shared.slots.lock();
        let resting = slots.entry(slot).or_default();
        // Beyond the bound the oldest goes, after the lock.
        let oldest = (resting.len() >= MAX_RESTING).then(|| resting.remove(0));
        resting.push(Resting { proven, since: Instant::now() });
        drop(slots);
        drop(oldest);
    }

    /// Drops every tunnel from or to a workload (it is gone, or its identity changed).
    pub fn forget(&self, workload: &WorkloadUid) {
        let forgotten: Vec<_> =
            self.shared.slots.lock().extract_if(|slot, _| slot.key.concerns(workload)).collect();
        drop(forgotten);
    }

    fn watch(&self) {
        self.shared.watcher.get_or_init(|| {
            let (shared, bell) = (Arc::downgrade(&self.shared), Arc::clone(&self.shared.bell));
            AbortOnDropHandle::new(tokio::spawn(watch(shared, bell)))
        });
    }

    #[cfg(test)]
    pub(in crate::proxy) fn resting(&self) -> usize {
        self.shared.slots.lock().values().map(Vec::len).sum()
    }

    /// Nobody ends the tunnels at rest any more; resolves when the peer has ended one.
    #[cfg(test)]
    pub(in crate::proxy) async fn vanish(&self) {
        let all: Vec<_> = self.shared.slots.lock().drain().flat_map(|(_, resting)| resting).collect();
        std::future::poll_fn(|cx| all[0].proven.tunnel.poll_disturbed(cx)).await;
    }
}

/// Drops tunnels that were disturbed or have rested too long.
async fn watch(shared: Weak<Shared>, bell: Arc<Bell>) {
    loop {
        // Late by so much, an idle tunnel ends.
        let _ = timeout(IDLE / 10, bell.0.notified()).await;
        let Some(shared) = shared.upgrade() else { return };
        let waker = Waker::from(Arc::clone(&bell));
        let gone = shared.sweep(&mut Context::from_waker(&waker));
        drop(gone);
    }
}

impl Shared {
    fn sweep(&self, cx: &mut Context<'_>) -> Vec<Resting> {
        let (now, mut gone) = (Instant::now(), Vec::new());
        self.slots.lock().retain(|_, resting| {
            gone.extend(resting.extract_if(.., |one| {
                one.proven.tunnel.poll_disturbed(cx).is_ready() || now.duration_since(one.since) >= IDLE
            }));
            !resting.is_empty()
        });
        gone
    }
}

/// How long a tunnel without a connection is kept (docs/native.md; as HBONE's).
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// How long a server waits for the next request of a tunnel whose client, if it were there, would have ended it: a pod whose
/// network went before its engine heard of that says no goodbye.
pub(crate) const ABANDONED: Duration = Duration::from_secs(90);

/// Tunnels at rest between two workloads. Each is a socket and 1 KiB, at both ends.
pub(super) const MAX_RESTING: usize = 256;
