//! The stage: two nodes with engines, a client and two servers in the mesh, and the same outside of it.
//!
//! Pods outside the mesh stand on the same nodes as those inside, so every contender crosses the same links. The mesh is
//! STRICT: a figure of Signet cannot be one of clear text by accident.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::contender::Contender;
use super::statistics::{DIRECT, ENVOY};
use crate::binaries;
use crate::envoy::Envoy;
use crate::mesh::Mesh;
use crate::netns;
use crate::pod::{Enrolment, Pod, PodSpec};
use crate::process::Process;

/// Everything of the benchmark. Fields end in this order: servers, Envoys, pods, the mesh.
pub(super) struct Stage {
    _servers: Vec<Process>,
    envoys: [Envoy; 2],
    inside: Trio,
    outside: Trio,
    mesh: Mesh,
}

/// A client on the first node, a server next to it, and a server on the second node.
struct Trio {
    client: Pod,
    neighbour: Pod,
    server: Pod,
}

impl Stage {
    /// Starts all of it.
    ///
    /// # Errors
    /// A part is missing or does not start.
    pub(super) fn set() -> Result<Self> {
        let mesh = Mesh::start()?;
        let inside = Trio::start(&mesh, "bench", Enrolment::Ambient)?;
        let outside = Trio::start(&mesh, "bench-outside", Enrolment::OptOut)?;
        let pods = [inside.pods(), outside.pods()].concat();
        let hosts = mesh.nodes().map(|node| node.host().netns().path());
        let namespaces = pods.iter().map(|pod| pod.place().netns.clone()).chain(hosts);
        namespaces.into_iter().try_for_each(|path| tune(&path))?;
        mesh.settle(&pods)?;
        mesh.apply("strict", STRICT)?;
        let servers = pods.iter().map(|pod| serve(pod)).collect::<Result<_>>()?;
        let envoys = envoys(&mesh, &outside)?;
        Ok(Self { _servers: servers, envoys, inside, outside, mesh })
    }

    /// All contenders, those across the nodes first.
    ///
    /// # Errors
    /// An engine has ended.
    pub(super) fn contenders(&self) -> Result<Vec<Contender<'_>>> {
        let (inside, outside) = (&self.inside, &self.outside);
        let signet = [self.mesh.n1.engine_pid()?, self.mesh.n2.engine_pid()?];
        let envoy = self.envoys.each_ref().map(Envoy::pid);
        let local = format!("127.0.0.1:{ENVOY_LISTENS}");
        Ok(vec![
            Contender::new(DIRECT, ACROSS, &outside.client, address(&outside.server), &[]),
            Contender::new(ENVOY, ACROSS, &outside.client, local, &envoy),
            Contender::new("signet-hbone", ACROSS, &inside.client, address(&inside.server), &signet),
            Contender::new(DIRECT, SAME_NODE, &outside.client, address(&outside.neighbour), &[]),
            Contender::new(
                "signet-same-node",
                SAME_NODE,
                &inside.client,
                address(&inside.neighbour),
                &signet[..1],
            ),
        ])
    }
}

impl Trio {
    fn start(mesh: &Mesh, namespace: &str, enrolment: Enrolment) -> Result<Self> {
        let spec = |name: &str| PodSpec::new(namespace, name).enrolment(enrolment);
        Ok(Self {
            client: mesh.n1.pod(spec("client"))?,
            neighbour: mesh.n1.pod(spec("neighbour"))?,
            server: mesh.n2.pod(spec("server"))?,
        })
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.client, &self.neighbour, &self.server]
    }
}

/// Reno, because BBR's pacing makes short flows on veth links slow; and ports enough for tens of thousands of new
/// connections a second, which each leave a TIME_WAIT behind.
fn tune(namespace: &Path) -> Result<()> {
    netns::enter(namespace, || {
        for (setting, value) in [
            ("tcp_congestion_control", "reno"),
            ("ip_local_port_range", "16384 65535"),
            ("tcp_tw_reuse", "1"),
        ] {
            let path = Path::new("/proc/sys/net/ipv4").join(setting);
            std::fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    })?
}

fn serve(pod: &Pod) -> Result<Process> {
    let binary = binaries::path("signet-load")?;
    let argv = [binary.to_str().context("a path in UTF-8")?, "serve", &PORT.to_string()];
    let server = pod.spawn("load-server", &argv)?;
    server.wait_for_line(&["listening"], LISTENS_WITHIN)?;
    Ok(server)
}

fn envoys(mesh: &Mesh, outside: &Trio) -> Result<[Envoy; 2]> {
    let Trio { client, server, .. } = outside;
    let svid = |pod: &Pod| mesh.ca.forge(&[&pod.spiffe_id()]);
    // The server's first: the client's is asked for a connection as soon as it listens.
    let at_server = Envoy::pair_server(server, &svid(server)?, client, PORT)?;
    let at_client = Envoy::pair_client(client, &svid(client)?, ENVOY_LISTENS, server)?;
    Ok([at_client, at_server])
}

fn address(pod: &Pod) -> String {
    format!("{}:{PORT}", pod.ipv4())
}

const ACROSS: &str = "across";
const SAME_NODE: &str = "same-node";
/// Where the load's servers listen.
const PORT: u16 = 8080;
/// Where the client's Envoy listens.
const ENVOY_LISTENS: u16 = 9000;
/// Generous, for a busy machine.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: bench, namespace: bench}
spec: {mtls: {mode: STRICT}}
";
