//! A nice value that holds against the whole machine.
//!
//! Where the kernel groups processes by session (sched(7), "The autogroup feature"), a nice value counts inside the session
//! alone: a benchmark at -10 would get the same share as somebody's build. So the session gets the same value, for as long as
//! the benchmark runs.

use std::fs;

use super::machine;

/// Puts the session's value back when it is dropped.
pub(super) struct Precedence {
    before: Option<String>,
}

impl Precedence {
    /// Gives this process' nice value to its session, where it has one that is not 0 and the kernel groups by session.
    pub(super) fn take() -> Self {
        let before = fs::read_to_string(AUTOGROUP).ok().and_then(|text| value(&text).map(str::to_owned));
        let own = machine::nice().unwrap_or_default();
        let taken = own != 0 && before.is_some() && fs::write(AUTOGROUP, own.to_string()).is_ok();
        Self { before: before.filter(|_| taken) }
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(AUTOGROUP, before)
        {
            eprintln!("signet-bench: cannot give this session its nice value {before} back: {error}");
        }
    }
}

/// Of `/autogroup-13 nice 0`.
fn value(text: &str) -> Option<&str> {
    text.trim().rsplit_once(" nice ").map(|(_, value)| value)
}

const AUTOGROUP: &str = "/proc/self/autogroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_ends_the_line() {
        assert_eq!(value("/autogroup-13 nice -8\n"), Some("-8"));
        assert_eq!(value("\n"), None);
    }
}
