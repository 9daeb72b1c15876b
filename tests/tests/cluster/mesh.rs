//! Signet on real nodes: pods that kubelets start, found by their cgroups, enrolled by labels, and their traffic as it
//! crosses the link between the nodes.

use std::process::Command;
use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::capture::Packets;
use signet_testkit::cluster::{Cluster, Kubectl, Signet, Wire};
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::shared::{self, WITHIN};
use crate::turns::{Turn, Turns};
use crate::{dashboard, handshakes, identities, ipv6, pods, probes, services};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    pods_on_two_nodes_talk_mtls_by_address_and_by_service,
    a_pod_opts_out_by_its_label,
    a_namespace_enrols_running_pods_and_lets_them_go,
    a_policy_of_a_kind_that_appears_later_denies_and_is_named,
    a_pod_whose_first_act_is_to_connect_waits_and_never_speaks_in_clear,
    an_api_server_that_is_away_stops_no_traffic_and_loses_no_change,
);

/// A cluster with Signet on it.
pub(crate) struct Meshed {
    // First, so that the engines end before their nodes.
    pub(crate) signet: Signet,
    pub(crate) cluster: Cluster,
}

impl Meshed {
    pub(crate) fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        Ok(Self { signet: Signet::start(&cluster)?, cluster })
    }

    /// Where metrics are, seen from the control plane's machine: both engines, and the CA.
    pub(crate) fn targets(&self) -> Vec<String> {
        let engines = self.cluster.nodes().iter().map(|node| format!("{}:15020", node.ip()));
        engines.chain(["127.0.0.1:15014".to_owned()]).collect()
    }

    pub(crate) fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// A namespace, in the mesh or not, with a server on n2 and a client on n1.
    pub(crate) fn pair(&self, namespace: &str, enrolled: bool) -> Result<Pair<'_>> {
        self.namespace(namespace, enrolled)?;
        self.kubectl().apply(&server(namespace))?;
        self.kubectl().apply(&shared::pod(namespace, "client", "n1", IMAGE, &["sleep", "3600"]))?;
        self.kubectl().apply(&service(namespace))?;
        for pod in ["server", "client"] {
            self.kubectl().wait_ready(namespace, pod, WITHIN)?;
            self.signet.wait_for_pod(namespace, pod, enrolled)?;
        }
        self.wait_for_services()?;
        self.known_pair(namespace)
    }

    /// A pair that was made before.
    pub(crate) fn known_pair(&self, namespace: &str) -> Result<Pair<'_>> {
        let server = self.kubectl().json(&["get", "--namespace", namespace, "pod/server"])?;
        let address = server["status"]["podIP"].as_str().context("an address")?.to_owned();
        Ok(Pair { mesh: self, namespace: namespace.to_owned(), address })
    }

    pub(crate) fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        self.kubectl().create_namespace(name)?;
        if enrolled { self.label(name, "istio.io/dataplane-mode=ambient") } else { Ok(()) }
    }

    pub(crate) fn label(&self, namespace: &str, label: &str) -> Result<()> {
        self.kubectl().run(&["label", "namespace", namespace, label]).map(drop)
    }

    /// Has a kind of Istio's.
    pub(crate) fn define(&self, kind: &str, plural: &str) -> Result<()> {
        self.kubectl().apply(&definition(kind, plural))?;
        let name = format!("customresourcedefinition/{plural}.security.istio.io");
        self.kubectl().wait("default", &name, "condition=Established", WITHIN)
    }

    /// Demands mTLS in a namespace, and waits until both engines know.
    pub(crate) fn strict(&self, namespace: &str) -> Result<()> {
        self.define("PeerAuthentication", "peerauthentications")?;
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "strict", "namespace": namespace}, "spec": {"mtls": {"mode": "STRICT"}},
        });
        self.kubectl().apply(&policy.to_string())?;
        self.signet.engines().iter().try_for_each(|engine| {
            wait::until("the policy is known", WITHIN, || {
                let policies = engine.signet(&["policies"])?;
                let is_meant =
                    |policy: &Value| policy["namespace"] == namespace && policy["name"] == "strict";
                ensure!(policies.as_array().is_some_and(|all| all.iter().any(is_meant)), "{policies}");
                Ok(())
            })
        })
    }

    /// Until both engines know as many Services as there are. One that an engine does not know yet is outside the mesh.
    pub(crate) fn wait_for_services(&self) -> Result<()> {
        self.signet.engines().iter().try_for_each(|engine| {
            wait::until("the Services are known", WITHIN, || {
                let all = self.kubectl().json(&["get", "services", "--all-namespaces"])?;
                // An ExternalName is a name, and nothing that an engine could lead to.
                let leads = |service: &&Value| service["spec"]["type"] != "ExternalName";
                let all = all["items"].as_array().context("a list")?.iter().filter(leads).count();
                let known = engine.signet(&["status"])?["counts"]["services"].clone();
                ensure!(known == all, "{known} of {all}");
                Ok(())
            })
        })
    }

    pub(crate) fn record(&self) -> Result<Wire<'_>> {
        Wire::record(&self.cluster, &self.cluster.nodes()[1])
    }
}

/// A client on n1 and a server on n2.
pub(crate) struct Pair<'m> {
    mesh: &'m Meshed,
    pub(crate) namespace: String,
    pub(crate) address: String,
}

impl Pair<'_> {
    pub(crate) fn by_address(&self) -> Result<()> {
        self.fetch(&self.url())
    }

    pub(crate) fn by_service(&self) -> Result<()> {
        let of = ["get", "--namespace", &self.namespace, "service/server"];
        let service = self.mesh.kubectl().json(&of)?;
        let address = service["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
        self.fetch(&format!("http://{address}/{}", self.namespace))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}:8080/{}", self.address, self.namespace)
    }

    /// What must not be seen on the link; the others' traffic is there too.
    pub(crate) fn secret(&self) -> String {
        secret(&self.namespace)
    }

    pub(crate) fn is_seen(&self, packets: &Packets) -> bool {
        packets.contain(self.secret().as_bytes())
            || packets.contain(format!("GET /{}", self.namespace).as_bytes())
    }

    /// Until it gets the answer: the engine waits for an SVID, and kube-proxy learns of a Service a moment late.
    pub(crate) fn fetch(&self, url: &str) -> Result<()> {
        wait::until(&format!("{}/client gets {url}", self.namespace), WITHIN, || {
            let said = self.try_fetch(url)?;
            ensure!(said == self.secret(), "it got {said:?}");
            Ok(())
        })
    }

    /// The id of a pod's container.
    pub(crate) fn container(&self, pod: &str) -> Result<String> {
        shared::container(self.mesh.kubectl(), &self.namespace, pod)
    }

    /// From a shell on the node: `kubectl exec` goes through the API server.
    pub(crate) fn fetch_without_api_server(&self, container: &str) -> Result<()> {
        let wire = self.mesh.record()?;
        let said = shared::fetch_in(&self.mesh.cluster.nodes()[0], container, &self.url())?;
        ensure!(said == self.secret(), "it got {said:?}");
        let packets = wire.stop()?;
        ensure!(packets.tls_records() > 0 && !self.is_seen(&packets), "not mTLS on the link");
        Ok(())
    }

    pub(crate) fn try_fetch(&self, url: &str) -> Result<String> {
        self.exec("client", &["curl", "--silent", "--show-error", "--fail", "--max-time", "10", url])
    }

    pub(crate) fn exec(&self, pod: &str, argv: &[&str]) -> Result<String> {
        self.mesh.kubectl().exec(&self.namespace, pod, argv)
    }

    /// The same, for what runs long.
    pub(crate) fn exec_command(&self, pod: &str, argv: &[&str]) -> Command {
        let exec = ["exec", "--namespace", &self.namespace, pod, "--"];
        self.mesh.kubectl().command(&[&exec, argv].concat())
    }
}

fn pods_on_two_nodes_talk_mtls_by_address_and_by_service() -> Result<()> {
    let mesh = mesh()?;
    let pair = mesh.pair("both", true)?;
    let wire = mesh.record()?;
    pair.by_address()?;
    pair.by_service()?;
    let packets = wire.stop()?;
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    ensure!(!pair.is_seen(&packets), "it crossed the link in clear");
    let identity = "spiffe://cluster.local/ns/both/sa/default";
    let (source, destination) =
        (format!("src.identity=\"{identity}\""), format!("dst.identity=\"{identity}\""));
    for node in ["n1", "n2"] {
        mesh.signet.engine(node)?.wait_for_log(&["connection complete", &source, &destination])?;
    }
    Ok(())
}

fn a_pod_opts_out_by_its_label() -> Result<()> {
    let mesh = mesh()?;
    let pair = mesh.pair("opting", true)?;
    let labels = json!({"app": "outsider", "istio.io/dataplane-mode": "none"});
    let mut pod: Value =
        serde_json::from_str(&shared::pod("opting", "outsider", "n1", IMAGE, &["sleep", "3600"]))?;
    pod["metadata"]["labels"] = labels;
    mesh.kubectl().apply(&pod.to_string())?;
    mesh.kubectl().wait_ready("opting", "outsider", WITHIN)?;
    mesh.signet.wait_for_pod("opting", "outsider", false)?;
    let wire = mesh.record()?;
    let fetch = ["curl", "--silent", "--fail", "--max-time", "10", &pair.url()];
    let said = mesh.kubectl().exec("opting", "outsider", &fetch)?;
    ensure!(said == pair.secret(), "it got {said:?}");
    ensure!(pair.is_seen(&wire.stop()?), "an outsider's traffic is not in clear");
    Ok(())
}

fn a_namespace_enrols_running_pods_and_lets_them_go() -> Result<()> {
    let mesh = mesh()?;
    let pair = mesh.pair("moving", false)?;
    for (label, enrolled) in [("signet.dev/mode=enabled", true), ("signet.dev/mode-", false)] {
        mesh.label("moving", label)?;
        for pod in ["server", "client"] {
            mesh.signet.wait_for_pod("moving", pod, enrolled)?;
        }
        let wire = mesh.record()?;
        pair.by_address()?;
        let in_clear = pair.is_seen(&wire.stop()?);
        ensure!(in_clear != enrolled, "after {label} the answer crossed the link in clear: {in_clear}");
    }
    Ok(())
}

fn a_policy_of_a_kind_that_appears_later_denies_and_is_named() -> Result<()> {
    let mesh = mesh()?;
    let pair = mesh.pair("guarded", true)?;
    pair.by_address()?;
    mesh.define("AuthorizationPolicy", "authorizationpolicies")?;
    let spec = json!({"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["guarded"]}}]}]});
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "nobody-from-here", "namespace": "guarded"}, "spec": spec,
    });
    mesh.kubectl().apply(&policy.to_string())?;
    let url = pair.url();
    wait::until("the policy denies", WITHIN, || {
        ensure!(pair.try_fetch(&url).is_err(), "it is allowed");
        Ok(())
    })?;
    mesh.signet.engine("n2")?.wait_for_log(&["connection complete", "nobody-from-here", "error="])?;
    mesh.kubectl().run(&["delete", "--namespace=guarded", "authorizationpolicy/nobody-from-here"])?;
    pair.by_address()
}

fn a_pod_whose_first_act_is_to_connect_waits_and_never_speaks_in_clear() -> Result<()> {
    let mesh = mesh()?;
    let pair = mesh.pair("early", true)?;
    let wire = mesh.record()?;
    // Tried once: whoever comes before the engine is ready waits for it.
    let connect = format!("exec curl --silent --show-error --fail {}", pair.url());
    let names: Vec<String> = (0..EARLY_PODS).map(|index| format!("early-{index}")).collect();
    for name in &names {
        mesh.kubectl().apply(&shared::pod("early", name, "n1", IMAGE, &["sh", "-c", &connect]))?;
    }
    for name in &names {
        let object = format!("pod/{name}");
        mesh.kubectl().wait("early", &object, "jsonpath={.status.phase}=Succeeded", WITHIN)?;
        let said = mesh.kubectl().logs("early", name)?;
        ensure!(said == pair.secret(), "{name} got {said:?}");
    }
    let packets = wire.stop()?;
    ensure!(!pair.is_seen(&packets), "a pod spoke in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    Ok(())
}

/// Alone on the cluster: it breaks what the others use.
fn an_api_server_that_is_away_stops_no_traffic_and_loses_no_change() -> Result<()> {
    let mesh = alone()?;
    let pair = mesh.pair("steady", true)?;
    pair.by_service()?;
    let engine = mesh.signet.engine("n1")?;
    let source = |wanted: &str| {
        wait::until(&format!("the source says {wanted:?}"), WITHIN, || {
            let status = engine.signet(&["status"])?;
            ensure!(status["ready"] == true, "not ready: {status}");
            ensure!(status["conditions"].to_string().contains(wanted), "{}", status["conditions"]);
            Ok(())
        })
    };
    source("is heard")?;
    let client = pair.container("client")?;
    mesh.cluster.component("kube-apiserver")?.stop()?;
    source("what was known stays in force")?;
    pair.fetch_without_api_server(&client)?;
    mesh.cluster.component("kube-apiserver")?.start()?;
    source("is heard")?;
    wait::until("the API server is back", WITHIN, || mesh.label("steady", "istio.io/dataplane-mode-"))?;
    mesh.signet.wait_for_pod("steady", "client", false)
}

/// Together with others.
pub(crate) fn mesh() -> Result<Turn<Meshed, RwLockReadGuard<'static, ()>>> {
    TURNS.together()
}

/// With no other.
pub(crate) fn alone() -> Result<Turn<Meshed, RwLockWriteGuard<'static, ()>>> {
    TURNS.alone()
}

/// Takes it down. Called after the last test too, where not all of these have run.
pub(crate) fn end() {
    TURNS.end();
}

pub(crate) fn server(namespace: &str) -> String {
    let secret = secret(namespace);
    let serve = format!("mkdir /www && printf {secret} >/www/{namespace} && exec httpd -f -p 8080 -h /www");
    shared::pod(namespace, "server", "n2", IMAGE, &["sh", "-c", &serve])
}

pub(crate) fn secret(namespace: &str) -> String {
    format!("what-only-a-client-in-{namespace}-may-read")
}

pub(crate) fn service(namespace: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": namespace},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
    })
    .to_string()
}

/// A CRD as Istio has it, without its schema.
fn definition(kind: &str, plural: &str) -> String {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.security.istio.io")},
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
    .to_string()
}

const IMAGE: &str = "signet-workload";
/// Pods that connect at once.
const EARLY_PODS: usize = 20;

static TURNS: Turns<Meshed> = Turns::new(
    TESTS.len()
        + dashboard::TESTS.len()
        + handshakes::TESTS.len()
        + identities::TESTS.len()
        + ipv6::TESTS.len()
        + pods::TESTS.len()
        + probes::TESTS.len()
        + services::TESTS.len(),
    Meshed::start,
);
