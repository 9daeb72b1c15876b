//! The images that `cargo xtask image` builds: containerd takes them, and what is in them runs.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::Kubectl;
use signet_testkit::need::Need;

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster] =>
    signetd_and_signet_run_in_their_image,
    signet_ca_runs_in_its_image_as_nobody_in_particular,
);

fn signetd_and_signet_run_in_their_image() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("engine-image")?;
    for (index, program) in ["signetd", "signet"].into_iter().enumerate() {
        let node = cluster.nodes()[index].name();
        let path = format!("/usr/bin/{program}");
        kubectl.apply(&shared::pod("engine-image", program, node, "signetd", &[&path, "--version"]))?;
        ensure!(said(kubectl, "engine-image", program)? == format!("{program} {VERSION}"), "another version");
    }
    Ok(())
}

/// With all that a pod can be forbidden: the restricted Pod Security Standard, and a root file system that is read-only.
fn signet_ca_runs_in_its_image_as_nobody_in_particular() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace("ca-image")?;
    kubectl.run(&["label", "namespace/ca-image", "pod-security.kubernetes.io/enforce=restricted"])?;
    let mut pod: Value = serde_json::from_str(&shared::pod("ca-image", "ca", "n1", "signet-ca", &[]))?;
    let container = &mut pod["spec"]["containers"][0];
    container["args"] = json!(["--version"]);
    container["securityContext"] = json!({
        "runAsNonRoot": true, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    kubectl.apply(&pod.to_string())?;
    ensure!(said(kubectl, "ca-image", "ca")? == format!("signet-ca {VERSION}"), "another version");
    Ok(())
}

/// What a pod wrote that ran to its end.
fn said(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<String> {
    let object = format!("pod/{pod}");
    kubectl.wait(namespace, &object, "jsonpath={.status.phase}=Succeeded", WITHIN)?;
    kubectl.logs(namespace, pod).context("its log")
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
