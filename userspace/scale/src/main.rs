//! signet-scale: prints what 100,000 pods and 10,000 policies cost an engine, as one JSON object.

use signet_agent::footprint::Footprint;
use signet_agent::state::State;
use signet_scale::{figures, mesh};

fn main() -> anyhow::Result<()> {
    let state = State::new("istio-system");
    let inventory = figures::memory_of(|| {
        mesh::add_workloads(&state);
        // As an engine does at each heartbeat.
        Footprint::default().heartbeat();
    })?;
    mesh::add_services(&state);
    mesh::add_policies(&state);
    Footprint::default().heartbeat();
    println!("{}", figures::all(&state, inventory));
    Ok(())
}
