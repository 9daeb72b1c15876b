//! Times and sizes as people say them: `3m12s`, `4d2h`, `1.5MiB`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A length of time, in its two greatest units.
pub(crate) fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let seconds = seconds % 60;
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds}s"),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// A moment seen from `now`: `in 3m12s`, `3m12s ago`.
pub(crate) fn relative(moment: u64, now: u64) -> String {
    if moment >= now { format!("in {}", age(moment - now)) } else { format!("{} ago", age(now - moment)) }
}

/// A number of bytes.
pub(crate) fn bytes(count: u64) -> String {
    let unit = UNITS.iter().rev().find(|(size, _)| count >= *size);
    match unit {
        None => format!("{count}B"),
        // Tenths by integers, rounded down: nothing here is worth a float's rounding.
        Some((size, name)) => format!("{}.{}{name}", count / size, count % size * 10 / size),
    }
}

const UNITS: [(u64, &str); 4] = [(1 << 10, "KiB"), (1 << 20, "MiB"), (1 << 30, "GiB"), (1 << 40, "TiB")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_said_in_its_two_greatest_units() {
        let said: Vec<String> = [0, 59, 192, 3_600, 7_384, 352_800].map(age).into();
        assert_eq!(said, ["0s", "59s", "3m12s", "1h0m", "2h3m", "4d2h"]);
    }

    #[test]
    fn a_moment_lies_ahead_or_behind() {
        assert_eq!(relative(100, 90), "in 10s");
        assert_eq!(relative(90, 100), "10s ago");
    }

    #[test]
    fn sizes_keep_one_decimal() {
        let said: Vec<String> = [0, 1_023, 1_536, 1 << 20, u64::MAX].map(bytes).into();
        assert_eq!(said, ["0B", "1023B", "1.5KiB", "1.0MiB", "16777215.9TiB"]);
    }
}
