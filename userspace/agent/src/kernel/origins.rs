//! The proxies' view of the kernel's records: read-only, shared, one system call per question.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::warn;

use super::error::KernelError;
use super::maps::{Flows, Ports, flow_key, ip, port_key};
use super::object::Pins;
use crate::addr::{CgroupId, NetnsCookie, OriginalDst};

/// What the kernel recorded about a flow's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The enrolled cgroup the client belongs to (the workload's, not the nested one).
    pub cgroup: CgroupId,
    /// Where it wanted to go.
    pub destination: OriginalDst,
    /// The endpoint that the kernel has chosen, where that is a Service.
    pub choice: Option<SocketAddr>,
}

/// A cheap handle to read origins, for the proxies.
#[derive(Clone)]
pub struct Origins {
    maps: Arc<Maps>,
}

struct Maps {
    flows: Flows,
    ports: Ports,
}

impl Origins {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self { maps: Arc::new(Maps { flows: pins.open("FLOWS")?, ports: pins.open("PORTS")? }) })
    }

    /// The record of an outbound flow that reached the capture listener: `client` is the app's end, `listener` the engine's
    /// (127.0.0.1:15001). `None` means nobody was redirected: refuse.
    #[must_use]
    pub fn lookup(&self, netns: NetnsCookie, client: SocketAddr, listener: SocketAddr) -> Option<Origin> {
        let origin = found("FLOWS", self.maps.flows.get(&flow_key(netns, client, listener), 0))?;
        let destination = OriginalDst::new(SocketAddr::new(ip(origin.destination), origin.port));
        let choice = SocketAddr::new(ip(origin.choice), origin.choice_port);
        let choice = Some(choice).filter(|choice| choice.port() != 0);
        Some(Origin { cgroup: CgroupId(origin.cgroup), destination, choice })
    }

    /// Which enrolled cgroup owns a listening port in a shared netns (`post_bind`). `None` also where sockets of several
    /// workloads listen there: nobody can say whose a connection is.
    #[must_use]
    pub fn port_owner(&self, netns: NetnsCookie, port: u16) -> Option<CgroupId> {
        let owner = found("PORTS", self.maps.ports.get(&port_key(netns, port), 0))?;
        owner.sole().map(CgroupId)
    }
}

/// A map that cannot be read has no record: the caller refuses, and the log says why.
fn found<T>(map: &'static str, result: Result<T, aya::maps::MapError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(aya::maps::MapError::KeyNotFound) => None,
        Err(error) => {
            warn!(map, %error, "cannot look up");
            None
        }
    }
}
