//! The end-to-end tests: built programs, real sockets, two nodes.
//!
//! Each test is a function named as the promise it keeps, in the table of its file with what it needs of the machine.
//! A need that is not met is a failure, or with `SIGNET_TEST_ALLOW_SKIP=1` a line `SKIP <name>: <reason>`.

mod connect;
mod faults;
mod guards;
mod hbone;
mod lifecycle;
mod policy;
mod services;
mod shared;
mod views;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use signet_testkit::need::Need;

/// One test.
struct Test {
    name: &'static str,
    needs: &'static [Need],
    run: fn() -> Result<()>,
}

/// A table of tests that need the same.
macro_rules! tests {
    ($needs:expr => $($name:ident),+ $(,)?) => {
        &[$(crate::Test { name: stringify!($name), needs: $needs, run: $name }),+]
    };
}
use tests;

fn main() {
    let mut arguments = Arguments::from_args();
    // They wait more than they work: more threads than the machine has cores, but not more testbeds than it has memory.
    arguments.test_threads.get_or_insert(4);
    let trials = TABLES.iter().copied().flatten().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    shared::end();
    conclusion.exit();
}

/// In the order of importance.
const TABLES: &[&[Test]] = &[
    connect::TESTS,
    policy::TESTS,
    faults::TESTS,
    lifecycle::TESTS,
    lifecycle::FOOTPRINT_TESTS,
    hbone::TESTS,
    services::TESTS,
    views::TESTS,
    connect::BULK_TESTS,
    hbone::ENVOY_TESTS,
    faults::SLOW_TESTS,
    guards::TESTS,
];

fn trial(test: &'static Test) -> Trial {
    let unmet = test.needs.iter().find_map(|need| need.unmet());
    let may_skip = std::env::var_os("SIGNET_TEST_ALLOW_SKIP").is_some();
    match unmet {
        Some(reason) if may_skip => {
            println!("SKIP {}: {reason}", test.name);
            Trial::test(test.name, || Ok(())).with_ignored_flag(true)
        }
        Some(reason) => Trial::test(test.name, || Err(Failed::from(reason))),
        None => Trial::test(test.name, || (test.run)().map_err(|error| Failed::from(format!("{error:#}")))),
    }
}
