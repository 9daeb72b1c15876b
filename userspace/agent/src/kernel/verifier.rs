//! What the kernel's verifier says, cut down to its verdict.
//!
//! Its log retells every instruction: thousands of lines, behind which the reason would be lost, most of all in a pod's last
//! words, of which kubelet keeps 4 KiB. All of it is in the log at debug level.

use aya::programs::ProgramError;
use tracing::debug;

use super::error::KernelError;

/// Why a program was not taken.
pub(super) fn refusal(name: &'static str, error: &ProgramError) -> KernelError {
    let reason = match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            debug!(program = name, log, "verifier");
            verdict(&log).map_or_else(|| io_error.to_string(), |verdict| format!("{verdict} ({io_error})"))
        }
        error => error.to_string(),
    };
    KernelError::Program { name, reason }
}

/// The last line that is no statistics.
fn verdict(log: &str) -> Option<&str> {
    let is_statistics = |line: &&str| STATISTICS.iter().any(|begin| line.starts_with(begin));
    log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !is_statistics(line))
}

/// kernel/bpf/verifier.c `print_verification_stats`.
const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed "];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_what_stands_before_the_statistics() {
        let log = "122: (61) r1 = *(u32 *)(r7 +64)\ninvalid bpf_context access off=64 size=4\n\
                   verification time 3286 usec\nstack depth 144\nprocessed 120 insns (limit 1000000)\n";
        assert_eq!(verdict(log), Some("invalid bpf_context access off=64 size=4"));
        assert_eq!(verdict("processed 0 insns\n\n"), None);
    }
}
