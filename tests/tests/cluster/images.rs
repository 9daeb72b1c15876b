//! The images that `cargo xtask image` builds: containerd takes them, and what is in them runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::binaries;
use signet_testkit::cluster::Kubectl;
use signet_testkit::need::Need;
use signet_testkit::process::stdout;

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster] =>
    signetd_and_signet_run_in_their_image,
    signet_ca_runs_in_its_image_as_nobody_in_particular,
    two_builds_of_the_images_are_the_same_byte_for_byte,
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

fn two_builds_of_the_images_are_the_same_byte_for_byte() -> Result<()> {
    let (first, second) = (build()?, build()?);
    ensure!(first.len() > 20, "the images are few files: {:?}", first.keys());
    let differ = |path: &&String| first.get(*path) != second.get(*path);
    let differing: Vec<&String> = first.keys().chain(second.keys()).filter(differ).collect();
    ensure!(differing.is_empty(), "these differ: {differing:?}");
    Ok(())
}

/// Every file of the images of a build of its own.
fn build() -> Result<BTreeMap<String, Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let mut xtask = Command::new(binaries::path("xtask")?);
    xtask.args(["image", "--dev", "--no-build", "--output"]).arg(folder.path());
    stdout(&xtask.output()?).context("cargo xtask image")?;
    let mut files = BTreeMap::new();
    collect(folder.path(), folder.path(), &mut files)?;
    Ok(files)
}

fn collect(root: &Path, folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, into)?;
        } else {
            into.insert(path.strip_prefix(root)?.display().to_string(), fs::read(&path)?);
        }
    }
    Ok(())
}

/// What a pod wrote that ran to its end.
fn said(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<String> {
    let object = format!("pod/{pod}");
    kubectl.wait(namespace, &object, "jsonpath={.status.phase}=Succeeded", WITHIN)?;
    kubectl.logs(namespace, pod).context("its log")
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
