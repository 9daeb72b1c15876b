//! The time in which things count, and the processor time that engines use in it.
//!
//! The load itself reads the engines' clocks, when its window opens and when it closes: what engines do for connections
//! that are being opened or closed outside of it counts for nothing, and the figure is as fine as the kernel's clock.

use std::io::{Error, Result};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup;

/// How long things count, and the cgroups of the engines whose processor time does.
#[derive(Clone, Debug)]
pub struct Window {
    length: Duration,
    engines: Vec<PathBuf>,
}

/// From when to when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begin: Instant,
    pub(super) end: Instant,
}

impl Window {
    /// Counts for `length`, after a warm-up.
    #[must_use]
    pub fn new(length: Duration, engines: Vec<PathBuf>) -> Self {
        Self { length, engines }
    }

    /// Opens now. Each of the `crew` is a thread that works until its span's end; returns what came of them, and the
    /// engines' processor time within the span, in seconds.
    pub(super) fn open<T: Send>(
        &self,
        crew: Vec<impl FnOnce(Span) -> Result<T> + Send>,
    ) -> Result<(Vec<T>, f64)> {
        let span = Span::of(Instant::now() + WARM_UP.min(self.length), self.length);
        thread::scope(|scope| {
            let crew: Vec<_> = crew.into_iter().map(|one| scope.spawn(move || one(span))).collect();
            let before = self.cpu_seconds_at(span.begin)?;
            let after = self.cpu_seconds_at(span.end)?;
            let done = crew
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            Ok((done.collect::<Result<_>>()?, after - before))
        })
    }

    fn cpu_seconds_at(&self, at: Instant) -> Result<f64> {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        self.engines.iter().map(|engine| cgroup::cpu_seconds(engine).map_err(Error::other)).sum()
    }
}

impl Span {
    pub(super) fn of(begin: Instant, length: Duration) -> Self {
        Self { begin, end: begin + length }
    }

    pub(super) fn seconds(self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }

    pub(super) fn holds(self, at: Instant) -> bool {
        at >= self.begin && at < self.end
    }
}

/// Slow start is over after this.
const WARM_UP: Duration = Duration::from_millis(200);
