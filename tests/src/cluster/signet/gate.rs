//! A relay between one engine and the API server that a test can hold: the engine then hears nothing and does not know,
//! as with a network that drops its packets, while kubelet and kube-proxy on the same node go on hearing.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;

use super::Engine;
use crate::binaries;
use crate::cluster::forward::LISTENS;
use crate::cluster::network::CONTROL_IP;
use crate::cluster::{Cluster, Node};
use crate::process::Process;

/// The relay. Dropping it ends it.
#[derive(Debug)]
pub struct Gate(Process);

impl Gate {
    /// Starts it on a node, and has the node's engine ask through it from its next start on.
    ///
    /// # Errors
    /// It cannot be started, or the engine's configuration not be changed.
    pub fn before(cluster: &Cluster, node: &Node, engine: &Engine) -> Result<Self> {
        let program = binaries::path("signet-cluster")?.display().to_string();
        let server = format!("{CONTROL_IP}:6443");
        let command = node.command(&[&program, "forward", "/proc/self/ns/net", &server])?;
        let process = Process::start(command, &cluster.layout.log(&format!("{}-gate", node.name())))?;
        let line = process.wait_for_line(&[LISTENS], super::WITHIN)?;
        let (_, address) = line.rsplit_once(' ').context("the relay names no address")?;
        let direct = engine.setting(KUBECONFIG)?;
        let direct = direct.as_str().context("a path")?;
        let through = format!("{direct}-{}", node.name());
        fs::write(&through, fs::read_to_string(direct)?.replace(&server, address))?;
        engine.set(KUBECONFIG, json!(through))?;
        Ok(Self(process))
    }

    /// Nothing passes any more, and no connection ends.
    ///
    /// # Errors
    /// It has ended.
    pub fn hold(&self) -> Result<()> {
        self.0.signal(Signal::SIGSTOP)
    }

    /// What has waited passes.
    ///
    /// # Errors
    /// It has ended.
    pub fn release(&self) -> Result<()> {
        self.0.signal(Signal::SIGCONT)
    }
}

const KUBECONFIG: &str = "/source/kubernetes/kubeconfig";
