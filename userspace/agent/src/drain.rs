//! Tells every task to stop, and knows when all of them have.
//!
//! One [`Drain`] per process; each task holds a [`Watch`] and is counted until it drops it. Draining is graceful: a
//! task stops accepting at [`Watch::stopped`] and finishes what it has. Whoever asked waits with a deadline and then
//! lets the runtime abort the rest. It does not kill tasks itself.

use std::time::Duration;

use tokio::sync::watch;

/// The side that asks for the end. Written by `app` alone.
#[derive(Debug)]
pub struct Drain {
    stop: watch::Sender<bool>,
}

/// The side that is asked. Cheap to clone; each clone is waited for.
#[derive(Clone, Debug)]
pub struct Watch {
    stop: watch::Receiver<bool>,
}

impl Drain {
    /// A drain and its first watch.
    #[must_use]
    pub fn new() -> (Self, Watch) {
        let (tx, rx) = watch::channel(false);
        (Self { stop: tx }, Watch { stop: rx })
    }

    /// Asks all watches to stop and waits until they are dropped, at most `deadline`. True when all of them were.
    pub async fn drain(self, deadline: Duration) -> bool {
        self.stop.send_replace(true);
        tokio::time::timeout(deadline, self.stop.closed()).await.is_ok()
    }
}

impl Watch {
    /// Resolves once the drain has begun (or its owner is gone, which means the same).
    pub async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // An error means that the sender is gone: nobody can ask any more, so the answer is "stop".
        let _ = stop.wait_for(|stopped| *stopped).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_every_watch() {
        let (drain, watch) = Drain::new();
        let other = watch.clone();
        let task = tokio::spawn(async move { other.stopped().await });
        drop(watch);
        assert!(drain.drain(Duration::from_secs(5)).await);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_watch_that_stays_makes_the_drain_late() {
        let (drain, _watch) = Drain::new();
        assert!(!drain.drain(Duration::from_millis(10)).await);
    }
}
