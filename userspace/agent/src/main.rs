//! `signetd`, Signet's node engine: reads its arguments and hands over to [`signet_agent::app`].

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use signet_agent::app::{self, Configured};

/// Gives every workload of this node a cryptographic identity and carries its TCP traffic over mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "signetd", version)]
struct Arguments {
    /// The configuration file (docs/configuration.md).
    #[arg(long, env = "SIGNET_CONFIG", default_value = "/etc/signet/signetd.yaml")]
    config: PathBuf,
    /// This node's name, where many nodes share the configuration file: its `node.name`.
    #[arg(long)]
    node: Option<String>,
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
    #[arg(long, value_name = "DAEMONSET", conflicts_with_all = ["uninstall", "check", "node"])]
    withdraw: Option<String>,
}

/// One thread for everything but connections, which have workers of their own.
fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(Arguments::parse()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Not through tracing: the log may be what could not be set up. Every text holds its cause already.
            eprintln!("signetd: {e}");
            say_last_words(&e);
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { config, node, uninstall, stay, check, withdraw } = arguments;
    let configured = Configured { file: config, node };
    match withdraw {
        Some(daemon_set) => app::withdraw(&daemon_set).await,
        None if uninstall => app::uninstall(&configured, stay).await,
        None if check => app::check(&configured),
        None => app::run(&configured).await,
    }
}

/// Where kubelet takes a container's termination message from; on any other machine there is no such file.
fn say_last_words(error: &anyhow::Error) {
    let file = std::fs::OpenOptions::new().write(true).open("/dev/termination-log");
    let _ = file.and_then(|mut file| writeln!(file, "{error}"));
}
