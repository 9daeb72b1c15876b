//! The chart in `deploy/chart`: what it renders, and what it refuses to.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use signet_testkit::binaries;
use signet_testkit::cluster::release::{self, NAMESPACE};
use signet_testkit::cluster::{Helm, Kubectl};
use signet_testkit::need::Need;

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster] =>
    no_role_has_a_wildcard,
    a_misspelt_value_is_refused_and_named,
    values_that_contradict_each_other_are_refused_and_named,
    signetd_takes_the_configuration_that_is_rendered,
    the_chart_has_the_version_of_the_programs,
);

/// With the kinds of others that the chart renders: real definitions, of real projects.
pub(crate) const MANIFEST_TESTS: &[crate::Test] = crate::tests!(
    &[Need::Cluster, Need::Tool(PROMETHEUS), Need::Tool(CILIUM)] =>
    every_manifest_passes_the_api_servers_strict_dry_run,
);

fn every_manifest_passes_the_api_servers_strict_dry_run() -> Result<()> {
    let cluster = shared::cluster()?;
    let kubectl = cluster.kubectl();
    kubectl.create_namespace(NAMESPACE)?;
    for file in fs::read_dir(release::chart("crds"))? {
        dry_run(kubectl, &fs::read_to_string(file?.path())?)?;
    }
    let helm = Helm::new(&cluster)?;
    for values in [
        &[][..],
        &["signetd.privileged=true", "resourceQuota.enabled=true", "dashboard.enabled=true"],
        &["signetd.standBy=false"],
        EXTERNAL_CA,
    ] {
        let manifests = helm.template(None, values)?;
        let kinds = dry_run(kubectl, &manifests)?;
        ensure!(kinds.contains("DaemonSet") && kinds.len() >= 6, "only {kinds:?} for {values:?}");
    }
    kinds_of_others_pass(kubectl, &helm)
}

fn kinds_of_others_pass(kubectl: &Kubectl, helm: &Helm) -> Result<()> {
    for file in [PROMETHEUS, CILIUM] {
        kubectl.apply(&fs::read_to_string(binaries::tool(file)?)?)?;
    }
    for name in CRDS {
        kubectl.wait("default", &format!("crd/{name}"), "condition=Established", WITHIN)?;
    }
    let values = ["podMonitor.enabled=true", "podMonitor.labels.release=prometheus"];
    let all = objects(kubectl, &helm.template_beside(&["cilium.io/v2"], &values)?, "server");
    // Others use this cluster too.
    kubectl.run(&[&["delete", "crd"][..], &CRDS].concat())?;
    let all = all?;
    for kind in ["PodMonitor", "CiliumNetworkPolicy"] {
        ensure!(all.iter().any(|object| object["kind"] == kind), "no {kind} is rendered");
    }
    monitored_ports_are_declared(&all)
}

/// Prometheus knows the number of a port only where the pod declares it; and what a pod on the node's own network declares
/// is refused to every other pod of the node, the engine that stands by among them.
fn monitored_ports_are_declared(all: &[Value]) -> Result<()> {
    for monitor in all.iter().filter(|object| object["kind"] == "PodMonitor") {
        let name = &monitor["metadata"]["name"];
        let workload =
            |object: &&Value| object["metadata"]["name"] == *name && !object["spec"]["template"].is_null();
        let pod =
            &all.iter().find(workload).with_context(|| format!("no pods of {name}"))?["spec"]["template"];
        let ports = pod["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
        let on_node = pod["spec"]["hostNetwork"] == true;
        ensure!(!on_node || ports.is_empty(), "{name} keeps others off its node: {ports:?}");
        for endpoint in monitor["spec"]["podMetricsEndpoints"].as_array().context("endpoints")? {
            let number = &endpoint["portNumber"];
            let is_declared = ports.iter().any(|port| port["containerPort"] == *number);
            let is_made = endpoint["relabelings"].to_string().contains("__address__");
            ensure!(is_declared || (number.is_null() && is_made), "{name} is scraped nowhere: {endpoint}");
        }
    }
    Ok(())
}

fn no_role_has_a_wildcard() -> Result<()> {
    let cluster = shared::cluster()?;
    let manifests = Helm::new(&cluster)?.template(None, &[])?;
    let mut roles = 0;
    for object in objects(cluster.kubectl(), &manifests, "client")? {
        let kind = object["kind"].as_str().unwrap_or_default();
        if !["Role", "ClusterRole"].contains(&kind) {
            continue;
        }
        roles += 1;
        for rule in object["rules"].as_array().context("a role has rules")? {
            for list in ["apiGroups", "resources", "verbs"] {
                let words = rule[list].as_array().with_context(|| format!("{list} of {rule}"))?;
                let is_wild = |word: &&Value| word.as_str().is_none_or(|word| word.contains('*'));
                ensure!(!words.iter().any(|word| is_wild(&word)), "{kind}: {rule}");
            }
        }
    }
    ensure!(roles >= 4, "the chart has {roles} roles: the test looks at the wrong things");
    Ok(())
}

fn a_misspelt_value_is_refused_and_named() -> Result<()> {
    let helm = Helm::new(&*shared::cluster()?)?;
    for (value, named) in [
        ("signetd.unknownPod=deny", "unknownPod"),
        ("signetd.unknownPods=maybe", "unknownPods"),
        ("imgae.tag=1", "imgae"),
        ("ca.replicas=0", "replicas"),
        ("signetd.svidTtl=soon", "svidTtl"),
        ("mesh.podRanges={10.0.0.0}", "podRanges"),
        ("mesh.podRanges={10.0.0.0/33}", "podRanges"),
        ("mesh.podRanges={fd00::/129}", "podRanges"),
        ("mesh.outboundTrafficPolicy=ALLOW", "outboundTrafficPolicy"),
        ("ca.enabled=false", "ca.address"),
    ] {
        is_refused(&helm, &[value], named)?;
    }
    Ok(())
}

fn values_that_contradict_each_other_are_refused_and_named() -> Result<()> {
    let helm = Helm::new(&*shared::cluster()?)?;
    for (values, named) in [
        (&["signetd.drain=30s"][..], "terminationGracePeriodSeconds"),
        (&["signetd.drain=1m", "signetd.terminationGracePeriodSeconds=60"], "signetd.drain is 1m"),
        (&["signetd.svidTtl=25h"], "ca.maxSvidTtl"),
        (&["ca.maxSvidTtl=1h"], "signetd.svidTtl is 24h"),
    ] {
        is_refused(&helm, values, named)?;
    }
    for values in [
        &["signetd.drain=1m 30s", "signetd.terminationGracePeriodSeconds=91"][..],
        &["signetd.svidTtl=30m", "ca.maxSvidTtl=0h 30m"],
        &["ca.enabled=false", "ca.address=https://ca:15012", "signetd.svidTtl=48h"],
    ] {
        helm.template(None, values)?;
    }
    Ok(())
}

fn is_refused(helm: &Helm, values: &[&str], named: &str) -> Result<()> {
    let Err(error) = helm.template(None, values) else { bail!("{values:?} was taken") };
    ensure!(format!("{error:#}").contains(named), "{values:?}: {error:#}");
    Ok(())
}

/// By the findings of `signetd --check`, which begin once the configuration is read.
fn signetd_takes_the_configuration_that_is_rendered() -> Result<()> {
    let cluster = shared::cluster()?;
    let manifest = Helm::new(&cluster)?.template(Some("signetd-config.yaml"), CONFIGURED)?;
    let objects = objects(cluster.kubectl(), &manifest, "client")?;
    let config = objects.iter().find_map(|object| object["data"]["signetd.yaml"].as_str());
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), config.context("a ConfigMap with signetd.yaml")?)?;
    let mut check = Command::new(binaries::path("signetd")?);
    let said = check.arg("--config").arg(file.path()).args(["--node", "n1", "--check"]).output()?;
    let findings = String::from_utf8_lossy(&said.stdout);
    ensure!(findings.contains("kernel"), "{findings}{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

fn the_chart_has_the_version_of_the_programs() -> Result<()> {
    let chart = fs::read_to_string(release::chart("Chart.yaml"))?;
    for field in ["version", "appVersion"] {
        let wanted = format!("{field}: {VERSION}");
        ensure!(chart.lines().any(|line| line == wanted), "Chart.yaml has not {wanted:?}");
    }
    Ok(())
}

/// What the API server would make of manifests, and has no objection to: their kinds.
fn dry_run(kubectl: &Kubectl, manifests: &str) -> Result<BTreeSet<String>> {
    let kind = |object: &Value| object["kind"].as_str().map(str::to_owned).context("an object has a kind");
    objects(kubectl, manifests, "server")?.iter().map(kind).collect()
}

/// As JSON, after what `by` makes of them: `server`, the API server, or `client`, kubectl, which needs no namespace.
pub(crate) fn objects(kubectl: &Kubectl, manifests: &str, by: &str) -> Result<Vec<Value>> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), manifests)?;
    let path = file.path().to_str().context("a path in UTF-8")?;
    let said =
        kubectl.json(&["apply", &format!("--dry-run={by}"), "--validate=strict", "--filename", path])?;
    Ok(said["items"].as_array().cloned().unwrap_or_else(|| vec![said]))
}

/// What is not rendered, or empty, where nobody sets it.
const CONFIGURED: &[&str] = &[
    "mesh.outboundTrafficPolicy=REGISTRY_ONLY",
    "mesh.serviceRanges={10.96.0.0/16}",
    "mesh.podRanges={10.0.0.0/8,fd00::/8}",
    "mesh.outsideRanges={10.1.2.3/32}",
    "signetd.podsRoot=kubepods",
    "signetd.kubeletCgroup=system/kubelet",
    "signetd.log.format=json",
];
const EXTERNAL_CA: &[&str] = &["ca.enabled=false", "ca.address=https://istiod.istio-system.svc:15012"];
/// What `cargo xtask setup` has copied of other projects, and what they call it.
const PROMETHEUS: &str = "prometheus-definitions.yaml";
const CILIUM: &str = "cilium-definitions.yaml";
const CRDS: [&str; 2] = ["podmonitors.monitoring.coreos.com", "ciliumnetworkpolicies.cilium.io"];
const VERSION: &str = env!("CARGO_PKG_VERSION");
