//! Every live connection: registered first, authorised then, closed when its permit is gone (H6).

use std::net::SocketAddr;

use serde::Serialize;
use signet_identity::SpiffeId;

use crate::addr::WorkloadUid;

/// The live connections of this node. Connections write themselves in and out; views read.
#[derive(Debug, Default)]
pub struct Connections {}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }
    /// Closes (resets) every connection from or to a local workload: it is gone, or not in the mesh any more.
    pub fn close_workload(&self, workload: &WorkloadUid) {
        let _ = workload;
        todo!("H6")
    }
    /// All live connections, oldest first, for `signet connections`.
    #[must_use]
    pub fn views(&self) -> Vec<ConnectionView> {
        todo!("H6")
    }
}

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
    /// Inbound, in clear, from outside the mesh.
    Plaintext,
    /// Outbound, in clear, to a destination outside the mesh.
    Passthrough,
}

/// One line of `signet connections`.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionView {
    /// Unique while the process lives.
    pub id: u64,
    /// Which way.
    pub direction: Direction,
    /// How.
    pub path: Path,
    /// The client's address.
    pub source: SocketAddr,
    /// `namespace/name` of the client, where known.
    pub source_workload: Option<String>,
    /// The client's proven SPIFFE ID; `None` in clear.
    pub source_identity: Option<SpiffeId>,
    /// The application's address and port (never 15008).
    pub destination: SocketAddr,
    /// `namespace/name` of the server, where known.
    pub destination_workload: Option<String>,
    /// The server's proven SPIFFE ID; `None` in clear.
    pub destination_identity: Option<SpiffeId>,
    /// The Service's hostname, where the client asked for one.
    pub service: Option<String>,
    /// The ALLOW policy that let it in (inbound), where one had to.
    pub policy: Option<String>,
    /// Seconds since 1970.
    pub since: u64,
    /// Bytes that the client has sent.
    pub sent: u64,
    /// Bytes that the client has received.
    pub received: u64,
}
