//! The rights of `signetd`'s account: each verb of each rule of the chart is needed, and named where it is missing.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::release;
use signet_testkit::cluster::{Cluster, Helm, Kubectl, Node};
use signet_testkit::need::Need;
use signet_testkit::process::{Process, stdout};
use signet_testkit::{binaries, cgroup, wait};

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    each_right_of_signetd_that_is_missing_is_named_with_its_verb_and_resource,
);

/// One engine after the other as a process of a node, with the account's role less one verb.
fn each_right_of_signetd_that_is_missing_is_named_with_its_verb_and_resource() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    for file in std::fs::read_dir(release::chart("crds"))? {
        kubectl.apply(&std::fs::read_to_string(file?.path())?)?;
    }
    kubectl.create_namespace("rights")?;
    kubectl.run(&["create", "serviceaccount", "engine", "--namespace=rights"])?;
    let binding =
        ["create", "clusterrolebinding", ROLE, "--clusterrole", ROLE, "--serviceaccount=rights:engine"];
    kubectl.run(&binding)?;
    let rules = rules(&cluster)?;
    let engine = Engine::prepare(&cluster)?;
    let mut tried = 0;
    for right in rights(&rules) {
        kubectl.apply(&role(&right.without(&rules)).to_string())?;
        right.wait_until_it_is_missing(kubectl)?;
        engine.says(&cluster.nodes()[0], &right)?;
        tried += 1;
    }
    ensure!(tried >= 18, "only {tried} rights: the test looks at the wrong things");
    Ok(())
}

/// A verb on a resource of a rule.
struct Right {
    rule: usize,
    group: String,
    resource: String,
    verb: String,
}

impl Right {
    /// As readiness and RBAC name it.
    fn resource(&self) -> String {
        match self.group.as_str() {
            "" => self.resource.clone(),
            group => format!("{}.{group}", self.resource),
        }
    }

    /// The rules with this one's resource on its own, less the verb.
    fn without(&self, rules: &[Value]) -> Vec<Value> {
        let mut rules = rules.to_vec();
        let mut reduced = rules[self.rule].clone();
        let less = |list: &Value, word: &str| -> Value {
            list.as_array().into_iter().flatten().filter(|each| *each != word).cloned().collect()
        };
        reduced["resources"] = json!([self.resource]);
        reduced["verbs"] = less(&reduced["verbs"], &self.verb);
        rules[self.rule]["resources"] = less(&rules[self.rule]["resources"], &self.resource);
        if rules[self.rule]["resources"] == json!([]) {
            rules.remove(self.rule);
        }
        rules.push(reduced);
        rules
    }

    /// The API server's authorizer hears of a changed role a moment later.
    fn wait_until_it_is_missing(&self, kubectl: &Kubectl) -> Result<()> {
        let can = |verb: &str| {
            let account = "--as=system:serviceaccount:rights:engine";
            let resource = self.resource();
            let ask = ["auth", "can-i", verb, &resource, "--all-namespaces", account];
            let output = kubectl.command(&ask).output().context("cannot run kubectl")?;
            anyhow::Ok(output.status.success())
        };
        wait::until(&format!("the account lacks {} on {}", self.verb, self.resource()), WITHIN, || {
            ensure!(!can(&self.verb)?, "it has it");
            Ok(())
        })
    }
}

/// Every verb on every resource of the rules.
fn rights(rules: &[Value]) -> Vec<Right> {
    let mut rights = Vec::new();
    let words = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for (index, rule) in rules.iter().enumerate() {
        let group = words(&rule["apiGroups"]).concat();
        for resource in words(&rule["resources"]) {
            for verb in words(&rule["verbs"]) {
                rights.push(Right { rule: index, group: group.clone(), resource: resource.clone(), verb });
            }
        }
    }
    rights
}

/// Of the chart's ClusterRole.
fn rules(cluster: &Cluster) -> Result<Vec<Value>> {
    let account = Helm::new(cluster)?.template(Some("signetd-account.yaml"), &[])?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), account)?;
    let path = file.path().to_str().context("a path in UTF-8")?;
    let client = ["create", "--dry-run=client", "--output=json", "--filename", path];
    let said = cluster.kubectl().run(&client)?;
    // One object after the other.
    let mut objects = serde_json::Deserializer::from_str(&said).into_iter::<Value>().filter_map(Result::ok);
    let role =
        objects.find(|object| object["kind"] == "ClusterRole").context("the chart has no ClusterRole")?;
    role["rules"].as_array().cloned().context("it has rules")
}

fn role(rules: &[Value]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": ROLE}, "rules": rules,
    })
}

/// `signetd` beside the node's own pods: its cgroup root has none.
struct Engine {
    config: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
}

impl Engine {
    fn prepare(cluster: &Cluster) -> Result<Self> {
        let (folder, config) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
        let kubeconfig = folder.path().join("kubeconfig");
        cluster.write_account_kubeconfig("rights", "engine", &kubeconfig)?;
        let root = cgroup::mount()?.join(cluster.nodes()[0].cgroup_root()).join("system");
        let text = json!({
            "instance": "cluster-rights", "node": {"name": "n1"},
            "source": {"kubernetes": {"kubeconfig": kubeconfig}}, "ca": {"file": {"directory": "/tmp"}},
            "capture": {"cgroupRoot": root, "podsRoot": "none"},
            "listen": {"metrics": "127.0.0.1:0", "readiness": READINESS, "admin": folder.path().join("admin.sock")},
        });
        std::fs::write(config.path(), text.to_string())?;
        Ok(Self { config, folder })
    }

    /// Starts one, and waits until its readiness names the right.
    fn says(&self, node: &Node, right: &Right) -> Result<()> {
        let (program, config) = (binaries::path("signetd")?, self.config.path());
        let argv = [program.to_str().context("UTF-8")?, "--config", config.to_str().context("UTF-8")?];
        let log = self.folder.path().join("log");
        let _engine = Process::start(node.command(&argv)?, &log)?;
        let wanted = format!("{:?} on {}", right.verb, right.resource());
        let url = format!("http://{READINESS}/healthz/ready");
        wait::until(&format!("readiness names {wanted}"), WITHIN, || {
            let said = stdout(&node.exec(&["curl", "--silent", "--max-time", "5", &url])?)?;
            let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
            let conditions = said["conditions"].as_array().context("conditions")?;
            let named =
                |condition: &Value| condition["detail"].as_str().is_some_and(|text| text.contains(&wanted));
            ensure!(conditions.iter().any(named), "{said}");
            Ok(())
        })
    }
}

const ROLE: &str = "signet-rights-test";
/// Another test's engine may have the usual port on this node.
const READINESS: &str = "127.0.0.1:15121";
