//! `signet-ca`: reads its arguments and hands over to [`signet_ca::app`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Signs the identities of workloads for the nodes they run on (Istio CA API).
#[derive(Debug, Parser)]
#[command(name = "signet-ca", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long, env = "SIGNET_CA_CONFIG", default_value = "/etc/signet/signet-ca.yaml")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match signet_ca::app::run(&arguments.config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Not through tracing: the log may be what could not be set up. Every text holds its cause already.
            eprintln!("signet-ca: {e}");
            ExitCode::FAILURE
        }
    }
}
