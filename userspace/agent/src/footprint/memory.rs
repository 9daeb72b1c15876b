//! How much memory this process has, as the kernel counts it.

/// Bytes, of whole pages: proc_pid_statm(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In memory now.
    pub resident: u64,
    /// Of that, what no file and nobody else has.
    pub anonymous: u64,
}

impl Memory {
    /// At this moment; `None` without `/proc`.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/self/statm").ok()?)
    }

    fn parse(statm: &str) -> Option<Self> {
        let mut bytes = statm.split(' ').skip(1).map_while(|field| Some(field.parse::<u64>().ok()? * PAGE));
        let (resident, shared) = (bytes.next()?, bytes.next()?);
        Some(Self { resident, anonymous: resident.saturating_sub(shared) })
    }
}

/// Bytes. Every machine that Signet runs on has such pages.
pub(super) const PAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_pages_are_resident_and_not_anonymous() {
        assert_eq!(
            Memory::parse("9000 500 200 3000 0 400 0\n"),
            Some(Memory { resident: 500 * 4096, anonymous: 300 * 4096 })
        );
        assert_eq!(Memory::parse(""), None);
        assert!(Memory::now().is_some_and(|now| now.resident > now.anonymous));
    }
}
