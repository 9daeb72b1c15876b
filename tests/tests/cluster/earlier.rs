//! Pods that run, and talk, before Signet does: after a reboot its daemon is last, and a label comes when it comes.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::{Cluster, Kubectl, Release};
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::mesh::service;
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    connections_from_before_the_mesh_are_told_of_and_strict_ends_them,
);

/// On a cluster of its own, which has no Signet at first.
fn connections_from_before_the_mesh_are_told_of_and_strict_ends_them() -> Result<()> {
    let cluster = Cluster::start()?;
    let rebooted = Talk::start(&cluster, "rebooted")?;
    let labelled = Talk::start(&cluster, "labelled-later")?;
    rebooted.enrol()?;
    let signet = Release::install(&cluster, &[])?;
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        wait::until(&format!("{node} tells of it"), WITHIN, || {
            let seen = rebooted.listed(&signet, node)?;
            let is_it = |row: &Value| row["path"] == "earlier" && row["direction"] == direction;
            ensure!(seen.len() == 1 && is_it(&seen[0]), "{seen:?}");
            Ok(())
        })?;
        signet.wait_for_log(node, &["from before the workload was captured", direction, "rebooted"])?;
    }
    ensure!(rebooted.said()? == "established", "without a policy it was ended: {}", rebooted.said()?);
    rebooted.strict()?;
    rebooted.has_ended()?;
    labelled.strict()?;
    ensure!(labelled.said()? == "established", "outside the mesh it was ended: {}", labelled.said()?);
    labelled.enrol()?;
    labelled.has_ended()?;
    for talk in [&rebooted, &labelled] {
        talk.goes_on_in_the_mesh(&signet)?;
    }
    Ok(())
}

/// A client on n1 that holds a connection to a Service of a server on n2.
struct Talk<'c> {
    kubectl: &'c Kubectl,
    namespace: &'static str,
}

impl<'c> Talk<'c> {
    fn start(cluster: &'c Cluster, namespace: &'static str) -> Result<Self> {
        let kubectl = cluster.kubectl();
        kubectl.create_namespace(namespace)?;
        let serve = ["signet-probe", "serve", "8080"];
        kubectl.apply(&shared::pod(namespace, "server", "n2", IMAGE, &serve))?;
        kubectl.wait_ready(namespace, "server", WITHIN)?;
        kubectl.apply(&service(namespace))?;
        let talk = Self { kubectl, namespace };
        talk.hold("client")?;
        Ok(talk)
    }

    /// Has a pod hold a connection; kube-proxy learns of the Service a moment late.
    fn hold(&self, pod: &str) -> Result<()> {
        let service = self.kubectl.json(&["get", "--namespace", self.namespace, "service/server"])?;
        let to = format!("{}:80", service["spec"]["clusterIP"].as_str().unwrap_or_default());
        let script = format!("until signet-probe hold {to}; do sleep 0.1; done");
        self.kubectl.apply(&shared::pod(self.namespace, pod, "n1", IMAGE, &["sh", "-c", &script]))?;
        self.kubectl.wait(self.namespace, &format!("pod/{pod}"), "condition=Ready", WITHIN)?;
        wait::until(&format!("{}/{pod} is connected", self.namespace), WITHIN, || {
            let said = self.kubectl.logs(self.namespace, pod)?;
            ensure!(said.contains("established"), "it says {said:?}");
            Ok(())
        })
    }

    fn enrol(&self) -> Result<()> {
        self.kubectl.run(&["label", "namespace", self.namespace, "istio.io/dataplane-mode=ambient"]).map(drop)
    }

    fn strict(&self) -> Result<()> {
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "strict", "namespace": self.namespace}, "spec": {"mtls": {"mode": "STRICT"}},
        });
        self.kubectl.apply(&policy.to_string())
    }

    fn said(&self) -> Result<String> {
        Ok(self.kubectl.logs(self.namespace, "client")?.trim_end().to_owned())
    }

    fn has_ended(&self) -> Result<()> {
        let done = "jsonpath={.status.phase}=Succeeded";
        self.kubectl.wait(self.namespace, "pod/client", done, WITHIN)
    }

    /// What a node's engine shows of its connections.
    fn listed(&self, signet: &Release, node: &str) -> Result<Vec<Value>> {
        let view = signet.signet(node, &["connections"])?;
        let is_of = |row: &&Value| {
            row["source_workload"].as_str().is_some_and(|name| name.starts_with(self.namespace))
        };
        Ok(view.as_array().into_iter().flatten().filter(is_of).cloned().collect())
    }

    /// A client that comes again, under the same policy.
    fn goes_on_in_the_mesh(&self, signet: &Release) -> Result<()> {
        self.hold("again")?;
        let seen = self.listed(signet, "n1")?;
        let identity = format!("spiffe://cluster.local/ns/{}/sa/default", self.namespace);
        let is_mtls =
            |row: &Value| row["source_identity"] == *identity && row["destination_identity"] == *identity;
        ensure!(seen.len() == 1 && is_mtls(&seen[0]), "{seen:?}");
        Ok(())
    }
}

const IMAGE: &str = "signet-workload";
