//! A node whose clock is not the CA's: an act of [`crate::bad_days`].

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use signet_testkit::clock::Clock;
use signet_testkit::wait;

use crate::mesh::Meshed;
use crate::shared::WITHIN;

/// Half a minute is let pass, an hour is said and serves nobody, and what is put right heals without a restart.
pub(crate) fn a_clock_that_is_off_is_said_and_heals(mesh: &mut Meshed, namespace: &str) -> Result<()> {
    let clock = Clock::off_by("-30s")?;
    restart_by(mesh, &clock)?;
    mesh.known_pair(namespace)?.by_service()?;
    clock.set("-1h")?;
    restart_by(mesh, &clock)?;
    is_refused_and_said(mesh, namespace, "behind that of the CA")?;
    clock.set("+0s")?;
    heals(mesh, namespace)
}

/// n1's engine, going by that clock from now on.
fn restart_by(mesh: &mut Meshed, clock: &Clock) -> Result<()> {
    let Meshed { signet, cluster } = mesh;
    let [near, _] = cluster.nodes() else { bail!("a cluster has two nodes") };
    let engine = signet.engine_mut("n1")?;
    engine.end(Signal::SIGTERM)?;
    let variables = clock.variables()?;
    let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
    engine.start_with(near, &variables)
}

fn is_refused_and_said(mesh: &Meshed, namespace: &str, said: &str) -> Result<()> {
    let pair = mesh.known_pair(namespace)?;
    let engine = mesh.signet.engine("n1")?;
    let wire = mesh.record()?;
    wait::until("no connection passes, and readiness says why", WITHIN, || {
        ensure!(pair.try_fetch(&pair.url()).is_err(), "it was served");
        let status = engine.signet(&["status"])?;
        let conditions = status["conditions"].as_array().context("conditions")?;
        let clock = conditions.iter().find(|condition| condition["name"] == "clock");
        let detail = clock.with_context(|| status.to_string())?["detail"].as_str().context("a text")?;
        ensure!(
            detail.contains(said) && detail.contains("synchronise") && status["ready"] == false,
            "{detail}"
        );
        Ok(())
    })?;
    ensure!(!pair.is_seen(&wire.stop()?), "it crossed the link in clear");
    engine.wait_for_log(&["no svid", said])?;
    let Err(findings) = engine.signet(&["check"]) else { bail!("`signet check` finds nothing") };
    let findings = format!("{findings:#}");
    for part in [said, "the API server's: certificates will be refused"] {
        ensure!(findings.contains(part), "{findings}");
    }
    Ok(())
}

fn heals(mesh: &Meshed, namespace: &str) -> Result<()> {
    mesh.known_pair(namespace)?.by_service()?;
    wait::until("readiness has nothing to say of clocks", WITHIN, || {
        let status = mesh.signet.engine("n1")?.signet(&["status"])?;
        ensure!(status["ready"] == true && !status["conditions"].to_string().contains("clock"), "{status}");
        Ok(())
    })
}
