//! Live direct flows: who they are, by the kernel's records, and how many bytes they have carried, by `tcp_info`.
//!
//! Everything is read when somebody asks. The map changes meanwhile: an iteration that meets an entry's end begins anew,
//! so each is taken once, and an end to the steps is set.

use std::collections::HashMap as Table;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, MapData, MapError};
use parking_lot::Mutex;
use signet_common::abi::Flow;
use signet_common::direct::{Direct as Record, DirectEvent, MAX_DIRECT, Progress};
use tracing::debug;

use super::Namespaces;
use super::flow_key;
use crate::addr::{CgroupId, NetnsCookie, OriginalDst};
use crate::kernel::clock;
use crate::kernel::diag::{
    Diag, FAMILIES, INET_DIAG_INFO, LIVE, Listed, SocketId, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_FIN_WAIT2,
    TCP_LAST_ACK, TCP_SYN_SENT, attribute, id_of, read_u64,
};
use crate::kernel::error::KernelError;
use crate::kernel::maps::{absent_is_fine, ip};
use crate::kernel::object::Pins;

/// A connection that goes past the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFlow {
    /// The client workload's cgroup.
    pub client: CgroupId,
    /// The server workload's cgroup.
    pub server: CgroupId,
    /// The client's end.
    pub source: SocketAddr,
    /// The server's end.
    pub destination: SocketAddr,
    /// What the client asked for: the destination, or a Service's address.
    pub asked: OriginalDst,
    /// The client's network namespace.
    pub netns: NetnsCookie,
    /// The cookie of the client's socket, unique while the kernel runs.
    pub socket: u64,
    /// How long ago its SYN left.
    pub age: Duration,
    /// The server has answered.
    pub established: bool,
}

/// Bytes of the two applications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectBytes {
    /// Client to server, as far as acknowledged.
    pub sent: u64,
    /// Server to client.
    pub received: u64,
}

/// The end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectEnd {
    /// Which.
    pub flow: DirectFlow,
    /// What it has carried.
    pub bytes: DirectBytes,
    /// For how long.
    pub duration: Duration,
}

/// A handle to the live flows. Cheap to clone, shared with nobody but the pins and the namespaces.
#[derive(Clone)]
pub struct DirectFlows {
    records: Arc<Mutex<HashMap<MapData, Flow, Record>>>,
    namespaces: Namespaces,
}

impl DirectFlows {
    pub(super) fn open(pins: &Pins, namespaces: Namespaces) -> Result<Self, KernelError> {
        Ok(Self { records: Arc::new(Mutex::new(pins.open("DIRECT")?)), namespaces })
    }

    pub(in crate::kernel) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Every live flow.
    ///
    /// # Errors
    /// The map cannot be read, or changes faster than it can be.
    pub fn live(&self) -> Result<Vec<DirectFlow>, KernelError> {
        let error = KernelError::map("list", "DIRECT");
        let (mut seen, mut flows) = (HashSet::new(), Vec::new());
        for (step, entry) in self.records.lock().iter().enumerate() {
            match entry {
                Ok((key, record)) if seen.insert(record.socket) => flows.push(flow(&key, &record)),
                Ok(_) | Err(MapError::KeyNotFound) if step < MOST_STEPS => {}
                Ok(_) => return Err(error(MapError::KeyNotFound)),
                Err(e) => return Err(error(e)),
            }
        }
        Ok(flows)
    }

    /// How much each of these flows has carried until now, by its socket's cookie. One that has ended meanwhile, or whose
    /// namespace is not served, is missing.
    #[must_use]
    pub fn bytes(&self, flows: &[DirectFlow]) -> Table<u64, DirectBytes> {
        let wanted: HashSet<u64> = flows.iter().map(|flow| flow.socket).collect();
        let namespaces: HashSet<NetnsCookie> = flows.iter().map(|flow| flow.netns).collect();
        let mut bytes = Table::new();
        for netns in namespaces {
            let listed = self.namespaces.ask(netns, |diag| add_bytes(diag, &wanted, &mut bytes));
            if let Err(error) = listed {
                debug!(%netns, %error, "cannot list sockets");
            }
        }
        bytes
    }

    /// Whether there is one between these two ends.
    pub(in crate::kernel) fn is_live(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<bool, MapError> {
        let key = super::super::maps::flow_key(NetnsCookie(0), source, destination);
        match self.records.lock().get(&key, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Ends a flow. False where its socket has ended; its record is gone then.
    pub(super) fn destroy(&self, flow: &DirectFlow) -> io::Result<bool> {
        let mut id =
            SocketId { local: flow.source, remote: flow.destination, device: 0, cookie: flow.socket };
        let destroyed = self.namespaces.ask(flow.netns, |diag| {
            if diag.destroy(&id)? {
                return Ok(true);
            }
            // The kernel looks a socket that is bound to a device up by that device only, and its owner may bind it any time.
            match device(diag, &id)? {
                Some(device) => {
                    id.device = device;
                    diag.destroy(&id)
                }
                None => Ok(false),
            }
        })?;
        if !destroyed {
            let removed = self.remove(flow);
            removed.map_err(io::Error::other)?;
        }
        Ok(destroyed)
    }

    /// A record that its own socket cannot take back any more; a successor's of the same tuple stays.
    fn remove(&self, flow: &DirectFlow) -> Result<(), MapError> {
        let mut records = self.records.lock();
        let key = flow_key(flow);
        match records.get(&key, 0) {
            Ok(record) if record.socket == flow.socket => absent_is_fine(records.remove(&key)),
            Ok(_) | Err(MapError::KeyNotFound) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A flow as the maps carry it.
pub(super) fn flow(key: &Flow, record: &Record) -> DirectFlow {
    DirectFlow {
        client: CgroupId(record.origin.cgroup),
        server: CgroupId(record.permit.server),
        source: SocketAddr::new(ip(key.local), key.local_port),
        destination: SocketAddr::new(ip(key.remote), key.remote_port),
        asked: OriginalDst::new(SocketAddr::new(ip(record.origin.destination), record.origin.port)),
        netns: NetnsCookie(record.netns),
        socket: record.socket,
        age: Duration::from_nanos(clock::nanoseconds().saturating_sub(record.started)),
        established: record.established != 0,
    }
}

/// The end that an event tells of.
pub(super) fn end(event: &DirectEvent) -> DirectEnd {
    DirectEnd {
        flow: flow(&event.flow, &event.record),
        bytes: DirectBytes { sent: event.sent, received: event.received },
        duration: Duration::from_nanos(event.at.saturating_sub(event.record.started)),
    }
}

fn device(diag: &Diag, id: &SocketId) -> io::Result<Option<u32>> {
    let mut found = None;
    for family in FAMILIES {
        diag.list(Listed { family, states: LIVE, attributes: 0 }, |message| {
            found = found.or(id_of(message).filter(|seen| seen.cookie == id.cookie).map(|seen| seen.device));
        })?;
    }
    Ok(found)
}

fn add_bytes(diag: &Diag, wanted: &HashSet<u64>, bytes: &mut Table<u64, DirectBytes>) -> io::Result<()> {
    for family in FAMILIES {
        let listed = Listed { family, states: LIVE, attributes: 1 << (INET_DIAG_INFO - 1) };
        diag.list(listed, |message| {
            if let Some(id) = id_of(message).filter(|id| wanted.contains(&id.cookie)) {
                bytes.extend(carried(message).map(|carried| (id.cookie, carried)));
            }
        })?;
    }
    Ok(())
}

/// The bytes in `struct tcp_info` (include/uapi/linux/tcp.h).
fn carried(message: &[u8]) -> Option<DirectBytes> {
    let state = *message.get(1)?;
    let info = attribute(message, INET_DIAG_INFO)?;
    let counter = |at| read_u64(info, at);
    let progress = Progress {
        acknowledged: counter(TCPI_BYTES_ACKED)?,
        received: counter(TCPI_BYTES_RECEIVED)?,
        is_established: state != TCP_SYN_SENT,
        is_fin_acknowledged: state == TCP_FIN_WAIT2,
        is_fin_received: matches!(state, TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING),
    };
    let (sent, received) = progress.payload();
    Some(DirectBytes { sent, received })
}

/// What an iteration may take before it is given up.
const MOST_STEPS: usize = 4 * MAX_DIRECT;
// include/uapi/linux/tcp.h.
const TCPI_BYTES_ACKED: usize = 120;
const TCPI_BYTES_RECEIVED: usize = 128;
