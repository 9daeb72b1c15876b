//! Signet as people install it: `helm install` of the chart in `deploy/chart`, and what its pods say.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Cluster, Kubectl, Node};
use crate::process::stdout;
use crate::{binaries, wait};

/// A release of the chart on a cluster. It goes with the cluster, or by [`Self::uninstall`].
#[derive(Debug)]
pub struct Release {
    kubectl: Kubectl,
    helm: Helm,
}

/// helm with a cluster's kubeconfig; what it caches stays in the cluster's folder.
#[derive(Clone, Debug)]
pub struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Helm {
    /// For a cluster.
    ///
    /// # Errors
    /// There is no helm.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        Ok(Self { program: binaries::tool("helm")?, kubeconfig: cluster.kubeconfig() })
    }

    /// Runs `helm <arguments>` and returns what it wrote.
    ///
    /// # Errors
    /// It failed; carries what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        for (variable, folder) in FOLDERS {
            command.env(variable, self.kubeconfig.with_extension(folder));
        }
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        stdout(&command.output().context("cannot run helm")?)
            .with_context(|| format!("helm {}", arguments.join(" ")))
    }

    /// The chart as plain manifests, `only` one of its templates or all.
    ///
    /// # Errors
    /// The chart is wrong.
    pub fn template(&self, only: Option<&str>, values: &[&str]) -> Result<String> {
        let only = only.map(|name| format!("templates/{name}"));
        self.render(only.iter().flat_map(|name| ["--show-only", name]), values)
    }

    /// The same for a cluster that serves these groups (`cilium.io/v2`) beside Kubernetes' own.
    ///
    /// # Errors
    /// The chart is wrong.
    pub fn template_beside(&self, served: &[&str], values: &[&str]) -> Result<String> {
        self.render(served.iter().flat_map(|group| ["--api-versions", group]), values)
    }

    fn render<'a>(&self, options: impl Iterator<Item = &'a str>, values: &[&'a str]) -> Result<String> {
        let mut arguments = vec!["template", RELEASE, CHART, "--namespace", NAMESPACE];
        arguments.extend(options.chain(settings(values)));
        self.run(&arguments)
    }
}

impl Release {
    /// `helm install`, and waits until all of it is ready. `values` are `--set` arguments.
    ///
    /// # Errors
    /// It is not ready in time; carries what the pods say.
    pub fn install(cluster: &Cluster, values: &[&str]) -> Result<Self> {
        let release = Self { kubectl: cluster.kubectl().clone(), helm: Helm::new(cluster)? };
        release.helm(&["install", RELEASE, CHART, "--create-namespace"], values)?;
        Ok(release)
    }

    /// `helm upgrade` with these values on top of the chart's own.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn upgrade(&self, values: &[&str]) -> Result<()> {
        self.helm(&["upgrade", RELEASE, CHART], values)
    }

    /// `helm rollback` to the revision before.
    ///
    /// # Errors
    /// It is not ready in time.
    pub fn rollback(&self) -> Result<()> {
        self.helm(&["rollback", RELEASE], &[])
    }

    /// `helm uninstall`, and waits until its pods are gone.
    ///
    /// # Errors
    /// A node did not let go.
    pub fn uninstall(&self) -> Result<()> {
        self.helm(&["uninstall", RELEASE], &[])?;
        let gone = ["wait", "--namespace", NAMESPACE, "--for=delete", "pod", "--all", "--timeout=120s"];
        self.kubectl.run(&gone).map(drop)
    }

    /// The pod of `signetd` on a node. One that is being deleted finishes its connections, and is none.
    ///
    /// # Errors
    /// There is not exactly one that runs.
    pub fn pod(&self, node: &str) -> Result<String> {
        let mut pods = self.pods(node)?.into_iter();
        let pod = pods.next().with_context(|| format!("no signetd runs on {node}"))?;
        ensure!(pods.next().is_none(), "two pods of signetd run on {node}");
        Ok(pod)
    }

    /// The pods of `signetd` on a node that run and are not being deleted: two while one stands by.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn pods(&self, node: &str) -> Result<Vec<String>> {
        let on_node = format!("--field-selector=spec.nodeName={node},status.phase=Running");
        let pods = self.kubectl.json(&["get", "pods", "--namespace", NAMESPACE, SELECTOR, &on_node])?;
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let name = |pod: &Value| Some(format!("pod/{}", pod["metadata"]["name"].as_str()?));
        Ok(pods["items"].as_array().into_iter().flatten().filter(stays).filter_map(name).collect())
    }

    /// What `signet <command> -o json` prints in the pod of a node.
    ///
    /// # Errors
    /// It failed, or printed no JSON.
    pub fn signet(&self, node: &str, command: &[&str]) -> Result<Value> {
        let argv = [&["signet"], command, &["-o", "json"]].concat();
        let text = self.kubectl.exec(NAMESPACE, &self.pod(node)?, &argv)?;
        serde_json::from_str(&text).with_context(|| format!("signet {} printed: {text}", command.join(" ")))
    }

    /// Waits until the engine of a node has written a line with all these parts; returns it.
    ///
    /// # Errors
    /// It had not within [`WITHIN`].
    pub fn wait_for_log(&self, node: &str, parts: &[&str]) -> Result<String> {
        wait::until(&format!("signetd of {node} writes {parts:?}"), WITHIN, || {
            let log = self.kubectl.logs(NAMESPACE, &self.pod(node)?)?;
            let line = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned).with_context(|| {
                let lines: Vec<&str> = log.lines().collect();
                format!("its log ends with:\n{}", lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"))
            })
        })
    }

    /// Waits until every pod of a namespace is what `state` says for the engine of its node: `captured`, `bypassed`; and
    /// until the other engines know it too.
    ///
    /// # Errors
    /// They are not within [`WITHIN`].
    pub fn wait_for_pods(&self, nodes: &[Node], namespace: &str, state: &str) -> Result<()> {
        let enrolled = state != "bypassed";
        nodes.iter().try_for_each(|node| {
            wait::until(&format!("{namespace} is {state} on {}", node.name()), WITHIN, || {
                let views = self.signet(node.name(), &["workloads"])?;
                let of_namespace = |view: &&Value| view["namespace"] == namespace;
                let views: Vec<_> = views.as_array().into_iter().flatten().filter(of_namespace).collect();
                ensure!(!views.is_empty(), "none is known");
                for view in views {
                    let addressed = view["addresses"].as_array().is_some_and(|all| !all.is_empty());
                    let here = view["local"] == false || view["state"] == state;
                    ensure!(view["enrolled"] == enrolled && addressed && here, "{view}");
                }
                Ok(())
            })
        })
    }

    fn helm(&self, command: &[&str], values: &[&str]) -> Result<()> {
        let common = ["--namespace", NAMESPACE, "--wait", "--timeout", "180s"];
        let arguments = [command, &common, &settings(values)].concat();
        self.helm.run(&arguments).map(drop).with_context(|| self.describe())
    }

    /// What the pods of the release are, and say.
    fn describe(&self) -> String {
        let asked: [&[&str]; 3] = [
            &["get", "pods,jobs", "--output=wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "--prefix", "--tail=10", "--selector=app.kubernetes.io/part-of=signet"],
        ];
        let ask = |arguments: &&[&str]| {
            let arguments = [arguments, &["--namespace", NAMESPACE][..]].concat();
            self.kubectl.run(&arguments).unwrap_or_else(|error| format!("{error:#}"))
        };
        asked.iter().map(ask).collect::<Vec<_>>().join("\n")
    }
}

fn settings<'v>(values: &[&'v str]) -> Vec<&'v str> {
    values.iter().flat_map(|value| ["--set", value]).collect()
}

/// The path of one of the chart's files.
#[must_use]
pub fn chart(file: &str) -> PathBuf {
    Path::new(CHART).join(file)
}

/// Where it is installed.
pub const NAMESPACE: &str = "signet-system";
const RELEASE: &str = "signet";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
const SELECTOR: &str = "--selector=app.kubernetes.io/name=signetd";
const FOLDERS: [(&str, &str); 3] =
    [("HELM_CACHE_HOME", "helm-cache"), ("HELM_CONFIG_HOME", "helm-config"), ("HELM_DATA_HOME", "helm-data")];
const LAST_LINES: usize = 15;
/// For a machine that is busy with a build.
const WITHIN: Duration = Duration::from_secs(90);
