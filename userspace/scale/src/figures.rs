//! Questions to a full [`State`], asked one by one in an order that no cache line follows, and how long each took.
//!
//! A time includes the clock's own, some tens of nanoseconds: what is told is never less than what a connection waits for.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use signet_agent::footprint::Memory;
use signet_agent::policy::Flow;
use signet_agent::state::State;
use signet_identity::SpiffeId;

use crate::mesh::{DEPLOYMENTS, POLICIES, WORKLOADS, address, identity, labels, namespace, scattered, vip};

/// How many bytes of resident memory `work` leaves behind.
///
/// # Errors
/// The kernel does not say.
pub fn memory_of(work: impl FnOnce()) -> Result<u64> {
    let before = resident_bytes()?;
    work();
    Ok(resident_bytes()?.saturating_sub(before))
}

/// Everything that is asked of a full state, with the memory that its workloads took.
#[must_use]
pub fn all(state: &State, inventory: u64) -> Value {
    let callees = Callees::new();
    json!({
        "inventory": {"pods": WORKLOADS, "memory_mib": inventory as f64 / 1024.0 / 1024.0},
        "address": times(|i| drop(black_box(state.resolve(address(i), 8080, "zone-1", &[])))),
        "vip": times(|i| drop(black_box(state.resolve(vip(i % DEPLOYMENTS), 80, "zone-1", &[])))),
        "policy": policy(state, &callees),
    })
}

fn policy(state: &State, callees: &Callees) -> Value {
    let mut said = times(|i| callees.call(state, i));
    let started = Instant::now();
    (0..WORKLOADS).for_each(|i| callees.call(state, scattered(i)));
    said["per_second"] = (f64::from(WORKLOADS) / started.elapsed().as_secs_f64()).into();
    said["policies"] = POLICIES.into();
    said
}

/// Median and 99th percentile of one question, in microseconds.
fn times(ask: impl Fn(u32)) -> Value {
    let time_of = |i| {
        let started = Instant::now();
        ask(scattered(i));
        started.elapsed()
    };
    let mut times: Vec<Duration> = (0..WORKLOADS).map(time_of).collect();
    times.sort_unstable();
    let quantile = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    json!({"p50_us": quantile(0.5), "p99_us": quantile(0.99)})
}

/// What a flow to each deployment has, made before anything is timed.
struct Callees {
    identities: Vec<SpiffeId>,
    labels: Vec<BTreeMap<String, String>>,
    namespaces: Vec<String>,
}

impl Callees {
    fn new() -> Self {
        Self {
            identities: (0..DEPLOYMENTS).map(identity).collect(),
            labels: (0..DEPLOYMENTS).map(labels).collect(),
            namespaces: (0..DEPLOYMENTS).map(namespace).collect(),
        }
    }

    /// A pod calls another one of its deployment, which the last of five policies allows.
    fn call(&self, state: &State, i: u32) {
        let deployment = (i % DEPLOYMENTS) as usize;
        let flow = Flow {
            identity: Some(&self.identities[deployment]),
            source_ip: address(i),
            remote_ip: address(i),
            namespace: &self.namespaces[deployment],
            labels: &self.labels[deployment],
            destination_ip: address(i),
            destination_port: 8080,
        };
        assert!(black_box(state.authorize(&flow)).is_ok(), "a policy of the deployment allows it");
    }
}

fn resident_bytes() -> Result<u64> {
    Ok(Memory::now().context("no /proc/self/statm")?.resident)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh;

    #[test]
    fn each_pod_may_call_its_own_deployment_and_no_stranger_may() {
        let state = State::new("istio-system");
        mesh::add_policies(&state);
        let callees = Callees::new();
        callees.call(&state, 7);
        let flow = Flow {
            identity: Some(&callees.identities[1000]),
            source_ip: address(7),
            remote_ip: address(7),
            namespace: &callees.namespaces[7],
            labels: &callees.labels[7],
            destination_ip: address(7),
            destination_port: 8080,
        };
        assert!(state.authorize(&flow).is_err());
    }
}
