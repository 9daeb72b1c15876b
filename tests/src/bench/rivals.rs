//! What others use for the same job: sidecar pairs around pods outside the mesh, with SVIDs of the mesh's own root.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::contender::{Contender, Handshake};
use super::stage::{ACROSS, PORT, Trio};
use super::statistics::ENVOY;
use crate::ca::Ca;
use crate::envoy::{Envoy, Pair};
use crate::haproxy::Haproxy;
use crate::pod::Pod;

/// Every pair, each the client's end first.
pub(super) struct Rivals {
    envoys: [[Envoy; 2]; 2],
    haproxys: [Haproxy; 2],
    client_svid: PathBuf,
}

impl Rivals {
    /// Starts them in the pods' namespaces.
    ///
    /// # Errors
    /// A part is missing or does not start.
    pub(super) fn start(ca: &Ca, pods: &Trio) -> Result<Self> {
        let Trio { client, server, .. } = pods;
        let svid = |pod: &Pod| ca.forge(&[&pod.spiffe_id()]);
        let (of_client, of_server) = (svid(client)?, svid(server)?);
        // The server's first: the client's is asked for a connection as soon as it listens.
        let pair = |pair| -> Result<[Envoy; 2]> {
            let at_server = Envoy::pair_server(pair, server, &of_server, client, PORT)?;
            Ok([Envoy::pair_client(pair, client, &of_client, server)?, at_server])
        };
        let at_server = Haproxy::server(server, &of_server, HAPROXY_BETWEEN, PORT)?;
        let at_client = Haproxy::client(client, &of_client, HAPROXY_LISTENS, server, HAPROXY_BETWEEN)?;
        let client_svid = client.directory()?.join("svid.json");
        std::fs::write(&client_svid, serde_json::to_string(&of_client)?)?;
        Ok(Self { envoys: [pair(PLAIN)?, pair(RESUMING)?], haproxys: [at_client, at_server], client_svid })
    }

    /// The SVID of the client of the pods that they stand around, as `signet-load` reads it.
    pub(super) fn client_svid(&self) -> &Path {
        &self.client_svid
    }

    /// All of them.
    pub(super) fn contenders<'a>(&'a self, pods: &'a Trio) -> Vec<Contender<'a>> {
        let [plain, resuming] = self.envoys.each_ref().map(|pair| pair.each_ref().map(Envoy::cgroup));
        let haproxys = self.haproxys.each_ref().map(Haproxy::cgroup);
        let knock = |port: u16| Handshake {
            from: &pods.client,
            to: format!("{}:{port}", pods.server.ipv4()),
            svid: self.client_svid.clone(),
        };
        let contender = |name, listens: u16, engines: [&Path; 2], handshake| Contender {
            name,
            path: ACROSS,
            client: &pods.client,
            to: format!("127.0.0.1:{listens}"),
            engines: engines.map(Path::to_owned).to_vec(),
            handshake,
        };
        vec![
            contender(ENVOY, PLAIN.listen, plain, Some(knock(PLAIN.between))),
            contender("envoy-pair-64", RESUMING.listen, resuming, None),
            contender("haproxy-pair", HAPROXY_LISTENS, haproxys, Some(knock(HAPROXY_BETWEEN))),
        ]
    }
}

/// As Envoy is by default.
const PLAIN: Pair = Pair { listen: 9000, between: 15443, session_keys: None };
/// With as many TLS sessions kept as there are connections in the largest load.
const RESUMING: Pair = Pair { listen: 9001, between: 15444, session_keys: Some(64) };
const HAPROXY_LISTENS: u16 = 9002;
const HAPROXY_BETWEEN: u16 = 15445;
