//! The bytes of one connection, counted once: the relay adds them up, scrapes and the end move the difference into the
//! metrics.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::metrics::Counters;
use crate::net::Traffic;

/// The bytes of one connection. `traffic` is written by its relay; the rest by whoever reports.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// `a` is the client, `b` the server.
    pub(crate) traffic: Traffic,
    /// Where to report to, from the moment the connection was opened.
    counters: OnceLock<Arc<Counters>>,
    /// What has been reported: a scrape and the end may come at once.
    reported: Mutex<Bytes>,
}

/// Bytes of a connection, from the client's point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// Client to server.
    pub(crate) sent: u64,
    /// Server to client.
    pub(crate) received: u64,
}

impl Meter {
    /// From now on bytes are reported there.
    pub(crate) fn report_to(&self, counters: Arc<Counters>) {
        // A connection is opened once; a second call would be a mistake that must not count bytes twice.
        let _ = self.counters.set(counters);
    }

    /// What went over the connection until now.
    #[must_use]
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes { sent: self.traffic.a_to_b.load(Relaxed), received: self.traffic.b_to_a.load(Relaxed) }
    }

    /// Adds what was not reported yet to the counters.
    pub(crate) fn flush(&self) {
        let Some(counters) = self.counters.get() else { return };
        let mut reported = self.reported.lock();
        let now = self.bytes();
        counters.add_bytes(now.sent - reported.sent, now.received - reported.received);
        *reported = now;
    }
}
