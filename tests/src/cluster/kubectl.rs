//! kubectl as the cluster's administrator: the tests drive the cluster as people do.
//!
//! [`Kubectl::wait`] is a watch, so it neither polls nor sleeps.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binaries;
use crate::process::stdout;

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// With the kubeconfig of some user.
    ///
    /// # Errors
    /// There is no kubectl.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { program: binaries::tool("kubectl")?, kubeconfig: kubeconfig.to_owned() })
    }

    /// The command `kubectl <arguments>`, for those that run long.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Its cache would be in the home directory, outside of the build folder.
        let cache = self.kubeconfig.with_extension("cache");
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--cache-dir").arg(cache);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `kubectl <arguments>` and returns what it wrote.
    ///
    /// # Errors
    /// It failed; carries what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().context("cannot run kubectl")?;
        stdout(&output).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// What `kubectl <arguments> -o json` returns.
    ///
    /// # Errors
    /// It failed.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {} wrote: {text}", arguments.join(" ")))
    }

    /// Applies manifests, on the server's side, where every field is checked.
    ///
    /// # Errors
    /// The API server refused.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.apply_with(&["--validate=strict"], manifests)
    }

    /// Applies the `status` of manifests, as a controller would.
    ///
    /// # Errors
    /// The API server refused.
    pub fn apply_status(&self, manifests: &str) -> Result<()> {
        self.apply_with(&["--subresource=status"], manifests)
    }

    fn apply_with(&self, options: &[&str], manifests: &str) -> Result<()> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "--filename=-"];
        let mut command = self.command(&[&arguments, options].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run kubectl")?;
        child.stdin.take().expect("piped above").write_all(manifests.as_bytes())?;
        stdout(&child.wait_with_output()?).map(drop).with_context(|| format!("kubectl apply of\n{manifests}"))
    }

    /// Waits until an object (`pod/a`) in a namespace meets a condition (`condition=Ready`, `create`,
    /// `jsonpath={.status.phase}=Succeeded`).
    ///
    /// # Errors
    /// It does not within `deadline`; carries the object's state.
    pub fn wait(&self, namespace: &str, object: &str, condition: &str, deadline: Duration) -> Result<()> {
        let (condition, timeout) =
            (format!("--for={condition}"), format!("--timeout={}s", deadline.as_secs()));
        let arguments = ["wait", "--namespace", namespace, object, &condition, &timeout];
        self.run(&arguments).map(drop).with_context(|| self.describe(namespace, object))
    }

    /// Waits until a pod is there and ready.
    ///
    /// # Errors
    /// It is not within `deadline`; carries its events.
    pub fn wait_ready(&self, namespace: &str, pod: &str, deadline: Duration) -> Result<()> {
        let object = format!("pod/{pod}");
        self.wait(namespace, &object, "create", deadline)?;
        self.wait(namespace, &object, "condition=Ready", deadline)
    }

    /// Runs a command in a pod's first container.
    ///
    /// # Errors
    /// It failed; carries what it said.
    pub fn exec(&self, namespace: &str, pod: &str, argv: &[&str]) -> Result<String> {
        self.run(&[&["exec", "--namespace", namespace, pod, "--"], argv].concat())
    }

    /// What a pod's first container has written.
    ///
    /// # Errors
    /// There is no such pod, or its node cannot be reached.
    pub fn logs(&self, namespace: &str, pod: &str) -> Result<String> {
        self.run(&["logs", "--namespace", namespace, pod])
    }

    /// Makes a namespace and waits until pods can be made in it.
    ///
    /// # Errors
    /// It exists, or its service account is not made in time.
    pub fn create_namespace(&self, name: &str) -> Result<()> {
        ensure!(!name.is_empty(), "a namespace has a name");
        self.run(&["create", "namespace", name])?;
        self.wait(name, "serviceaccount/default", "create", NAMESPACE_WITHIN)?;
        self.wait(name, "configmap/kube-root-ca.crt", "create", NAMESPACE_WITHIN)
    }

    /// The last of `kubectl describe`, where the events are.
    fn describe(&self, namespace: &str, object: &str) -> String {
        let said = self.run(&["describe", "--namespace", namespace, object]).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        format!("{object} in {namespace}:\n{}", lines[lines.len().saturating_sub(EVENT_LINES)..].join("\n"))
    }
}

const NAMESPACE_WITHIN: Duration = Duration::from_secs(30);
const EVENT_LINES: usize = 25;
