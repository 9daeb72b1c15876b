//! Tests on a real Kubernetes cluster: two nodes with kubelet, containerd and kube-proxy, on this machine.
//!
//! Each test is a function named as the promise it keeps, in the table of its file with what it needs of the machine.

mod bad_days;
mod ca;
mod ca_outages;
mod chart;
mod churn;
mod corpus;
mod crds;
mod dashboard;
mod days;
mod earlier;
mod engine;
mod footprint;
mod handshakes;
mod identities;
mod images;
mod installed;
mod ipv6;
mod issuing;
mod istiod;
mod lacking;
mod lifecycle;
mod mesh;
mod network;
mod pods;
mod probes;
mod rights;
mod roll;
mod services;
mod shared;
mod skew;
mod turns;
mod unknown;
mod withdrawing;

use signet_testkit::harness::{self, Test};
use signet_testkit::tests;

fn main() {
    // A cluster takes the memory and the start-up work of a dozen testbeds: two at a time are enough for two cores.
    let conclusion = harness::run(TABLES, 2);
    issuing::end();
    days::end();
    mesh::end();
    shared::end();
    conclusion.exit();
}

/// In the order of importance.
const TABLES: &[&[Test]] = &[
    network::TESTS,
    mesh::TESTS,
    probes::TESTS,
    pods::TESTS,
    handshakes::TESTS,
    identities::TESTS,
    services::TESTS,
    ipv6::TESTS,
    dashboard::TESTS,
    installed::TESTS,
    unknown::TESTS,
    earlier::TESTS,
    bad_days::TESTS,
    roll::TESTS,
    churn::TESTS,
    ca::TESTS,
    ca_outages::TESTS,
    chart::TESTS,
    chart::MANIFEST_TESTS,
    lacking::TESTS,
    crds::TESTS,
    rights::TESTS,
    withdrawing::TESTS,
    images::TESTS,
    engine::TESTS,
    istiod::TESTS,
    lifecycle::TESTS,
];
