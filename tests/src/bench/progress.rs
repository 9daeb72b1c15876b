//! Lines on standard error: what has been done, how long it has taken, and what is left.

use std::time::{Duration, Instant};

/// Since when, and how far.
pub(super) struct Progress {
    started: Instant,
    steps: usize,
    done: usize,
    /// When the first step began: what comes before has no bearing on what is left.
    stepping: Instant,
}

impl Progress {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, steps: 0, done: 0, stepping: now }
    }

    /// So many steps will be done.
    pub(super) fn expect(&mut self, steps: usize) {
        self.steps = steps;
    }

    pub(super) fn done(&mut self, steps: usize) {
        self.done += steps;
    }

    pub(super) fn say(&self, what: &str) {
        let left = left(self.stepping.elapsed(), self.done, self.steps);
        let left = left.map_or_else(String::new, |left| format!(", about {:.0} s left", left.as_secs_f32()));
        eprintln!("[{:5.1} s{left}] {what}", self.started.elapsed().as_secs_f32());
    }

    /// The steps begin now.
    pub(super) fn begin(&mut self) {
        self.stepping = Instant::now();
    }
}

fn left(elapsed: Duration, done: usize, steps: usize) -> Option<Duration> {
    (done > 0).then(|| elapsed.mul_f64(steps.saturating_sub(done) as f64 / done as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_long_as_what_is_done_has() {
        assert_eq!(left(Duration::from_secs(10), 2, 6), Some(Duration::from_secs(20)));
        assert_eq!(left(Duration::from_secs(10), 6, 6), Some(Duration::ZERO));
        assert_eq!(left(Duration::from_secs(10), 0, 6), None);
    }
}
