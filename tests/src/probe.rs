//! `signet-probe`: the client and the server that run inside pods, and what they print.
//!
//! curl and nginx cannot choose how they connect, nor say what their sockets report. The probe can: one subcommand
//! per role, one line of JSON on standard output per result, no knowledge of Signet.

mod crowd;
mod dial;
mod health;
mod idle;
mod remote;
mod serve;
mod uring;

pub use crowd::{Crowd, crowd};
pub use dial::{Kind, Target, dial};
pub use health::health;
pub use idle::{abort, hold, idle};
pub use serve::{Answer, serve};

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a server sees of a connection; it writes this as the connection's first line, and echoes everything after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// `getpeername` of the accepted socket.
    pub peer: SocketAddr,
    /// `getsockname` of the accepted socket.
    pub local: SocketAddr,
}

/// What a client made of its attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// The server answered.
    Answered {
        /// `getpeername` of the client's socket.
        peer: SocketAddr,
        /// What the server saw.
        greeting: Greeting,
        /// What came back of what was sent.
        echo: String,
    },
    /// It did not; `step` is `connect` or `exchange`.
    Failed {
        /// Where it failed.
        step: String,
        /// The error's kind, as `std::io::ErrorKind` calls it.
        error: String,
    },
}

impl Report {
    /// What the server saw and what `getpeername` said.
    ///
    /// # Errors
    /// There was no answer.
    pub fn answered(&self) -> anyhow::Result<(&SocketAddr, &Greeting)> {
        match self {
            Self::Answered { peer, greeting, .. } => Ok((peer, greeting)),
            Self::Failed { step, error } => anyhow::bail!("no answer: {step} failed with {error}"),
        }
    }

    /// The connection was refused, reset or ended before any byte of the server.
    ///
    /// # Errors
    /// It was answered.
    pub fn refused(&self) -> anyhow::Result<&str> {
        match self {
            Self::Failed { error, .. } => Ok(error),
            Self::Answered { greeting, .. } => anyhow::bail!("was answered: {greeting:?}"),
        }
    }
}
