//! The stage: nodes with engines, a client and two servers in each mesh, and the same outside of it.
//!
//! Pods outside the mesh stand on the same nodes as those inside, so every contender crosses the same links. Each setting of
//! Signet has two nodes of its own on that link, so that its engines are fresh once and their work is theirs alone. The
//! mesh is STRICT: a figure of Signet cannot be one of clear text by accident.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use super::contender::{Contender, Handshake};
use super::rivals::Rivals;
use super::setting::{SETTINGS, Setting};
use super::statistics::DIRECT;
use crate::binaries;
use crate::ca::Ca;
use crate::mesh;
use crate::netns;
use crate::node::Node;
use crate::pod::{Enrolment, Pod, PodSpec};
use crate::process::Process;
use crate::svid::Asked;
use crate::testbed::Testbed;

/// Everything of the benchmark. Fields end in this order: servers, proxies, pods, engines, CA, the testbed.
pub(super) struct Stage {
    _servers: Vec<Process>,
    rivals: Rivals,
    outside: Trio,
    meshes: Vec<Signet>,
    ca: Ca,
    _bed: Testbed,
}

/// Two nodes with engines of one setting, and their pods.
struct Signet {
    setting: &'static Setting,
    pods: Trio,
    nodes: [Node; 2],
}

/// A client on the first node, a server next to it, and a server on the second node.
pub(super) struct Trio {
    pub(super) client: Pod,
    pub(super) neighbour: Pod,
    pub(super) server: Pod,
}

impl Stage {
    /// Starts all of it.
    ///
    /// # Errors
    /// A part is missing or does not start.
    pub(super) fn set() -> Result<Self> {
        let bed = Testbed::new()?;
        let ca = bed.ca("24h")?;
        bed.manifests().put("strict", STRICT)?;
        let meshes =
            SETTINGS.iter().map(|setting| Signet::start(&bed, &ca, setting)).collect::<Result<Vec<_>>>()?;
        let nodes = &meshes.first().context("there is no setting of Signet")?.nodes;
        let outside = Trio::start(nodes, "bench-outside", Enrolment::OptOut)?;
        let trios = || meshes.iter().map(|mesh| &mesh.pods).chain([&outside]);
        trios().flat_map(Trio::pods).try_for_each(|pod| tune(&pod.place().netns))?;
        for mesh in &meshes {
            mesh.wait_until_captured()?;
        }
        nodes.iter().try_for_each(|node| mesh::settle(node, &outside.pods()))?;
        let servers =
            trios().flat_map(|trio| [&trio.neighbour, &trio.server]).map(serve).collect::<Result<_>>()?;
        let rivals = Rivals::start(&ca, &outside)?;
        Ok(Self { _servers: servers, rivals, outside, meshes, ca, _bed: bed })
    }

    /// All contenders, those across the nodes first.
    ///
    /// # Errors
    /// An engine has ended.
    pub(super) fn contenders(&self) -> Result<Vec<Contender<'_>>> {
        let outside = &self.outside;
        let direct = |path, to| Contender {
            name: DIRECT,
            path,
            client: &outside.client,
            to: address(to),
            engines: Vec::new(),
            handshake: None,
        };
        let mut contenders = vec![direct(ACROSS, &outside.server)];
        contenders.extend(self.rivals.contenders(outside));
        for mesh in &self.meshes {
            contenders.extend(mesh.across(self)?);
        }
        contenders.push(direct(SAME_NODE, &outside.neighbour));
        for mesh in &self.meshes {
            contenders.extend(mesh.same_node()?);
        }
        Ok(contenders)
    }

    /// The CA, and what an engine would ask it.
    ///
    /// # Errors
    /// No randomness.
    pub(super) fn ca(&self) -> Result<(&Ca, Asked)> {
        let Signet { pods, nodes, .. } = self.meshes.first().context("there is no setting of Signet")?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let token = self.ca.issuer().node_token(nodes[0].name())?;
        Ok((&self.ca, Asked::new(&key, &token, &pods.client.spiffe_id())?))
    }
}

impl Signet {
    fn start(bed: &Testbed, ca: &Ca, setting: &'static Setting) -> Result<Self> {
        let name = |end: &str| format!("{}-{end}", setting.node);
        let nodes = [bed.node(&name("1"))?, bed.node(&name("2"))?];
        let overrides = setting.overrides()?;
        nodes.iter().try_for_each(|node| node.launch_engine(ca, &overrides))?;
        nodes.iter().try_for_each(Node::wait_ready)?;
        let pods = Trio::start(&nodes, &format!("bench-{}", setting.node), Enrolment::Ambient)?;
        Ok(Self { setting, pods, nodes })
    }

    fn wait_until_captured(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|node| {
            mesh::settle(node, &self.pods.pods())?;
            mesh::lists(node, STRICT)
        })
    }

    fn across<'a>(&'a self, stage: &'a Stage) -> Result<Option<Contender<'a>>> {
        let Trio { client, server, .. } = &self.pods;
        let Some(name) = self.setting.across else { return Ok(None) };
        // All settings take handshakes alike.
        let first = stage.meshes.first().is_some_and(|first| std::ptr::eq(first, self));
        let handshake = first.then(|| Handshake {
            from: &stage.outside.client,
            to: format!("{}:{HBONE_PORT}", server.ipv4()),
            svid: stage.rivals.client_svid().to_owned(),
        });
        let (to, engines) = (address(server), self.engines()?);
        Ok(Some(Contender { name, path: ACROSS, client, to, engines, handshake }))
    }

    fn same_node(&self) -> Result<Option<Contender<'_>>> {
        let Trio { client, neighbour, .. } = &self.pods;
        let Some(name) = self.setting.same_node else { return Ok(None) };
        let engines = self.engines()?[..1].to_vec();
        let to = address(neighbour);
        Ok(Some(Contender { name, path: SAME_NODE, client, to, engines, handshake: None }))
    }

    fn engines(&self) -> Result<Vec<PathBuf>> {
        self.nodes.iter().map(Node::engine_cgroup).collect()
    }
}

impl Trio {
    fn start(nodes: &[Node; 2], namespace: &str, enrolment: Enrolment) -> Result<Self> {
        let spec = |name: &str| PodSpec::new(namespace, name).enrolment(enrolment);
        Ok(Self {
            client: nodes[0].pod(spec("client"))?,
            neighbour: nodes[0].pod(spec("neighbour"))?,
            server: nodes[1].pod(spec("server"))?,
        })
    }

    fn pods(&self) -> [&Pod; 3] {
        [&self.client, &self.neighbour, &self.server]
    }
}

/// Reno, because BBR's pacing makes short flows on veth links slow; and ports enough for tens of thousands of new
/// connections a second, which each leave a TIME_WAIT behind. Nodes have reno already.
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

fn address(pod: &Pod) -> String {
    format!("{}:{PORT}", pod.ipv4())
}

pub(super) const ACROSS: &str = "across";
const SAME_NODE: &str = "same-node";
/// Where the load's servers listen.
pub(super) const PORT: u16 = 8080;
/// Where engines take HBONE (docs/hbone.md), and so the handshakes of everybody.
const HBONE_PORT: u16 = 15008;
/// Generous, for a busy machine.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// In the root namespace: for the whole mesh.
const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: bench, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";
