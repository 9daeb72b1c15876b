//! The testbed that most tests want: a CA and two nodes, each with a running engine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::node::Node;
use crate::pod::Pod;
use crate::testbed::Testbed;
use crate::wait;

/// Two nodes in a mesh. Fields end in this order: engines, CA, everything.
#[derive(Debug)]
pub struct Mesh {
    /// The first node.
    pub n1: Node,
    /// The second node.
    pub n2: Node,
    /// The CA.
    pub ca: Ca,
    /// All of it.
    pub bed: Testbed,
}

impl Mesh {
    /// A mesh with SVIDs of a day.
    ///
    /// # Errors
    /// A daemon did not become ready.
    pub fn start() -> Result<Self> {
        Self::start_with("24h", &json!({}))
    }

    /// A mesh whose SVIDs live `svid_ttl`; `overrides` is merged into both engines' configuration.
    ///
    /// # Errors
    /// A daemon did not become ready.
    pub fn start_with(svid_ttl: &str, overrides: &Value) -> Result<Self> {
        let mesh = Self::without_engines(svid_ttl)?;
        for node in [&mesh.n1, &mesh.n2] {
            node.launch_engine(&mesh.ca, overrides)?;
        }
        mesh.n1.wait_ready()?;
        mesh.n2.wait_ready()?;
        Ok(mesh)
    }

    /// A CA and two nodes that have no engine yet.
    ///
    /// # Errors
    /// The CA did not become ready.
    pub fn without_engines(svid_ttl: &str) -> Result<Self> {
        let bed = Testbed::new()?;
        let ca = bed.ca(svid_ttl)?;
        let (n1, n2) = (bed.node("n1")?, bed.node("n2")?);
        Ok(Self { n1, n2, ca, bed })
    }

    /// Both nodes.
    #[must_use]
    pub fn nodes(&self) -> [&Node; 2] {
        [&self.n1, &self.n2]
    }

    /// Waits until both engines know each pod, and its own has it captured (or passed, where it is not enrolled).
    ///
    /// # Errors
    /// That takes longer than [`SETTLED_WITHIN`].
    pub fn settle(&self, pods: &[&Pod]) -> Result<()> {
        self.nodes().into_iter().try_for_each(|node| settle(node, pods))
    }

    /// Writes policies (Istio YAML, several documents) under a new name, and waits until both engines list all of them.
    ///
    /// # Errors
    /// An engine does not list them in time.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        self.bed.manifests().put(name, yaml)?;
        self.nodes().into_iter().try_for_each(|node| lists(node, yaml))
    }
}

/// As [`Mesh::settle`], for one engine.
///
/// # Errors
/// That takes longer than [`SETTLED_WITHIN`].
pub(crate) fn settle(node: &Node, pods: &[&Pod]) -> Result<()> {
    wait::until(&format!("the engine of {} knows its pods", node.name()), SETTLED_WITHIN, || {
        let view = node.signet(&["workloads"])?;
        pods.iter().try_for_each(|pod| settled(&view, node, pod))
    })
}

/// Waits until an engine lists all policies in `yaml`.
///
/// # Errors
/// That takes longer than [`SETTLED_WITHIN`].
pub(crate) fn lists(node: &Node, yaml: &str) -> Result<()> {
    let wanted = policy_names(yaml);
    ensure!(!wanted.is_empty(), "no policy in {yaml}");
    wait::until(&format!("{} lists {wanted:?}", node.name()), SETTLED_WITHIN, || {
        let view = node.signet(&["policies"])?;
        let listed = |name: &String| rows(&view).any(|row| row["name"] == **name);
        wanted.iter().all(listed).then_some(()).with_context(|| format!("it lists {view}"))
    })
}

fn settled(view: &Value, node: &Node, pod: &Pod) -> Result<()> {
    let row = rows(view)
        .find(|row| row["uid"].as_str().is_some_and(|uid| uid.ends_with(pod.uid())))
        .with_context(|| format!("it does not list {}", pod.name()))?;
    ensure!(row["enrolled"] == pod.is_enrolled(), "{} is {row}", pod.name());
    let wanted = if pod.is_enrolled() { "captured" } else { "bypassed" };
    // Only a pod's own node captures it; it lists the pod a moment before it does.
    ensure!(pod.node() != node.name() || row["state"] == wanted, "{} is {row}", pod.name());
    Ok(())
}

/// The rows of a list view.
pub fn rows(view: &Value) -> impl Iterator<Item = &Value> {
    view.as_array().into_iter().flatten()
}

/// `metadata.name` of each document, as our policies are written.
fn policy_names(yaml: &str) -> Vec<String> {
    let names = yaml.lines().filter_map(|line| line.split_once("name: "));
    names.map(|(_, rest)| rest.split([',', '}']).next().unwrap_or(rest).trim().to_owned()).collect()
}

/// How long an engine may take to follow its manifests.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_found_by_their_names_in_both_yaml_styles() {
        let yaml = "metadata: {name: a, namespace: n}\n---\nmetadata:\n  name: b\n  namespace: n\n";
        assert_eq!(policy_names(yaml), ["a", "b"]);
    }
}
