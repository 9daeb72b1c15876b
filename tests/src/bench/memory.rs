//! What engines hold in memory: fresh, and with connections that do nothing.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::contender::Contender;
use super::measure::Figure;
use crate::cgroup;
use crate::memory::Memory;

/// Memory of all processes in an engine's cgroup together.
///
/// # Errors
/// There is none.
pub(super) fn of(engine: &Path) -> Result<Memory> {
    let processes = cgroup::processes(engine)?;
    ensure!(!processes.is_empty(), "no engine runs in {} any more", engine.display());
    processes.into_iter().map(Memory::of).sum()
}

/// Waits until no engine gives back any more of what starting took, or for long enough.
pub(super) fn wait_until_settled<'a>(contenders: impl Iterator<Item = &'a Contender<'a>> + Clone) {
    let resident = || -> Result<u64> {
        let each = contenders.clone().map(|contender| {
            contender.wait_until_quiet();
            Ok(contender.memory()?.iter().map(|memory| memory.resident).sum::<u64>())
        });
        each.sum()
    };
    let mut before = u64::MAX;
    for _ in 0..SETTLED_LOOKS {
        let Ok(now) = resident() else { return };
        if now >= before {
            return;
        }
        before = now;
        sleep(BETWEEN_LOOKS);
    }
}

/// Memory of a contender's engines before any load, and with so many idle connections, one number after the other.
///
/// # Errors
/// The connections could not be opened, or an engine is gone.
pub(super) fn measure(contender: &Contender<'_>, idle: &[usize]) -> Result<Vec<Figure>> {
    contender.wait_until_quiet();
    let fresh = contender.memory()?;
    let mut figures = sizes("memory_fresh", &fresh);
    let mut held = Vec::new();
    let mut open = 0;
    for count in idle {
        held.push(contender.hold(count - open)?);
        contender.wait_until_quiet();
        open = *count;
        let now = contender.memory()?;
        figures.extend(sizes(&format!("memory_{count}_idle"), &now));
        for (end, (now, fresh)) in ENDS.into_iter().zip(now.iter().zip(&fresh)) {
            let each = (now.anonymous as f64 - fresh.anonymous as f64) / *count as f64;
            figures.push(Figure {
                measure: format!("memory_per_{count}_idle_{end}"),
                unit: "KiB",
                value: each,
            });
        }
    }
    drop(held);
    contender.wait_until_quiet();
    Ok(figures)
}

/// Memory when the loads are over.
///
/// # Errors
/// An engine is gone.
pub(super) fn after_loads(contender: &Contender<'_>) -> Result<Vec<Figure>> {
    contender.wait_until_quiet();
    Ok(sizes("memory_after_loads", &contender.memory()?))
}

/// Of the larger end.
fn sizes(measure: &str, ends: &[Memory]) -> Vec<Figure> {
    let most = |size: fn(&Memory) -> u64| ends.iter().map(size).max().unwrap_or(0) as f64 / 1024.0;
    let figure = |suffix: &str, value| Figure { measure: format!("{measure}{suffix}"), unit: "MiB", value };
    vec![figure("", most(|end| end.resident)), figure("_anonymous", most(|end| end.anonymous))]
}

/// Longer than a heartbeat of the engine, which gives back at its second one without a load.
const BETWEEN_LOOKS: Duration = Duration::from_secs(4);
const SETTLED_LOOKS: usize = 4;
const ENDS: [&str; 2] = ["client", "server"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_end_is_shown() {
        let ends = [Memory { resident: 2048, anonymous: 1024 }, Memory { resident: 1024, anonymous: 512 }];
        let values: Vec<f64> = sizes("memory_fresh", &ends).iter().map(|figure| figure.value).collect();
        assert_eq!(values, [2.0, 1.0]);
    }
}
