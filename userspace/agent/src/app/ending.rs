//! The end of an engine: who asks for it, and in which order it lets go.
//!
//! First of what a successor needs (the kernel, the listeners, the node's ports, the claim), then of the connections that are
//! still open, which have until the drain's deadline.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::OptionFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use super::Engine;
use crate::drain::Drain;
use crate::kernel::{Claim, KernelError};

impl Engine {
    /// Lets go of what a successor needs, then lets live connections finish, at most `patience` in all. The pins stay.
    pub(super) async fn finish(
        self,
        claim: Result<Claim, KernelError>,
        drain: Drain,
        admin: JoinHandle<()>,
        patience: Duration,
    ) -> Result<()> {
        let until = Instant::now() + patience;
        let release = Instant::now() + patience.max(RELEASE);
        let Self { reconciler, source, ends, looks, threads: _threads } = self;
        let finished = async {
            let mut finishing = reconciler.await??;
            source.abort();
            let released = async {
                finishing.sandboxes.closed().await;
                let _ = tokio::join!(OptionFuture::from(ends), looks, last_answers(admin));
            };
            // Dropped here where all of it is released; where it is not, after the sandboxes.
            let _claim = timeout_at(release, released).await.is_err().then_some(claim);
            finishing.sandboxes.finished(until).await;
            drop(finishing);
            anyhow::Ok(())
        };
        let (in_time, finished) = tokio::join!(drain.drain(patience), finished);
        if !in_time {
            warn!(?patience, "connections were still open and have been reset");
        }
        finished
    }
}

/// Whoever has asked something may hear the answer; then the ports are free.
async fn last_answers(mut admin: JoinHandle<()>) {
    if timeout(LAST_ANSWERS, &mut admin).await.is_err() {
        admin.abort();
        let _ = admin.await;
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub(super) fn listen() -> Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(super) async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// How long it may take to let go of what a successor needs, however short the drain is.
const RELEASE: Duration = Duration::from_secs(2);
/// How long the node's ports are kept for answers that are on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
