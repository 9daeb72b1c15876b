//! Signet on a cluster, as processes of its machines: `signetd` on each node, with the rights of its account at the API
//! server and a token bound to a pod of that node, and two replicas of `signet-ca` on the control plane's machine.
//!
//! Outside of pods, so that a test can stop, watch and restart them; how they are installed is for other tests.

mod gate;
mod settings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub use gate::Gate;

use super::istiod::{self, Istiod};
use super::network::CONTROL_IP;
use super::release::NAMESPACE;
use super::{Ca, Cluster, Node, ca};
use crate::process::{Process, stdout};
use crate::{binaries, cgroup, wait};

/// Signet on a cluster, with a CA of its own or somebody else's. Dropping it ends its processes.
#[derive(Debug)]
pub struct Signet<A = Ca> {
    engines: Vec<Engine>,
    ca: A,
}

/// Where engines get their SVIDs, and for how long.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    server_name: &'a str,
    roots: &'a Path,
    ttl: &'a str,
}

/// `signetd` of one node.
#[derive(Debug)]
pub struct Engine {
    process: Option<Process>,
    node: String,
    socket: PathBuf,
    log: PathBuf,
    config: PathBuf,
}

impl Signet {
    /// Starts the CA and both engines, and waits until they are ready.
    ///
    /// # Errors
    /// One did not become ready; carries the end of its log.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        Self::start_with(cluster, "1h", &json!({}))
    }

    /// The same, with SVIDs that live so long, and with settings over the CA's configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(cluster: &Cluster, ttl: &str, settings: &Value) -> Result<Self> {
        cluster.add_engine_account()?;
        let ca = Ca::start(cluster, 2, settings)?;
        let source = Source { server_name: ca::SERVER_NAME, roots: ca.roots(), ttl };
        let engines = start_engines(cluster, source)?;
        Ok(Self { engines, ca })
    }
}

impl<'a> Signet<Istiod<'a>> {
    /// Starts both engines with istiod as their CA, and waits until they are ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_istiod(cluster: &Cluster, istiod: Istiod<'a>) -> Result<Self> {
        cluster.add_engine_account()?;
        let roots = cluster.layout.directory().join("istiod-roots.pem");
        fs::write(&roots, istiod.roots())?;
        let source = Source { server_name: istiod::SERVER_NAME, roots: &roots, ttl: "1h" };
        let engines = start_engines(cluster, source)?;
        Ok(Self { engines, ca: istiod })
    }
}

impl<A> Signet<A> {
    /// The engine of a node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn engine(&self, node: &str) -> Result<&Engine> {
        self.engines.iter().find(|engine| engine.node == node).with_context(|| format!("no node {node}"))
    }

    /// The same, to start or end it.
    ///
    /// # Errors
    /// There is no such node.
    pub fn engine_mut(&mut self, node: &str) -> Result<&mut Engine> {
        let engine = self.engines.iter_mut().find(|engine| engine.node == node);
        engine.with_context(|| format!("no node {node}"))
    }

    /// Both engines.
    #[must_use]
    pub fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// Its CA.
    #[must_use]
    pub fn ca(&self) -> &A {
        &self.ca
    }

    /// Waits until both engines know a pod with an address and as one of the mesh or not, and its own has taken it up.
    ///
    /// # Errors
    /// They did not within [`WITHIN`].
    pub fn wait_for_pod(&self, namespace: &str, pod: &str, enrolled: bool) -> Result<()> {
        let state = if enrolled { "captured" } else { "bypassed" };
        self.engines.iter().try_for_each(|engine| {
            engine.wait_for_workload(namespace, pod, &format!("is {state}"), |view| {
                view["enrolled"] == enrolled
                    && view["addresses"].as_array().is_some_and(|addresses| !addresses.is_empty())
                    && (view["local"] == false || view["state"] == state)
            })
        })
    }
}

impl Engine {
    fn prepare(cluster: &Cluster, node: &Node, directory: &Path, source: Source<'_>) -> Result<Self> {
        let name = node.name();
        let token = directory.join(format!("{name}.token"));
        cluster.add_daemon_pod(name)?;
        fs::write(&token, cluster.node_token(name)?)?;
        let socket = directory.join(format!("{name}.sock"));
        let config = json!({
            "instance": format!("{}-{name}", cluster.name()),
            "node": {"name": name, "zone": format!("zone-{name}")},
            "source": {"kubernetes": {"kubeconfig": directory.join("kubeconfig")}},
            "ca": {"istio": {
                "address": format!("https://{CONTROL_IP}:15012"), "serverName": source.server_name,
                "roots": source.roots, "token": token, "ttl": source.ttl,
            }},
            "capture": {"cgroupRoot": cgroup::mount()?.join(node.cgroup_root())},
            "listen": {"admin": socket},
        });
        let path = directory.join(format!("{name}.yaml"));
        fs::write(&path, config.to_string())?;
        let log = cluster.layout.log(&format!("{name}-signetd"));
        Ok(Self { process: None, node: name.to_owned(), socket, log, config: path })
    }

    /// Starts it, again where it has ended.
    ///
    /// # Errors
    /// It has not been built.
    pub fn start(&mut self, node: &Node) -> Result<()> {
        self.start_with(node, &[])
    }

    /// The same, with variables (`NAME=value`) in its environment.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(&mut self, node: &Node, variables: &[&str]) -> Result<()> {
        let argv = [text(&binaries::path("signetd")?)?, "--config".to_owned(), text(&self.config)?];
        let argv: Vec<&str> =
            ["env"].iter().chain(variables).copied().chain(argv.iter().map(String::as_str)).collect();
        self.process = Some(Process::start(node.command(&argv)?, &self.log)?);
        Ok(())
    }

    /// Ends it by a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        let process = self.process.take().context("the engine does not run")?;
        process.stop(signal, WITHIN).map(drop)
    }

    /// Waits until the readiness endpoint says yes.
    ///
    /// # Errors
    /// It did not within [`WITHIN`].
    pub fn wait_ready(&self, node: &Node) -> Result<()> {
        wait_healthy(&format!("signetd of {}", self.node), "15021", &self.log, |argv| node.command(argv))
    }

    /// What `signet <command> -o json` prints.
    ///
    /// # Errors
    /// It failed, or printed no JSON.
    pub fn signet(&self, command: &[&str]) -> Result<Value> {
        let binary = binaries::path("signet")?;
        let mut asked = Command::new(binary);
        asked.arg("--socket").arg(&self.socket).args(command).args(["-o", "json"]);
        let text = stdout(&asked.output()?)?;
        serde_json::from_str(&text).with_context(|| format!("signet {} printed: {text}", command.join(" ")))
    }

    /// Waits until `signet workloads` has a line for a pod that fits.
    ///
    /// # Errors
    /// It had none within [`WITHIN`]; carries the line there was.
    pub fn wait_for_workload(
        &self,
        namespace: &str,
        pod: &str,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        wait::until(&format!("{namespace}/{pod} {what} for {}", self.node), WITHIN, || {
            let views = self.signet(&["workloads"])?;
            let is_meant = |view: &&Value| view["namespace"] == namespace && view["name"] == pod;
            let view = views.as_array().into_iter().flatten().find(is_meant);
            let view = view.context("it is not known")?;
            ensure!(fits(view), "{view}");
            Ok(())
        })
    }

    /// Waits until a line of its log holds every one of `parts`.
    ///
    /// # Errors
    /// No such line came within [`WITHIN`].
    pub fn wait_for_log(&self, parts: &[&str]) -> Result<String> {
        self.process.as_ref().context("the engine does not run")?.wait_for_line(parts, WITHIN)
    }

    /// What it has written since its first start.
    ///
    /// # Errors
    /// It does not run.
    pub fn log(&self) -> Result<String> {
        self.process.as_ref().context("the engine does not run")?.log()
    }
}

fn start_engines(cluster: &Cluster, source: Source<'_>) -> Result<Vec<Engine>> {
    let directory = cluster.layout.directory().join("signet");
    fs::create_dir_all(&directory)?;
    cluster.write_account_kubeconfig(NAMESPACE, "signetd", &directory.join("kubeconfig"))?;
    let mut engines = Vec::new();
    for node in cluster.nodes() {
        let mut engine = Engine::prepare(cluster, node, &directory, source)?;
        engine.start(node)?;
        engines.push(engine);
    }
    for (engine, node) in engines.iter().zip(cluster.nodes()) {
        engine.wait_ready(node)?;
    }
    Ok(engines)
}

fn wait_healthy(
    what: &str,
    port: &str,
    log: &Path,
    command: impl Fn(&[&str]) -> Result<Command>,
) -> Result<()> {
    let url = format!("http://127.0.0.1:{port}/healthz/ready");
    let ready = wait::until(&format!("{what} is ready"), WITHIN, || {
        stdout(
            &command(&["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "5", &url])?
                .output()?,
        )
    });
    ready.map(drop).with_context(|| {
        let log = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the log of {what} ends with:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
    })
}

pub(super) fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).context("a path in UTF-8")
}

/// For a machine that is busy with a build.
const WITHIN: Duration = Duration::from_secs(90);
