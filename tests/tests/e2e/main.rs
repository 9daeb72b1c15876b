//! The end-to-end tests: built programs, real sockets, two nodes.
//!
//! Each test is a function named as the promise it keeps, in the table of its file with what it needs of the machine.

mod benchmark;
mod connect;
mod direct;
mod earlier;
mod faults;
mod guards;
mod hbone;
mod kernels;
mod lifecycle;
mod native;
mod paths;
mod policy;
mod services;
mod shared;
mod views;

use signet_testkit::harness;
use signet_testkit::harness::Test;
use signet_testkit::tests;

fn main() {
    // They wait more than they work: more threads than the machine has cores, but not more testbeds than it has memory.
    let conclusion = harness::run(TABLES, 4);
    shared::end();
    conclusion.exit();
}

/// In the order of importance.
const TABLES: &[&[Test]] = &[
    connect::TESTS,
    direct::TESTS,
    direct::RESTART_TESTS,
    policy::TESTS,
    faults::TESTS,
    lifecycle::TESTS,
    earlier::TESTS,
    lifecycle::FOOTPRINT_TESTS,
    hbone::TESTS,
    native::TESTS,
    services::TESTS,
    views::TESTS,
    paths::TESTS,
    paths::BULK_TESTS,
    native::BULK_TESTS,
    direct::BULK_TESTS,
    hbone::ENVOY_TESTS,
    native::ENVOY_TESTS,
    faults::SLOW_TESTS,
    guards::TESTS,
    kernels::TESTS,
    benchmark::TESTS,
];
