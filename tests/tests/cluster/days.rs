//! A cluster with the chart on it, for bad days that hit the pods of the engines: each test has it alone, and leaves it as it
//! was.

use std::sync::RwLockWriteGuard;

use anyhow::{Context, Result};
use signet_testkit::cluster::release::NAMESPACE;
use signet_testkit::cluster::{Cluster, Kubectl, Node, Release};

use crate::footprint::Footprint;
use crate::shared::{self, WITHIN};
use crate::turns::{Turn, Turns};
use crate::{churn, lacking, roll};

/// A release of the chart on a cluster of its own.
pub(crate) struct Installed {
    pub(crate) signet: Release,
    pub(crate) cluster: Cluster,
}

impl Installed {
    fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        Ok(Self { signet: Release::install(&cluster, &[])?, cluster })
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.cluster.nodes().iter().find(|node| node.name() == name).context("a node of that name")
    }

    /// A namespace in the mesh.
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.kubectl().create_namespace(name)?;
        self.kubectl().run(&["label", "namespace", name, "istio.io/dataplane-mode=ambient"]).map(drop)
    }

    /// A pod that runs a command of the tests' image, once the engines carry it; its address.
    pub(crate) fn pod(&self, namespace: &str, name: &str, node: &str, command: &[&str]) -> Result<String> {
        self.kubectl().apply(&shared::pod(namespace, name, node, IMAGE, command))?;
        self.kubectl().wait_ready(namespace, name, WITHIN)?;
        self.signet.wait_for_pods(self.cluster.nodes(), namespace, "captured")?;
        let object = format!("pod/{name}");
        self.kubectl().run(&["get", &object, "--namespace", namespace, "--output=jsonpath={.status.podIP}"])
    }

    /// The engines of all nodes.
    pub(crate) fn footprints(&self) -> Result<Vec<Footprint>> {
        self.cluster.nodes().iter().map(|node| Footprint::of(&self.signet, node)).collect()
    }

    /// Waits until every node's engine is of the DaemonSet as it is now, and ready.
    pub(crate) fn wait_rolled(&self) -> Result<()> {
        let rolled = ["rollout", "status", "--namespace", NAMESPACE, "daemonset/signetd", "--timeout=120s"];
        self.kubectl().run(&rolled).map(drop)
    }
}

/// Its only user for as long as it is held.
pub(crate) fn alone() -> Result<Turn<Installed, RwLockWriteGuard<'static, ()>>> {
    TURNS.alone()
}

/// Takes it down. Called after the last test too, where not all of these have run.
pub(crate) fn end() {
    TURNS.end();
}

/// The tests' image.
pub(crate) const IMAGE: &str = "signet-workload";
static TURNS: Turns<Installed> =
    Turns::new(churn::TESTS.len() + roll::TESTS.len() + lacking::TESTS.len(), Installed::start);
