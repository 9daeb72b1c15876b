//! The rights of the Job that takes Signet out of the nodes before helm deletes it: each is needed, and where one is missing
//! the Job's pod says which, where people look for why it failed.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::Kubectl;
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::rights::{Account, Right, rights, rules};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    each_right_of_the_uninstall_job_that_is_missing_is_named_with_its_verb_and_resource,
);

/// Of a DaemonSet of that name, whose pod is never ready: what uninstalls has to wait for it.
fn each_right_of_the_uninstall_job_that_is_missing_is_named_with_its_verb_and_resource() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    let account = Account::make(kubectl, NAMESPACE)?;
    let rules = rules(&cluster, "uninstall.yaml")?;
    kubectl.apply(&daemon_set().to_string())?;
    let mut tried = 0;
    for right in rights(&rules) {
        account.has_all_but(&right, &rules)?;
        fails_and_says(kubectl, &right)?;
        tried += 1;
    }
    ensure!(tried == 3, "{tried} rights: the test looks at the wrong things");
    kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(drop)
}

fn fails_and_says(kubectl: &Kubectl, right: &Right) -> Result<()> {
    let name = format!("without-{}", right.verb);
    kubectl.apply(&job_pod(&name).to_string())?;
    let object = format!("pod/{name}");
    kubectl.wait(NAMESPACE, &object, "jsonpath={.status.phase}=Failed", WITHIN)?;
    let wanted = format!("the verb {} on {}", right.verb, right.resource());
    wait::until(&format!("the pod says {wanted}"), WITHIN, || {
        let pod = kubectl.json(&["get", "--namespace", NAMESPACE, &object])?;
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        // Quotes are escaped inside of a field.
        let said = ended["message"].as_str().context("no termination message")?.replace(['"', '\\'], "");
        ensure!(said.contains(&wanted), "{said}");
        Ok(())
    })
}

/// As the chart has it: the image, its arguments, and where its last words go.
fn job_pod(name: &str) -> Value {
    let mut pod: Value =
        serde_json::from_str(&shared::pod(NAMESPACE, name, "n1", "signetd", &[])).expect("JSON");
    pod["spec"]["serviceAccountName"] = json!("any");
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["--withdraw", format!("{NAMESPACE}/signetd")]);
    container["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    pod
}

fn daemon_set() -> Value {
    let mut pod: Value =
        serde_json::from_str(&shared::pod(NAMESPACE, "signetd", "n1", "signet-workload", &["sleep", "3600"]))
            .expect("JSON");
    let mut spec = pod["spec"].take();
    for field in ["restartPolicy", "nodeName"] {
        spec.as_object_mut().expect("an object").remove(field);
    }
    spec["containers"][0]["name"] = json!("signetd");
    spec["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["false"]}});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "signetd", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": "signetd"}},
            "template": {"metadata": {"labels": {"app": "signetd"}}, "spec": spec},
        },
    })
}

const NAMESPACE: &str = "rights-uninstall";
