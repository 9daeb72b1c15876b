//! `signet`: what a node engine knows and does, for people and for programs.
//!
//! Every subcommand asks the admin socket of the `signetd` on this node for one view and prints it as a table or as the
//! JSON it came as. It changes nothing, and it knows no more of the views than the fields its tables show.

mod admin;
mod table;
mod units;
mod views;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde_json::Value;

use views::View;

#[derive(Parser)]
#[command(name = "signet", version, about = "What the node engine on this machine knows and does")]
struct Cli {
    #[command(subcommand)]
    view: View,
    /// The admin socket (`listen.admin` of signetd's configuration)
    #[arg(long, global = true, env = "SIGNET_ADMIN_SOCKET", default_value = "/run/signet/admin.sock")]
    socket: PathBuf,
    /// How to print it
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs: the fields are stable
    Json,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match admin::get(&cli.socket, cli.view.path()).await {
        Ok(answer) => show(&cli, &answer),
        Err(error) => {
            eprintln!("signet: {error}");
            ExitCode::from(EXIT_NO_ANSWER)
        }
    }
}

fn show(cli: &Cli, answer: &Value) -> ExitCode {
    let text = match cli.output {
        Output::Json => format!("{answer:#}\n"),
        Output::Table => cli.view.table(answer, units::now()),
    };
    // A reader that went away (`signet … | head`) is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if cli.view.is_failure(answer) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// `signet check` uses 1 for a line that failed; this is for no answer at all.
const EXIT_NO_ANSWER: u8 = 2;
