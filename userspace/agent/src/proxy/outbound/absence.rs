//! A server whose node's engine is away for a moment, since it is started again or its pod replaced: the connection waits, as
//! one of that node's own would in the kernel.
//!
//! Nothing tells a client when the engine is back, so the dial is repeated, as TCP repeats a SYN, until it is or
//! `timeouts.engine` is over; a place is looked for anew each time, since the Service may have another endpoint by then, or the pod
//! be gone. Only what broke before a server could act is repeated: a certificate that was not believed, a request that was answered or
//! may have been heard is not.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Identified, Resolved};
use crate::proxy::awaited::Waited;
use crate::proxy::failure::Failure;

/// How long one connection has waited for absent engines.
#[derive(Default)]
pub(super) struct Absence {
    since: Option<Since>,
}

struct Since {
    began: Instant,
    pause: Duration,
}

impl Absence {
    /// The way to the destination once more, after a pause; or `failure`, where it is not an absent engine's, or nobody waits any
    /// longer.
    pub(super) async fn again<'a>(
        &mut self,
        mut identified: Identified<'a>,
        failure: Failure,
    ) -> Result<Resolved<'a>, Failure> {
        if !failure.is_of_an_absent_engine() {
            return Err(failure);
        }
        if !self.pause(&identified).await {
            self.ended(&identified, Waited::Refused);
            return Err(failure);
        }
        identified.failed.clear();
        identified.resolve().await
    }

    /// The destination has answered.
    pub(super) fn is_over(&self, identified: &Identified<'_>) {
        if self.since.is_some() {
            self.ended(identified, Waited::Known);
        }
    }

    /// Waits a little. False where that has been done for long enough, or too many of the workload's connections wait.
    async fn pause(&mut self, identified: &Identified<'_>) -> bool {
        let Ok(_place) = identified.local.waiting.try_acquire() else { return false };
        let since = self.since.get_or_insert_with(|| Since { began: Instant::now(), pause: FIRST_PAUSE });
        let left = identified.session.context.timeouts.engine.saturating_sub(since.began.elapsed());
        if left.is_zero() {
            return false;
        }
        sleep(since.pause.min(left)).await;
        since.pause = (since.pause * 2).min(LAST_PAUSE);
        true
    }

    fn ended(&self, identified: &Identified<'_>, waited: Waited) {
        identified.session.context.awaited.engine_ended(waited);
    }
}

/// A socket that was just closed, another that is about to be opened.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// A container takes about a second to start: what is added to it is half of this on average.
const LAST_PAUSE: Duration = Duration::from_millis(320);
