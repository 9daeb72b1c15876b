//! Who talks with whom, as far as it is known: learnt step by step, read by metrics, access log and views.
//!
//! Nothing is decided by it. What is proven (a SPIFFE ID from a handshake) and what is only looked up or claimed (a
//! workload by address, baggage) are different fields, so that a log line cannot take one for the other.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use signet_identity::SpiffeId;

use super::baggage::Baggage;
use crate::addr::WorkloadUid;
use crate::policy::Shadow;
use crate::state::{Service, Workload};

/// Which way a connection goes, seen from the local workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The local workload is the client.
    Outbound,
    /// The local workload is the server.
    Inbound,
}

/// How the bytes travel between the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// mTLS, in an HBONE tunnel.
    Hbone,
    /// mTLS, in a native tunnel.
    Native,
    /// Inbound, in clear, from outside the mesh.
    Plaintext,
    /// Outbound, in clear, to a destination outside the mesh.
    Passthrough,
    /// Between two workloads of this node, authorised in the kernel and past the engine.
    Direct,
    /// In clear, open since before the workload was captured.
    Earlier,
}

impl Path {
    /// Between two engines.
    #[must_use]
    pub(crate) fn is_tunnel(self) -> bool {
        matches!(self, Self::Hbone | Self::Native)
    }
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Party {
    /// Its address on the wire.
    pub(crate) address: SocketAddr,
    /// The workload, where the address tells it.
    pub(crate) workload: Option<Arc<Workload>>,
    /// Its proven SPIFFE ID.
    pub(crate) identity: Option<SpiffeId>,
    /// What it says of itself; the tunnels of one HBONE connection share it.
    pub(crate) baggage: Option<Arc<Baggage>>,
}

/// Both ends, and what lies between them.
#[derive(Clone, Debug)]
pub(crate) struct Parties {
    /// Which way.
    pub(crate) direction: Direction,
    /// How; `None` until that is decided.
    pub(crate) path: Option<Path>,
    /// The client.
    pub(crate) source: Party,
    /// The server. Its address is the one on the wire: port 15008 where the path is HBONE.
    pub(crate) destination: Party,
    /// The application's address (inside the tunnel, where there is one); the tunnel's `:authority`.
    pub(crate) application: Option<SocketAddr>,
    /// The Service the client asked for.
    pub(crate) service: Option<Arc<Service>>,
    /// The ALLOW policy that let it in.
    pub(crate) policy: Option<Arc<str>>,
    /// What policies in dry-run would have said.
    pub(crate) shadow: Shadow,
}

impl Party {
    /// An end of which only the address is known.
    #[must_use]
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self { address, workload: None, identity: None, baggage: None }
    }

    /// The pod's name, or what its baggage calls the workload.
    #[must_use]
    pub(crate) fn name(&self) -> Option<&str> {
        let told = || self.baggage.as_ref()?.workload_name.as_deref();
        self.workload.as_ref().map(|w| &*w.name).or_else(told)
    }

    /// The namespace.
    #[must_use]
    pub(crate) fn namespace(&self) -> Option<&str> {
        let told = || self.baggage.as_ref()?.namespace.as_deref();
        self.workload.as_ref().map(|w| &*w.namespace).or_else(told)
    }

    /// The cluster.
    #[must_use]
    pub(crate) fn cluster(&self) -> Option<&str> {
        let told = || self.baggage.as_ref()?.cluster.as_deref();
        self.workload.as_ref().map(|w| &*w.cluster).or_else(told)
    }
}

impl Parties {
    /// A connection of which only the two addresses are known.
    #[must_use]
    pub(crate) fn between(direction: Direction, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            direction,
            path: None,
            source: Party::at(source),
            destination: Party::at(destination),
            application: None,
            service: None,
            policy: None,
            shadow: Shadow::Silent,
        }
    }

    /// The workload of this node.
    #[must_use]
    pub(crate) fn local(&self) -> Option<&WorkloadUid> {
        let party = match self.direction {
            Direction::Outbound => &self.source,
            Direction::Inbound => &self.destination,
        };
        party.workload.as_ref().map(|workload| &workload.uid)
    }

    /// Both ends proved who they are.
    #[must_use]
    pub(crate) fn is_mutual_tls(&self) -> bool {
        self.path.is_some_and(Path::is_tunnel)
            && self.source.identity.is_some()
            && self.destination.identity.is_some()
    }
}
