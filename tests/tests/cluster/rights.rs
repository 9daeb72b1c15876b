//! The rights of both daemons' accounts: each verb of each rule of the chart is needed, and named where it is missing.
//! Those of the Job that uninstalls are in `withdrawing`.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::release;
use signet_testkit::cluster::{Cluster, Helm, Kubectl, Node};
use signet_testkit::need::Need;
use signet_testkit::process::{Process, stdout};
use signet_testkit::svid::Authority;
use signet_testkit::token::AUDIENCE;
use signet_testkit::{binaries, cgroup, wait};

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    each_right_of_signetd_that_is_missing_is_named_with_its_verb_and_resource,
    each_right_of_signet_ca_that_is_missing_is_named_with_its_verb_and_resource,
);

/// One engine after the other as a process of a node, with the account's role less one verb.
fn each_right_of_signetd_that_is_missing_is_named_with_its_verb_and_resource() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    for file in std::fs::read_dir(release::chart("crds"))? {
        kubectl.apply(&std::fs::read_to_string(file?.path())?)?;
    }
    let account = Account::make(kubectl, "rights-engine")?;
    let rules = rules(&cluster, "signetd-account.yaml")?;
    let engine = Engine::prepare(&cluster, &account)?;
    let mut tried = 0;
    for right in rights(&rules) {
        account.has_all_but(&right, &rules)?;
        engine.says(&cluster.nodes()[0], &right)?;
        tried += 1;
    }
    ensure!(tried >= 18, "only {tried} rights: the test looks at the wrong things");
    Ok(())
}

/// The same for the CA, which begins each time without a root, with roots of somebody else published in one namespace and
/// none in another, and is asked for a certificate where the right is for that.
fn each_right_of_signet_ca_that_is_missing_is_named_with_its_verb_and_resource() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    let account = Account::make(kubectl, "rights-ca")?;
    let rules = rules(&cluster, "ca-account.yaml")?;
    let ca = Ca::prepare(&cluster, &account)?;
    let mut tried = 0;
    for right in rights(&rules) {
        account.has_all_but(&right, &rules)?;
        ca.says(&cluster, &right)?;
        tried += 1;
    }
    ensure!(tried >= 13, "only {tried} rights: the test looks at the wrong things");
    Ok(())
}

/// A service account `any` in a namespace of its own, with a role of the same name.
pub(crate) struct Account<'k> {
    kubectl: &'k Kubectl,
    name: &'static str,
}

impl<'k> Account<'k> {
    pub(crate) fn make(kubectl: &'k Kubectl, name: &'static str) -> Result<Self> {
        kubectl.create_namespace(name)?;
        kubectl.run(&["create", "serviceaccount", "any", "--namespace", name])?;
        let account = format!("--serviceaccount={name}:any");
        kubectl.run(&["create", "clusterrolebinding", name, "--clusterrole", name, &account])?;
        Ok(Self { kubectl, name })
    }

    /// The API server's authorizer hears of a changed role a moment later.
    pub(crate) fn has_all_but(&self, right: &Right, rules: &[Value]) -> Result<()> {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": self.name}, "rules": right.without(rules),
        });
        self.kubectl.apply(&role.to_string())?;
        let (account, resource) = (format!("--as=system:serviceaccount:{}:any", self.name), right.object());
        wait::until(&format!("the account lacks {} on {resource}", right.verb), WITHIN, || {
            let ask = ["auth", "can-i", &right.verb, &resource, "--all-namespaces", &account];
            let output = self.kubectl.command(&ask).output().context("cannot run kubectl")?;
            ensure!(!output.status.success(), "it has it");
            Ok(())
        })
    }
}

/// A verb on a resource of a rule.
pub(crate) struct Right {
    rule: usize,
    /// The one object that the rule is about, where it names any.
    name: Option<String>,
    group: String,
    resource: String,
    pub(crate) verb: String,
}

impl Right {
    /// As readiness and RBAC name it.
    pub(crate) fn resource(&self) -> String {
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
        if reduced["verbs"] != json!([]) {
            rules.push(reduced);
        }
        rules
    }

    /// As `kubectl auth can-i` asks for it.
    fn object(&self) -> String {
        self.name.iter().fold(self.resource(), |resource, name| format!("{resource}/{name}"))
    }
}

/// Every verb on every resource of the rules.
pub(crate) fn rights(rules: &[Value]) -> Vec<Right> {
    let mut rights = Vec::new();
    let words = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for (rule_index, rule) in rules.iter().enumerate() {
        let group = words(&rule["apiGroups"]).concat();
        let name = words(&rule["resourceNames"]).first().cloned();
        for resource in words(&rule["resources"]) {
            for verb in words(&rule["verbs"]) {
                let (name, group, resource) = (name.clone(), group.clone(), resource.clone());
                rights.push(Right { rule: rule_index, name, group, resource, verb });
            }
        }
    }
    rights
}

/// Of all roles in one of the chart's templates.
pub(crate) fn rules(cluster: &Cluster, template: &str) -> Result<Vec<Value>> {
    let account = Helm::new(cluster)?.template(Some(template), &[])?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), account)?;
    let path = file.path().to_str().context("a path in UTF-8")?;
    let client = ["create", "--dry-run=client", "--output=json", "--filename", path];
    let said = cluster.kubectl().run(&client)?;
    // One object after the other.
    let objects = serde_json::Deserializer::from_str(&said).into_iter::<Value>().filter_map(Result::ok);
    let rules =
        objects.filter_map(|object| object["rules"].as_array().cloned()).flatten().collect::<Vec<_>>();
    ensure!(!rules.is_empty(), "{template} has no rules");
    Ok(rules)
}

/// `signetd` beside the node's own pods: its cgroup root has none.
struct Engine {
    config: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
}

impl Engine {
    fn prepare(cluster: &Cluster, account: &Account<'_>) -> Result<Self> {
        let (folder, config) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
        let kubeconfig = folder.path().join("kubeconfig");
        cluster.write_account_kubeconfig(account.name, "any", &kubeconfig)?;
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

/// `signet-ca` outside of the nodes.
struct Ca {
    config: tempfile::NamedTempFile,
    folder: tempfile::TempDir,
    namespace: &'static str,
    /// Of a node daemon's pod.
    token: String,
}

impl Ca {
    fn prepare(cluster: &Cluster, account: &Account<'_>) -> Result<Self> {
        let (folder, config) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
        let kubeconfig = folder.path().join("kubeconfig");
        cluster.write_account_kubeconfig(account.name, "any", &kubeconfig)?;
        let text = json!({
            "trustDomain": "cluster.local", "listen": {"grpc": "127.0.0.1:15112", "metrics": "127.0.0.1:15114"},
            "root": {"secret": {"name": "signet-ca-root", "namespace": account.name}},
            "serving": {"names": ["signet-ca"]},
            "tokens": {"review": {}, "audience": AUDIENCE, "trustedNodeAccounts": [format!("{}/any", account.name)]},
            "inventory": {"kubernetes": {}}, "publish": {"configMap": "istio-ca-root-cert"},
            "kubernetes": {"kubeconfig": kubeconfig},
        });
        std::fs::write(config.path(), text.to_string())?;
        let token = token_without_node(account)?;
        Ok(Self { config, folder, namespace: account.name, token })
    }

    /// Starts one, and waits until its log names the right.
    fn says(&self, cluster: &Cluster, right: &Right) -> Result<()> {
        let kubectl = cluster.kubectl();
        let gone = ["delete", "--namespace", self.namespace, "--ignore-not-found"];
        kubectl.run(&[&gone[..], &["secret/signet-ca-root", "configmap/istio-ca-root-cert"]].concat())?;
        kubectl.run(&[
            "delete",
            "--namespace=default",
            "--ignore-not-found",
            "configmap/istio-ca-root-cert",
        ])?;
        let others = ["create", "configmap", "istio-ca-root-cert", "--from-literal=root-cert.pem=another"];
        kubectl.run(&[&others[..], &["--namespace", self.namespace]].concat())?;
        let (program, config) = (binaries::path("signet-ca")?, self.config.path());
        let argv = [program.to_str().context("UTF-8")?, "--config", config.to_str().context("UTF-8")?];
        let log = self.folder.path().join(format!("{}-{}.log", right.verb, right.resource));
        let ca = Process::start(cluster.outside(&argv)?, &log)?;
        let wanted = format!("{:?} on {}", right.verb, right.resource()).replace('"', "");
        wait::until(&format!("the log names {wanted}"), WITHIN, || {
            if WHEN_ASKED.contains(&(&right.verb, &right.resource)) {
                self.is_asked_in_vain(cluster)?;
            }
            // Quotes are escaped inside of a field.
            let log = ca.log()?.replace(['"', '\\'], "");
            ensure!(log.contains(&wanted), "{log}");
            Ok(())
        })
    }

    fn is_asked_in_vain(&self, cluster: &Cluster) -> Result<()> {
        let authority = Authority {
            netns: cluster.outside_netns(),
            address: "https://127.0.0.1:15112".to_owned(),
            server_name: "signet-ca".to_owned(),
            roots: cluster.roots_in(self.namespace)?,
        };
        let identity = format!("spiffe://cluster.local/ns/{}/sa/any", self.namespace);
        ensure!(authority.svid(&self.token, &identity).is_err(), "it signs without the right");
        Ok(())
    }
}

/// A token of a node daemon's pod that says nothing of its node, as an API server before 1.32 makes them: the pod is on
/// none yet.
fn token_without_node(account: &Account<'_>) -> Result<String> {
    let mut pod: Value =
        serde_json::from_str(&shared::pod(account.name, "daemon", "", "signet-workload", &["true"]))?;
    pod["spec"]["serviceAccountName"] = json!("any");
    pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "nowhere"});
    account.kubectl.apply(&pod.to_string())?;
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=daemon", "--duration=8h"];
    let token = ["create", "token", "any", "--namespace", account.name, "--audience", AUDIENCE];
    Ok(account.kubectl.run(&[&token[..], &bound].concat())?.trim().to_owned())
}

/// What the CA does for a request only.
const WHEN_ASKED: [(&str, &str); 2] = [("create", "tokenreviews"), ("get", "pods")];
/// Another test's engine may have the usual port on this node.
const READINESS: &str = "127.0.0.1:15121";
