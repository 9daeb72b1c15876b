//! How far an engine is that stands by, on a Unix socket of its own, and the question that a startup probe asks there.
//!
//! The node's ports are its predecessor's while that runs, so whoever asks one of those hears of the wrong engine. The
//! socket lies in a folder that only this pod has. Everybody who connects is told the same: `ok`, or what is missing. It is
//! an answer without a request, so it takes nothing from a stranger.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::debug;

use super::AdminError;
use super::socket::AdminSocket;

/// The answer: nothing is missing, or what is.
type Answer = Result<(), String>;

/// The socket of an engine that stands by; until it is dropped.
#[derive(Debug)]
pub struct Stage {
    answer: watch::Sender<Answer>,
    task: JoinHandle<()>,
}

impl Stage {
    /// Answers at `path`, at first that it has just begun.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn open(path: &Path) -> Result<Self, AdminError> {
        let (answer, told) = watch::channel(Err("it has just begun".to_owned()));
        let (listener, file) = AdminSocket::bind(path)?.into_parts();
        let task = tokio::spawn(async move {
            let _file = file;
            serve(&listener, &told).await;
        });
        Ok(Self { answer, task })
    }

    /// From here on, this.
    pub fn tell(&self, answer: Result<(), String>) {
        drop(self.answer.send_replace(answer));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the engine with that socket says. Blocks, a few seconds at most.
///
/// # Errors
/// What it still lacks, or that it does not answer.
pub fn ask(path: &Path) -> Result<(), String> {
    let answer =
        answer(path).map_err(|error| format!("{}: {error}: no signetd stands by there", path.display()))?;
    if answer == OK { Ok(()) } else { Err(answer) }
}

fn answer(path: &Path) -> io::Result<String> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

async fn serve(listener: &UnixListener, told: &watch::Receiver<Answer>) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let answer = told.borrow().clone().err().unwrap_or_else(|| OK.to_owned());
                // Whoever has gone meanwhile, or reads nothing, has not wanted to know.
                let written = tokio::time::timeout(PATIENCE, stream.write_all(answer.as_bytes())).await;
                debug!(%answer, ?written, "asked how far it is");
            }
            Err(error) => {
                debug!(%error, "cannot be asked how far it is");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

const OK: &str = "ok";
/// Shorter than a probe's.
const PATIENCE: Duration = Duration::from_secs(3);
const MAX_ANSWER: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask_at(path: &Path) -> Answer {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || ask(&path)).await.unwrap()
    }

    #[tokio::test]
    async fn whoever_asks_is_told_what_is_missing_until_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own/stage.sock");
        assert!(ask_at(&path).await.unwrap_err().contains("no signetd"), "before there is one");
        let stage = Stage::open(&path).unwrap();
        stage.tell(Err("the CA".into()));
        assert_eq!(ask_at(&path).await, Err("the CA".to_owned()));
        stage.tell(Ok(()));
        assert_eq!(ask_at(&path).await, Ok(()));
        drop(stage);
        tokio::task::yield_now().await;
        assert!(ask_at(&path).await.is_err(), "after its end");
    }
}
