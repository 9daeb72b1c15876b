//! What the test binaries share: tables of tests with what they need of the machine, run by libtest-mimic.
//!
//! A need that is not met is a failure, or with `SIGNET_TEST_ALLOW_SKIP=1` a line `SKIP <name>: <reason>`.

use anyhow::Result;
use libtest_mimic::{Arguments, Conclusion, Failed, Trial};

use crate::need::Need;

/// One test.
#[derive(Debug)]
pub struct Test {
    /// The promise it keeps.
    pub name: &'static str,
    /// What it needs of the machine.
    pub needs: &'static [Need],
    /// The test.
    pub run: fn() -> Result<()>,
}

/// A table of tests that need the same.
#[macro_export]
macro_rules! tests {
    ($needs:expr => $($name:ident),+ $(,)?) => {
        &[$($crate::harness::Test { name: stringify!($name), needs: $needs, run: $name }),+]
    };
}

/// Runs tables of tests as the command line asks, on so many threads where it does not say.
pub fn run(tables: &[&'static [Test]], threads: usize) -> Conclusion {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(threads);
    libtest_mimic::run(&arguments, tables.iter().copied().flatten().map(trial).collect())
}

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
