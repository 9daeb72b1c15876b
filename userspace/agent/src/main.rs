//! `signetd`, Signet's node engine: reads its arguments and hands over to [`signet_agent::app`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Gives every workload of this node a cryptographic identity and carries its TCP traffic over mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "signetd", version)]
struct Arguments {
    /// The configuration file (docs/configuration.md).
    #[arg(long, env = "SIGNET_CONFIG", default_value = "/etc/signet/signetd.yaml")]
    config: PathBuf,
    /// Take this instance's programs, links and maps out of the kernel, and end.
    #[arg(long)]
    uninstall: bool,
    /// Say what this machine has and lacks of what Signet needs, and end. Needs no running signetd.
    #[arg(long, conflicts_with = "uninstall")]
    check: bool,
}

/// Half of the node's cores, since the other half is its workloads'. More of them cost more than they bring: they wake
/// each other up to share work that one of them would have done meanwhile (ARCHITECTURE.md has the figures).
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.uninstall {
        signet_agent::app::uninstall(&arguments.config)
    } else if arguments.check {
        signet_agent::app::check(&arguments.config)
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers())
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(signet_agent::app::run(&arguments.config)))
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Not through tracing: the log may be what could not be set up. Every text holds its cause already.
            eprintln!("signetd: {e}");
            ExitCode::FAILURE
        }
    }
}
