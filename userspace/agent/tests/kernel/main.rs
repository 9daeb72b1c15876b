//! The kernel programs on a real kernel: real cgroups, network namespaces and sockets, no engine.
//!
//! Every test makes its own node (a cgroup root and pins of its own) and leaves nothing behind. Without root or eBPF a
//! test fails and says what is missing, or, with `SIGNET_TEST_ALLOW_SKIP=1`, prints a `SKIP` line that the runner counts.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

mod direct;
mod earlier;
mod guards;
mod inbound;
mod lifecycle;
mod outbound;
mod probes;
mod verdicts;
