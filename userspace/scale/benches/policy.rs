//! What each connection asks of the policy tables, of 10,000 policies: allowed by the last of five, and by none of them.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use signet_agent::policy::Flow;
use signet_agent::state::State;
use signet_scale::mesh;

fn policy(criterion: &mut Criterion) {
    let state = State::new("istio-system");
    mesh::add_policies(&state);
    let (labels, namespace) = (mesh::labels(7), mesh::namespace(7));
    let mut group = criterion.benchmark_group("policy");
    for (name, caller) in [("allowed", 7), ("denied", 1_000)] {
        let identity = mesh::identity(caller);
        let flow = Flow {
            identity: Some(&identity),
            source_ip: mesh::address(7),
            remote_ip: mesh::address(7),
            namespace: &namespace,
            labels: &labels,
            destination_ip: mesh::address(2_007),
            destination_port: 8080,
        };
        assert_eq!(state.authorize(&flow).is_ok(), name == "allowed");
        group.bench_function(name, |bench| bench.iter(|| state.authorize(black_box(&flow))));
    }
    group.finish();
}

criterion_group!(benches, policy);
criterion_main!(benches);
