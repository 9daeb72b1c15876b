//! A cluster with two replicas of `signet-ca` and an engine on each node, for the tests of the CA: SVIDs and serving
//! certificates live for seconds there, so that a test can see them renewed.

use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use signet_testkit::cluster::ca::SERVER_NAME;
use signet_testkit::cluster::{Cluster, Kubectl, Signet};
use signet_testkit::wait;

use crate::shared::{self, WITHIN};
use crate::turns::{Turn, Turns};
use crate::{ca, ca_outages};

/// The cluster, with a client on n1 and a server on n2.
pub(crate) struct Issuing {
    // First, so that its processes end before their nodes.
    pub(crate) signet: Signet,
    pub(crate) cluster: Cluster,
    url: String,
    client: String,
}

impl Issuing {
    fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        let serving = json!({"names": [SERVER_NAME], "ttl": "6s"});
        let signet = Signet::start_with(&cluster, TTL, &json!({"serving": serving}))?;
        let kubectl = cluster.kubectl();
        kubectl.create_namespace("traffic")?;
        kubectl.run(&["label", "namespace", "traffic", "istio.io/dataplane-mode=ambient"])?;
        let serve = "mkdir /www && printf answer >/www/index.html && exec httpd -f -p 8080 -h /www";
        let pods = [("server", "n2", &["sh", "-c", serve][..]), ("client", "n1", &["sleep", "3600"])];
        for (name, node, command) in pods {
            kubectl.apply(&shared::pod("traffic", name, node, "signet-workload", command))?;
            kubectl.wait_ready("traffic", name, WITHIN)?;
            signet.wait_for_pod("traffic", name, true)?;
        }
        let server = kubectl.json(&["get", "pod", "server", "--namespace=traffic"])?;
        let address = server["status"]["podIP"].as_str().context("an address")?.to_owned();
        let client = shared::container(kubectl, "traffic", "client")?;
        let issuing = Self { signet, cluster, url: format!("http://{address}:8080/"), client };
        wait::until("traffic flows", WITHIN, || issuing.flows())?;
        Ok(issuing)
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// A namespace with a pod of the account `default` on a node.
    pub(crate) fn with_pod(&self, namespace: &str, node: &str) -> Result<()> {
        self.kubectl().create_namespace(namespace)?;
        self.kubectl().apply(&pod(namespace, node))
    }

    /// That both replicas sign for the account `default` of a namespace.
    pub(crate) fn signs(&self, token: &str, namespace: &str) -> Result<()> {
        let mut replicas = self.signet.ca().replicas().iter();
        let ask = |replica: &signet_testkit::cluster::ca::Replica| {
            replica.svid(&self.cluster, token, &identity(namespace)).map(drop)
        };
        replicas.try_for_each(ask)
    }

    /// That neither replica does, and why by their own account.
    pub(crate) fn refuses(&self, token: &str, namespace: &str, reason: &str) -> Result<()> {
        for replica in self.signet.ca().replicas() {
            let counted = format!("signet_ca_refused_total{{reason=\"{reason}\"}}");
            let before = replica.metric(&self.cluster, &counted)?;
            let Err(error) = replica.svid(&self.cluster, token, &identity(namespace)) else {
                bail!("{reason}: signed")
            };
            ensure!(format!("{error:#}").contains("request authentication failed"), "{error:#}");
            let after = replica.metric(&self.cluster, &counted)?;
            ensure!(after > before, "not refused as {reason}: {}", replica.log()?);
        }
        Ok(())
    }

    /// That the client gets the server's answer. From a shell on the node: `kubectl exec` goes through the API server.
    pub(crate) fn flows(&self) -> Result<()> {
        let said = shared::fetch_in(&self.cluster.nodes()[0], &self.client, &self.url)?;
        ensure!(said == "answer", "the client got {said:?}");
        Ok(())
    }

    /// The serial number of the client's SVID.
    pub(crate) fn serial(&self) -> Result<String> {
        let view = self.signet.engine("n1")?.signet(&["certificates"])?;
        let row = signet_testkit::mesh::rows(&view).find(|row| row["id"] == IDENTITY);
        Ok(row.context("no SVID yet")?["serial"].to_string())
    }

    /// Until a node has failed to renew its end's SVID, and says so where people look. It was the first that tried, so both
    /// ends have half of a lifetime left.
    pub(crate) fn wait_for_failure(&self) -> Result<()> {
        wait::until("a rotation fails", WITHIN, || {
            for engine in self.signet.engines() {
                let view = engine.signet(&["certificates"])?;
                let mut of_traffic = signet_testkit::mesh::rows(&view).filter(|row| row["id"] == IDENTITY);
                if of_traffic.any(|row| row["error"].as_str().is_some_and(|said| said.contains(":15012"))) {
                    return Ok(());
                }
            }
            bail!("none has")
        })
    }

    /// Until the client's SVID is another one.
    pub(crate) fn wait_for_rotation(&self, since: &str) -> Result<()> {
        wait::until("the SVID rotates", WITHIN, || {
            let now = self.serial()?;
            ensure!(now != since, "it is {now} still");
            Ok(())
        })
    }
}

pub(crate) fn pod(namespace: &str, node: &str) -> String {
    shared::pod(namespace, "workload", node, "signet-workload", &["sleep", "3600"])
}

fn identity(namespace: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/default")
}

/// For a test that disturbs no other.
pub(crate) fn together() -> Result<Turn<Issuing, RwLockReadGuard<'static, ()>>> {
    TURNS.together()
}

/// For a test that breaks what the others use.
pub(crate) fn alone() -> Result<Turn<Issuing, RwLockWriteGuard<'static, ()>>> {
    TURNS.alone()
}

/// Takes it down. Called once, after the last test.
pub(crate) fn end() {
    TURNS.end();
}

/// Of the client.
pub(crate) const IDENTITY: &str = "spiffe://cluster.local/ns/traffic/sa/default";
/// Long enough for a CA to be away and back between a rotation at its half and its end.
const TTL: &str = "40s";

static TURNS: Turns<Issuing> = Turns::new(ca::TESTS.len() + ca_outages::TESTS.len(), Issuing::start);
