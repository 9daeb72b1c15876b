//! `signetd`, Signet's node engine: reads its arguments and hands over to [`signet_agent::app`].

use std::process::ExitCode;

use clap::Parser as _;
use signet_agent::app::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().obey() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Not through tracing: the log may be what could not be set up. Every text holds its cause already.
            eprintln!("signetd: {e}");
            ExitCode::FAILURE
        }
    }
}
