//! What is parsed for each handshake: a SPIFFE ID, and the certificate that carries it.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use signet_identity::testing::TestCa;
use signet_identity::{SpiffeId, read_verified};

fn parsers(criterion: &mut Criterion) {
    let ca = TestCa::new("cluster.local");
    let issued = ca.issue(URI, |_| ());
    let leaf = &issued.chain[0];
    let mut group = criterion.benchmark_group("parser");
    group.bench_function("SPIFFE ID", |bench| bench.iter(|| SpiffeId::parse(black_box(URI))));
    group.bench_function("SVID", |bench| bench.iter(|| read_verified(black_box(leaf))));
    group.finish();
}

const URI: &str = "spiffe://cluster.local/ns/payments-production/sa/checkout-frontend";

criterion_group!(benches, parsers);
criterion_main!(benches);
