//! What became of one connection: exactly one access-log line and one metric update, whatever happened.
//!
//! An [`Outcome`] is begun when a connection is accepted and written when it is dropped, so that no early return, no
//! abort and no panic can lose it. It owns the connection's [`Registration`]: a connection is listed exactly as long as
//! its outcome is open.

use std::sync::Arc;
use std::time::Instant;

use super::Context;
use super::access;
use super::connections::{Closing, Metered, Registration};
use super::failure::Failure;
use super::metrics::{Counters, Labels, Metrics, ResponseFlags};
use super::parties::Parties;

/// The outcome of one connection, in the making.
#[derive(Debug)]
pub(crate) struct Outcome {
    metrics: Arc<Metrics>,
    registration: Registration,
    started: Instant,
    /// Set when the connection was established.
    opened: Option<Arc<Counters>>,
    written: bool,
}

impl Outcome {
    /// Registers the connection and begins its outcome.
    #[must_use]
    pub(crate) fn begin(context: &Context, parties: Parties) -> Self {
        Self {
            metrics: Arc::clone(&context.metrics),
            registration: context.connections.register(parties),
            started: Instant::now(),
            opened: None,
            written: false,
        }
    }

    /// Writes down what has been learnt of who talks with whom.
    pub(crate) fn learn(&self, update: impl FnOnce(&mut Parties)) {
        self.registration.learn(update);
    }

    /// The connection is established; from now on its bytes are counted.
    pub(crate) fn opened(&mut self) {
        let parties = self.registration.parties();
        let counters = self.metrics.counters(Labels::of(&parties, ResponseFlags::None));
        counters.opened();
        self.registration.meter().report_to(Arc::clone(&counters));
        self.opened = Some(counters);
        access::opened(&parties);
    }

    /// Where the relay counts its bytes.
    #[must_use]
    pub(crate) fn meter(&self) -> Metered {
        self.registration.meter()
    }

    /// Tells the connection's task that it must be closed.
    #[must_use]
    pub(crate) fn closing(&self) -> Closing {
        self.registration.closing()
    }

    /// Writes the outcome.
    pub(crate) fn end(mut self, result: Result<(), Failure>) {
        self.write(result.err().as_ref());
    }

    /// Nothing is written: the connection has got so far that what it asks for has outcomes of its own.
    pub(crate) fn withdraw(mut self) {
        self.written = true;
    }

    fn write(&mut self, failure: Option<&Failure>) {
        self.written = true;
        let parties = self.registration.parties();
        let meter = self.registration.meter();
        let flags = failure.map_or(ResponseFlags::None, Failure::flags);
        match &self.opened {
            Some(counters) if flags == ResponseFlags::None => counters.closed(),
            Some(_) => self.metrics.counters(Labels::of(&parties, flags)).closed(),
            None => self.metrics.counters(Labels::of(&parties, flags)).failed(),
        }
        meter.flush();
        access::complete(&parties, meter.bytes(), self.started.elapsed(), failure);
    }
}

/// A task that is aborted, or panics, says nothing: then the connection was closed.
impl Drop for Outcome {
    fn drop(&mut self) {
        if !self.written {
            self.write(Some(&Failure::Closed));
        }
    }
}
