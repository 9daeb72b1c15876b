//! The stage: a cluster with the tiers on it, at first without a mesh.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::tiers::{self, Tier};
use crate::cluster::{Cluster, Release, release};
use crate::demo::report::Report;
use crate::process::stdout;
use crate::{demo, wait};

/// Everything of the demo. It ends with the cluster.
pub(super) struct Stage {
    release: Option<Release>,
    pub(super) cluster: Cluster,
    /// What the backend serves, and no wire may show.
    pub(super) payload: String,
    /// The containers there were before the mesh.
    pub(super) before: BTreeSet<String>,
}

impl Stage {
    /// Starts the cluster and the tiers.
    ///
    /// # Errors
    /// Something is missing; the text says what.
    pub(super) fn set(report: &Report, keep: bool) -> Result<Self> {
        report.progress("a Kubernetes cluster of two nodes");
        let cluster = if keep { Cluster::start_named(demo::KEPT)? } else { Cluster::start()? };
        report.progress("three tiers and a stranger, as Deployments and Services, not in a mesh yet");
        let payload = format!("photos-of-{}-for-the-frontend-alone", cluster.name());
        for namespace in tiers::ALL.iter().map(|tier| tier.namespace).collect::<BTreeSet<_>>() {
            cluster.kubectl().create_namespace(namespace)?;
        }
        for tier in tiers::ALL {
            let page = if tier.page.is_empty() { format!("{payload}\n") } else { tier.page.to_owned() };
            cluster.kubectl().apply(&tier.manifests(&page))?;
        }
        for tier in tiers::ALL {
            let kubectl = cluster.kubectl();
            let available = kubectl.wait(tier.namespace, &tier.deployment(), "condition=Available", WITHIN);
            available.with_context(|| {
                let pods = kubectl.run(&["describe", "pods", "--namespace", tier.namespace]);
                pods.unwrap_or_else(|error| format!("{error:#}"))
            })?;
        }
        let mut stage = Self { release: None, cluster, payload, before: BTreeSet::new() };
        stage.before = stage.containers()?;
        stage.wait_for_services()?;
        Ok(stage)
    }

    /// Installs Signet, the policies, and enrols the namespaces.
    ///
    /// # Errors
    /// A part did not become ready.
    pub(super) fn install(&mut self) -> Result<()> {
        // Short-lived, so that a rotation comes by while one looks.
        self.release = Some(Release::install(&self.cluster, &["signetd.svidTtl=20s"])?);
        let kubectl = self.cluster.kubectl();
        kubectl.create_namespace("istio-system")?;
        kubectl.apply(include_str!("../policies.yaml"))?;
        for namespace in tiers::ENROLLED {
            kubectl.run(&["label", "namespace", namespace, "istio.io/dataplane-mode=ambient"])?;
        }
        Ok(())
    }

    /// Signet, once it is installed.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn release(&self) -> Result<&Release> {
        self.release.as_ref().context("Signet is not installed")
    }

    /// Runs a command in a tier's pod.
    ///
    /// # Errors
    /// It failed; carries what it said.
    pub(super) fn exec(&self, tier: &Tier, argv: &[&str]) -> Result<String> {
        self.cluster.kubectl().exec(tier.namespace, &tier.deployment(), argv)
    }

    /// What a tier's nginx has written.
    ///
    /// # Errors
    /// Its node cannot be reached.
    pub(super) fn log(&self, tier: &Tier) -> Result<String> {
        self.cluster.kubectl().logs(tier.namespace, &tier.deployment())
    }

    /// The address of a tier's pod.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn address(&self, tier: &Tier) -> Result<String> {
        let of_tier = format!("--selector=app={}", tier.name);
        let output = "--output=jsonpath={.items[0].status.podIP}";
        self.cluster.kubectl().run(&["get", "pods", "--namespace", tier.namespace, &of_tier, output])
    }

    /// The serial number of a tier's SVID, as its node shows it.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn serial(&self, node: &str, tier: &Tier) -> Result<String> {
        let views = self.release()?.signet(node, &["certificates"])?;
        let mut rows = views.as_array().into_iter().flatten();
        let row = rows.find(|row| row["id"] == tier.spiffe_id());
        let serial = row.and_then(|row| row["serial"].as_str()).map(str::to_owned);
        serial.with_context(|| format!("no SVID of {}: {views}", tier.name))
    }

    /// The ids of the tiers' containers, with how often each was restarted.
    ///
    /// # Errors
    /// The API server does not answer.
    pub(super) fn containers(&self) -> Result<BTreeSet<String>> {
        let output = "--output=jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{\"\\n\"}{end}";
        let namespaces = tiers::ALL.iter().map(|tier| tier.namespace).collect::<BTreeSet<_>>();
        let mut all = BTreeSet::new();
        for namespace in namespaces {
            let ids = self.cluster.kubectl().run(&["get", "pods", "--namespace", namespace, output])?;
            all.extend(ids.lines().map(str::to_owned));
        }
        Ok(all)
    }

    /// Kills the engine of n1 while a client asks a server again and again, until it has been served once more. Returns a
    /// line for each request: `served`, or curl's exit code.
    ///
    /// # Errors
    /// It was not served again, or there is no engine.
    pub(super) fn kill_under_load(&self, client: &Tier, server: &Tier) -> Result<String> {
        let engine = self.container("n1")?;
        let asking =
            ["exec", "--namespace", client.namespace, &client.deployment(), "--", "sh", "-c", ASKING];
        let url = server.url();
        let mut load = self.cluster.kubectl().command(&[&asking[..], &["ask", &url, STARTED_AGAIN]].concat());
        let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let served = format!("{} {}:80 GET / ", self.address(client)?, self.address(server)?);
        let count = || anyhow::Ok(self.log(server)?.lines().filter(|line| line.starts_with(&served)).count());
        let before = count()?;
        wait::until("requests are served", WITHIN, || {
            ensure!(count()? > before, "none");
            Ok(())
        })?;
        let kill = ["ctr", "--namespace=k8s.io", "tasks", "kill", "--signal", "SIGKILL", &engine];
        stdout(&self.cluster.nodes()[0].exec(&kill)?)?;
        wait::until("kubelet has started the engine again", WITHIN, || {
            let now = self.container("n1")?;
            ensure!(!now.is_empty() && now != engine, "its container is {now:?}");
            Ok(())
        })?;
        self.exec(client, &["touch", STARTED_AGAIN])?;
        stdout(&load.wait_with_output()?)
    }

    /// The id of the engine's container on a node.
    fn container(&self, node: &str) -> Result<String> {
        let pod = self.release()?.pod(node)?;
        let output = "--output=jsonpath={.status.containerStatuses[0].containerID}";
        let id = self.cluster.kubectl().run(&["get", "--namespace", release::NAMESPACE, &pod, output])?;
        Ok(id.trim_start_matches("containerd://").to_owned())
    }

    /// kube-proxy and CoreDNS learn of a Service a moment late.
    fn wait_for_services(&self) -> Result<()> {
        tiers::ALL.iter().try_for_each(|server| {
            wait::until(&format!("{} answers", server.name), WITHIN, || {
                self.exec(&tiers::STRANGER, &["curl", "-sS", "--fail", "--max-time", "5", &server.url()])
                    .map(drop)
            })
        })
    }

    /// Leaves all of it up, and says what to try.
    pub(super) fn keep(self, report: &Report) -> Result<()> {
        let tools = crate::binaries::target()?.join("tools/bin");
        let (namespace, backend) = (release::NAMESPACE, tiers::BACKEND.url());
        // Standard output belongs to the JSON, where that was asked for.
        report.note(&format!(
            "\nIt stays up. To try:\n  export KUBECONFIG={}\n  export PATH={}:$PATH\n  \
             kubectl exec -n photo-ns deploy/photo-frontend -- curl -s {backend}\n  \
             kubectl exec -n {namespace} ds/signetd -- signet status\n  \
             kubectl exec -n {namespace} ds/signetd -- signet connections\n\
             To take it down: cargo xtask demo --down\n",
            self.cluster.kubeconfig().display(),
            tools.display(),
        ));
        self.cluster.keep()
    }
}

/// Asks until it is served by an engine that was started again, or for a minute at least. `$1` is the URL, `$2` the file that says so.
const ASKING: &str = "for i in $(seq 600); do started=; [ ! -e \"$2\" ] || started=yes; \
    curl -s --fail --max-time 5 -o /dev/null \"$1\"; code=$?; \
    if [ $code = 0 ]; then echo served; [ -z \"$started\" ] || exit 0; \
    else echo \"curl exit code $code\"; fi; sleep 0.1; done; exit 1";
/// In the client's pod, by which it knows.
const STARTED_AGAIN: &str = "/tmp/started-again";
/// For a machine that is busy with a build.
const WITHIN: Duration = Duration::from_secs(90);
