//! The `traceparent` header (W3C Trace Context §3.2): one new trace for each tunnel, so that two nodes' logs can be joined.
//!
//! Never sampled: Signet exports no spans, and must not make an application's tracer believe that it does.

use rand::Rng;

/// A new header value: version 00, random trace and parent ids (neither all zero), flags 00. 55 bytes.
#[must_use]
pub(crate) fn generate() -> String {
    let mut random = rand::rng();
    let trace: u128 = random.random_range(1..=u128::MAX);
    let parent: u64 = random.random_range(1..=u64::MAX);
    format!("00-{trace:032x}-{parent:016x}-00")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_has_the_standards_form() {
        let value = generate();
        let parts: Vec<_> = value.split('-').map(str::len).collect();
        assert_eq!((value.len(), parts), (55, vec![2, 32, 16, 2]), "{value}");
    }

    #[test]
    fn two_tunnels_have_two_traces() {
        assert_ne!(generate(), generate());
    }
}
