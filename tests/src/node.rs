//! A node: a host of the testbed with addresses for pods, and on demand the node engine, `signetd`.

mod successor;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::http::{self, Metrics};
use crate::manifests::Manifests;
use crate::process::{Process, stdout};
use crate::testbed::{Host, PINS, Testbed};
use crate::{binaries, wait};

/// A node of the cluster. Dropping it ends its engine and removes its namespace.
#[derive(Debug)]
pub struct Node {
    // First, so that the engine ends before the namespace it works on.
    engine: Mutex<Option<Process>>,
    host: Host,
    instance: String,
    manifests: Manifests,
    pods: AtomicU16,
}

impl Testbed {
    /// Adds a node, without an engine.
    ///
    /// # Errors
    /// Its namespace or cgroups could not be made.
    pub fn node(&self, name: &str) -> Result<Node> {
        let host = self.host(name)?;
        host.cgroup().child("kubepods").map(std::mem::forget)?;
        // A kubelet's cgroup, where there are pods; nobody is in it.
        host.place("kubelet")?;
        let manifest = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone(name)}},
            "status": {"addresses": [
                {"type": "InternalIP", "address": host.ipv4()}, {"type": "InternalIP", "address": host.ipv6()},
            ]},
        });
        self.manifests().put(&format!("node-{name}"), &manifest.to_string())?;
        Ok(Node {
            engine: Mutex::new(None),
            instance: format!("{}-{name}", self.name()),
            manifests: self.manifests().clone(),
            pods: AtomicU16::new(1),
            host,
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Beside the engine's log, where `SIGNET_TEST_LOGS` asks for logs; a node without an engine has none.
        if std::env::var_os("SIGNET_TEST_LOGS").is_some()
            && let Ok(text) = self.metrics_text()
        {
            let _ = std::fs::write(self.host.directory().join("metrics.log"), text);
        }
    }
}

impl Node {
    /// The machine under it.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// `spec.nodeName` of its pods.
    #[must_use]
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Names the engine's pins.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The manifests it reads.
    #[must_use]
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Its engine's admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.host.directory().join("admin.sock")
    }

    /// Starts `signetd` and waits until it is ready. `overrides` is merged into its configuration.
    ///
    /// # Errors
    /// It ended, or was not ready within [`READY_WITHIN`]; carries the end of its log.
    pub fn start_engine(&self, ca: &Ca, overrides: &Value) -> Result<()> {
        self.launch_engine(ca, overrides)?;
        self.wait_ready()
    }

    /// Starts `signetd` without waiting.
    ///
    /// # Errors
    /// It has not been built, or its files cannot be written.
    pub fn launch_engine(&self, ca: &Ca, overrides: &Value) -> Result<()> {
        let directory = self.host.directory();
        ca.issuer().write_node_token(self.name(), &directory.join("token"))?;
        let mut config = self.config(ca);
        merge(&mut config, overrides);
        let file = directory.join("signetd.yaml");
        std::fs::write(&file, serde_json::to_string_pretty(&config)?)?;
        self.launch_again()
    }

    /// Starts `signetd` with the configuration it last had, as systemd or the kubelet would after a crash.
    ///
    /// # Errors
    /// It was never started, or cannot be.
    pub fn launch_again(&self) -> Result<()> {
        let process = self.launch(&[], "signetd.log")?;
        *self.engine.lock().expect("no holder panics") = Some(process);
        Ok(())
    }

    fn launch(&self, options: &[&str], log: &str) -> Result<Process> {
        let file = self.host.directory().join("signetd.yaml");
        ensure!(file.exists(), "the engine of {} was never started", self.name());
        let binary = binaries::path("signetd")?;
        let program = [
            binary.to_str().context("a path in UTF-8")?,
            "--config",
            file.to_str().context("a path in UTF-8")?,
        ];
        self.host.place("signetd")?.spawn(&[&program, options].concat(), &self.host.directory().join(log))
    }

    /// Waits until the readiness endpoint says yes.
    ///
    /// # Errors
    /// It does not within [`READY_WITHIN`], or the engine has ended.
    pub fn wait_ready(&self) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, READINESS_PORT));
        let ready = wait::until(&format!("signetd of {} is ready", self.name()), READY_WITHIN, || {
            self.with_engine(Process::check_alive)?;
            http::get(self.host.netns(), address, "/healthz/ready")
        });
        ready.map(drop).with_context(|| self.log_tail())
    }

    /// Kills the engine as the kernel would on lack of memory: no shutdown, no cleaning up.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_engine(&self) -> Result<()> {
        self.end_engine(Signal::SIGKILL)
    }

    /// Asks the engine to end, and waits for that.
    ///
    /// # Errors
    /// It does not run, or did not end.
    pub fn stop_engine(&self) -> Result<()> {
        self.end_engine(Signal::SIGTERM)
    }

    /// Runs `signetd --uninstall` with the configuration the engine last had.
    ///
    /// # Errors
    /// It failed.
    pub fn uninstall_engine(&self) -> Result<()> {
        let binary = binaries::path("signetd")?;
        let file = self.host.directory().join("signetd.yaml");
        let argv = [
            binary.to_str().context("a path in UTF-8")?,
            "--config",
            file.to_str().context("a path in UTF-8")?,
            "--uninstall",
        ];
        stdout(&self.host.place("signetd")?.exec(&argv)?).map(drop)
    }

    /// The engine's process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn engine_pid(&self) -> Result<u32> {
        self.with_engine(|engine| Ok(engine.pid()))
    }

    /// The cgroup that the engine has for itself.
    ///
    /// # Errors
    /// It could not be made.
    pub fn engine_cgroup(&self) -> Result<PathBuf> {
        Ok(self.host.place("signetd")?.cgroup)
    }

    fn end_engine(&self, signal: Signal) -> Result<()> {
        let engine = self.engine.lock().expect("no holder panics").take();
        engine.context("the engine does not run")?.stop(signal, READY_WITHIN).map(drop)
    }

    /// What the engine has logged since its first start.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn engine_log(&self) -> Result<String> {
        let path = self.host.directory().join("signetd.log");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Waits until a line of the engine's log holds every one of `parts`.
    ///
    /// # Errors
    /// No such line came within [`LOGGED_WITHIN`].
    pub fn wait_for_log(&self, parts: &[&str]) -> Result<String> {
        self.with_engine(|engine| engine.wait_for_line(parts, LOGGED_WITHIN))
    }

    /// The engine's metrics now.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        self.metrics_text().map(|text| Metrics::parse(&text))
    }

    fn metrics_text(&self) -> Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        http::get(self.host.netns(), address, "/stats/prometheus")
    }

    /// What `signet <command> -o json` prints.
    ///
    /// # Errors
    /// The command failed, or printed no JSON.
    pub fn signet(&self, command: &[&str]) -> Result<Value> {
        let argv = [command, &["-o", "json"]].concat();
        let text = self.signet_text(&argv)?;
        serde_json::from_str(&text).with_context(|| format!("signet {} printed: {text}", argv.join(" ")))
    }

    /// What `signet <command>` prints for people.
    ///
    /// # Errors
    /// The command failed.
    pub fn signet_text(&self, command: &[&str]) -> Result<String> {
        let binary = binaries::path("signet")?;
        let output = std::process::Command::new(binary)
            .arg("--socket")
            .arg(self.admin_socket())
            .args(command)
            .output()?;
        stdout(&output).with_context(|| format!("signet {}", command.join(" ")))
    }

    /// Where this node's engine pins.
    #[must_use]
    pub fn pin_directory(&self) -> PathBuf {
        PathBuf::from(PINS).join(&self.instance)
    }

    /// Names of the pinned objects of this node's engine, with their paths below its pin directory.
    #[must_use]
    pub fn pins(&self) -> BTreeSet<String> {
        let mut pins = BTreeSet::new();
        collect_files(&self.pin_directory(), "", &mut pins);
        pins
    }

    /// A pair of addresses for the next pod.
    pub(crate) fn next_addresses(&self) -> [String; 2] {
        let index = self.host.index();
        let pod = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let [high, low] = pod.to_be_bytes();
        [format!("10.{}.{high}.{low}", 64 + index), format!("fd42:{index:x}::{pod:x}")]
    }

    fn with_engine<T>(&self, act: impl FnOnce(&mut Process) -> Result<T>) -> Result<T> {
        let mut engine = self.engine.lock().expect("no holder panics");
        act(engine.as_mut().context("the engine does not run")?)
    }

    fn log_tail(&self) -> String {
        let log = self.engine_log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "the log of {} ends with:\n{}",
            self.name(),
            lines[lines.len().saturating_sub(15)..].join("\n")
        )
    }

    fn config(&self, ca: &Ca) -> Value {
        let directory = self.host.directory();
        json!({
            "instance": self.instance,
            "node": {"name": self.name(), "zone": zone(self.name())},
            "source": {"files": {"directory": self.manifests.directory()}},
            "ca": {"istio": {
                "address": ca.address(), "serverName": ca.server_name(), "roots": ca.roots(),
                "token": directory.join("token"), "ttl": ca.svid_ttl(),
            }},
            "capture": {"cgroupRoot": self.host.cgroup().path(), "podsRoot": "kubepods"},
            "listen": {"admin": self.admin_socket()},
        })
    }
}

/// Each node is a zone of its own.
fn zone(node: &str) -> String {
    format!("zone-{node}")
}

/// Lays `over` on `base`: objects by key, everything else replaced.
fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            over.iter().for_each(|(key, value)| merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, over) => *base = over.clone(),
    }
}

fn collect_files(directory: &std::path::Path, prefix: &str, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_files(&entry.path(), &format!("{name}/"), into);
        } else {
            into.insert(name);
        }
    }
}

/// How long a daemon may take to start or end: generous, for a busy machine.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long an access log line may take to be written.
const LOGGED_WITHIN: Duration = Duration::from_secs(10);
/// The default of `listen.readiness`.
const READINESS_PORT: u16 = 15021;
/// The default of `listen.metrics`.
pub const METRICS_PORT: u16 = 15020;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_replaces_one_leaf_and_leaves_its_neighbours() {
        let mut config = json!({"a": {"b": 1, "c": 2}});
        merge(&mut config, &json!({"a": {"b": [3]}, "d": 4}));
        assert_eq!(config, json!({"a": {"b": [3], "c": 2}, "d": 4}));
    }
}
