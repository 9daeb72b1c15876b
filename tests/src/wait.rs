//! Waiting for a condition with a deadline: the only way the tests wait.
//!
//! Most of what they wait for (a readiness endpoint, a log line of another process, an empty cgroup) has no event a
//! test could block on, so the condition is looked at every [`INTERVAL`]. The failure text carries the last reason,
//! which is what a reader of a red test needs. It does not measure: no test asserts on how long a wait took.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Looks at `condition` until it holds, and returns what it returned.
///
/// # Errors
/// It did not hold within `deadline`; carries `what` and the last error of `condition`.
pub fn until<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error).with_context(|| format!("not within {deadline:?}: {what}"));
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named_with_its_last_reason() {
        let error =
            until("the moon is green", Duration::ZERO, || -> Result<()> { anyhow::bail!("it is grey") });
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("the moon is green") && text.contains("it is grey"), "{text}");
    }
}
