//! What `signetd` is asked to do, on its command line.

use std::path::PathBuf;

use clap::Parser;

use super::Configured;
use crate::admin;

/// Gives every workload of this node a cryptographic identity and carries its TCP traffic over mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "signetd", version)]
pub struct Arguments {
    /// The configuration file (docs/configuration.md).
    #[arg(long, env = "SIGNET_CONFIG", default_value = "/etc/signet/signetd.yaml")]
    config: PathBuf,
    /// This node's name, where many nodes share the configuration file: its `node.name`.
    #[arg(long)]
    node: Option<String>,
    /// Where this instance's engine runs, wait until it ends and take its place, instead of failing; say on this Unix
    /// socket how far that is.
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["uninstall", "check"])]
    stand_by: Option<PathBuf>,
    /// Ask the signetd of that --stand-by socket whether it could serve, and end: a startup probe.
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["stand_by", "uninstall", "check", "node"])]
    ask: Option<PathBuf>,
    /// Take this instance's programs, links and maps out of the kernel, and end.
    #[arg(long)]
    uninstall: bool,
    /// With --uninstall: do not end, but say on the readiness port that it is done.
    #[arg(long, requires = "uninstall")]
    stay: bool,
    /// Say what this machine has and lacks of what Signet needs, and end. Needs no running signetd.
    #[arg(long, conflicts_with = "uninstall")]
    check: bool,
    /// In a pod: have this DaemonSet (`<namespace>/<name>`) uninstall on all its nodes, and wait until it has.
    #[arg(long, value_name = "DAEMONSET", conflicts_with_all = ["stand_by", "ask", "uninstall", "check", "node"])]
    withdraw: Option<String>,
}

impl Arguments {
    /// Does it, with the runtime of an engine where it takes one: a single thread for everything but connections, which
    /// have workers of their own.
    ///
    /// # Errors
    /// What could not be done, and what to do; the text holds its cause.
    pub fn obey(self) -> anyhow::Result<()> {
        if let Some(socket) = &self.ask {
            // Beside the engine, in its container: the last words there are not this process's.
            return admin::ask(socket).map_err(anyhow::Error::msg);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(self.run()).inspect_err(super::say_last_words)
    }

    async fn run(self) -> anyhow::Result<()> {
        let Self { config, node, stand_by, ask: _, uninstall, stay, check, withdraw } = self;
        let configured = Configured { file: config, node };
        match withdraw {
            Some(daemon_set) => super::withdraw(&daemon_set).await,
            None if uninstall => super::uninstall(&configured, stay).await,
            None if check => super::check(&configured),
            None => super::run(&configured, stand_by.as_deref()).await,
        }
    }
}
