//! What a handshake asks of the verifier: is this chain an SVID of a trust domain that we know, now?

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use signet_identity::testing::{TestCa, unix_from_now};
use signet_identity::verify_peer;

fn verifier(criterion: &mut Criterion) {
    let root = TestCa::new("cluster.local");
    let below = root.intermediate(|_| ());
    let (bundles, now) = (root.bundles(), unix_from_now(0));
    let mut group = criterion.benchmark_group("verifier");
    for (name, ca) in [("root", &root), ("intermediate", &below)] {
        let chain = ca.issue("spiffe://cluster.local/ns/shop/sa/web", |_| ()).chain;
        verify_peer(&chain, &bundles, now).expect("the chain is a good one");
        group.bench_function(format!("a leaf below the {name}"), |bench| {
            bench.iter(|| verify_peer(black_box(&chain), &bundles, now));
        });
    }
    group.finish();
}

criterion_group!(benches, verifier);
criterion_main!(benches);
