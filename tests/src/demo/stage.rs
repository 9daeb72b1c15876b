//! The stage: two nodes, a CA, three tiers and a stranger, all without a mesh at first.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::report::Report;
use crate::mesh::{Mesh, rows};
use crate::nginx::Nginx;
use crate::node::METRICS_PORT;
use crate::pod::{Enrolment, Pod, PodSpec};

/// Everything of the demo. Fields end in this order: applications, pods, the mesh.
pub(super) struct Stage {
    pub(super) frontend_web: Nginx,
    pub(super) backend_web: Nginx,
    pub(super) datastore_web: Nginx,
    pub(super) frontend: Pod,
    pub(super) backend: Pod,
    pub(super) datastore: Pod,
    pub(super) stranger: Pod,
    pub(super) mesh: Mesh,
    /// What the backend serves, and no wire may show.
    pub(super) payload: String,
}

impl Stage {
    /// Starts CA, nodes, pods and applications. There is no engine yet.
    ///
    /// # Errors
    /// Something is missing; the text says what.
    pub(super) fn set(report: &Report) -> Result<Self> {
        report.progress("two nodes joined by a link, and a CA");
        let mesh = Mesh::without_engines(SVID_TTL)?;
        report.progress("pods and their applications, not in a mesh yet");
        let frontend = mesh.n1.pod(PodSpec::new("photo-ns", "photo-frontend"))?;
        let backend = mesh.n2.pod(PodSpec::new("photo-ns", "photo-backend"))?;
        let datastore = mesh.n1.pod(PodSpec::new("datastore-ns", "datastore"))?;
        let stranger = mesh.n2.pod(PodSpec::new("legacy-ns", "legacy").enrolment(Enrolment::OptOut))?;
        let payload = format!("photos-of-{}-for-the-frontend-alone", mesh.bed.name());
        Ok(Self {
            frontend_web: Nginx::start(&frontend, "the photo frontend\n")?,
            backend_web: Nginx::start(&backend, &format!("{payload}\n"))?,
            datastore_web: Nginx::start(&datastore, "the datastore\n")?,
            frontend,
            backend,
            datastore,
            stranger,
            mesh,
            payload,
        })
    }

    /// Starts an engine on each node and waits until the pods are in the mesh.
    pub(super) fn start_engines(&self) -> Result<()> {
        for node in self.mesh.nodes() {
            node.launch_engine(&self.mesh.ca, &json!({}))?;
        }
        self.mesh.nodes().into_iter().try_for_each(|node| node.wait_ready())?;
        self.mesh.settle(&[&self.frontend, &self.backend, &self.datastore, &self.stranger])
    }

    /// The serial number of a pod's SVID, as its node shows it.
    pub(super) fn serial(&self, pod: &Pod) -> Result<String> {
        let node = self.mesh.nodes().into_iter().find(|node| node.name() == pod.node());
        let view = node.context("the pod's node")?.signet(&["certificates"])?;
        let of_pod = |row: &&Value| row["id"] == pod.spiffe_id();
        let serial = rows(&view).find(of_pod).and_then(|row| row["serial"].as_str());
        serial.map(str::to_owned).with_context(|| format!("no SVID of {}: {view}", pod.name()))
    }

    /// Leaves all of it up, and says what to try.
    pub(super) fn keep(self, report: &Report) -> Result<()> {
        let text = self.what_to_try()?;
        // Standard output belongs to the JSON, where that was asked for.
        report.note(&text);
        // Their guards would end them: from here on, the testbed's mark is what takes them down.
        let Self {
            frontend_web,
            backend_web,
            datastore_web,
            frontend,
            backend,
            datastore,
            stranger,
            mesh,
            ..
        } = self;
        std::mem::forget((frontend_web, backend_web, datastore_web, frontend, backend, datastore, stranger));
        let Mesh { n1, n2, ca, bed } = mesh;
        std::mem::forget((n1, n2, ca));
        bed.keep()
    }

    fn what_to_try(&self) -> Result<String> {
        let signet = crate::binaries::path("signet")?;
        let mut text = "\nIt stays up. To try:\n".to_owned();
        for node in self.mesh.nodes() {
            let (socket, netns) = (node.admin_socket(), node.host().netns().path());
            for view in ["workloads", "certificates", "connections", "policies"] {
                text += &format!("  {} --socket {} {view}\n", signet.display(), socket.display());
            }
            text += &format!(
                "  nsenter --net={} curl -s http://{}:{METRICS_PORT}/metrics\n",
                netns.display(),
                node.host().ipv4()
            );
        }
        let curl =
            self.frontend.place().command(&["curl", "-s", &format!("http://{}/", self.backend.ipv4())]);
        text += &format!("  {}\n", shell_line(&curl));
        text += "To take it down: cargo xtask demo --down\n";
        Ok(text)
    }
}

/// A command as one can paste it.
fn shell_line(command: &std::process::Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| match word.to_string_lossy() {
        plain if plain.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=[]".contains(c)) => {
            plain.into_owned()
        }
        other => format!("'{}'", other.replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Short, so that a rotation comes by while one looks; half of it is the longest wait for one.
const SVID_TTL: &str = "20s";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_command_keeps_its_quotes() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "echo 'a b' >\"$0\"", "/x-y_z"]);
        assert_eq!(shell_line(&command), r#"sh -c 'echo '\''a b'\'' >"$0"' /x-y_z"#);
    }
}
