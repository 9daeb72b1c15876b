//! What this process has used of the machine so far, to tell work from waiting.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// getrusage(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// Pages that were touched anew and found in memory.
    faults: i64,
    /// User and kernel.
    cpu: Duration,
}

impl Used {
    /// Until now. Where the kernel does not say, nothing, and so no work.
    pub(super) fn now() -> Self {
        let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Self::default() };
        Self { faults: usage.minor_page_faults(), cpu: time(usage.user_time()) + time(usage.system_time()) }
    }

    /// Between two heartbeats.
    pub(super) fn work_since(self, before: Self) -> Work {
        match (self.faults - before.faults, self.cpu.saturating_sub(before.cpu)) {
            (_, cpu) if cpu >= MUCH_TIME => Work::Much,
            (faults, _) if faults >= MANY_FAULTS => Work::Little,
            _ => Work::None,
        }
    }
}

/// How much a process has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// No more than an engine does that waits for connections.
    None,
    /// It has touched pages anew: a first connection does, and so does what comes back after all was given back.
    Little,
    /// It has run.
    Much,
}

fn time(time: TimeVal) -> Duration {
    let micros = u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0);
    Duration::from_micros(micros)
}

/// The first connection takes more, a scrape of the metrics less.
const MANY_FAULTS: i64 = 64;

/// Of the heartbeat's 1.7 s: at 3 % nobody waits for what giving back takes.
const MUCH_TIME: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_pages_and_time_are_work() {
        let before = Used { faults: 1000, cpu: Duration::from_secs(1) };
        assert_eq!(before.work_since(before), Work::None);
        assert_eq!(Used { faults: 1000 + MANY_FAULTS, ..before }.work_since(before), Work::Little);
        assert_eq!(Used { cpu: before.cpu + MUCH_TIME, ..before }.work_since(before), Work::Much);
        let now = Used::now();
        let pages = vec![1_u8; 4096 * 4 * MANY_FAULTS as usize];
        assert!(Used::now().work_since(now) != Work::None, "{} pages are new", pages.len() / 4096);
    }
}
