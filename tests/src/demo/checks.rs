//! The promises, in the order of the story. Each function tries one, and returns its evidence.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::report::Report;
use super::stage::Stage;
use crate::capture::{Capture, Packets};
use crate::nginx;
use crate::pod::Pod;
use crate::process::stdout;
use crate::wait;

/// Sets the stage and tries everything.
///
/// # Errors
/// The stage could not be set. A promise that is not kept is in the report.
pub(super) fn run(report: &mut Report) -> Result<Stage> {
    let stage = Stage::set(report)?;
    report.check("without the mesh, the link shows the payload", || payload_in_clear(&stage));
    report.progress("signetd on both nodes; the running pods are enrolled");
    stage.mesh.bed.manifests().put("policies", include_str!("policies.yaml"))?;
    stage.start_engines()?;
    report.check("frontend to backend: plain HTTP for both, mTLS on the link", || mtls_on_the_link(&stage));
    report.check("both sides saw each other's SPIFFE ID", || spiffe_ids(&stage));
    report.check("the backend sees the frontend's own address", || client_address(&stage));
    report.check("backend to datastore is allowed", || backend_to_datastore(&stage));
    report.check("frontend to datastore is denied, by name", || frontend_to_datastore(&stage));
    report.check("STRICT refuses a process outside the mesh", || strict(&stage));
    report.check("PERMISSIVE serves it", || permissive(&stage));
    report.check("an SVID rotates under a running download", || rotation(&stage));
    report.check("with signetd killed, nothing leaves in clear", || killed(&stage));
    report.check("traffic resumes after its restart", || restarted(&stage));
    Ok(stage)
}

fn payload_in_clear(stage: &Stage) -> Result<String> {
    let (page, packets) = captured(stage, || get(&stage.frontend, &stage.backend))?;
    ensure!(page.contains(&stage.payload), "the backend served {page:?}");
    ensure!(packets.contain(stage.payload.as_bytes()), "the capture does not hold what crossed it");
    ensure!(packets.tls_records() == 0, "TLS from nowhere");
    Ok(format!(
        "control capture: payload found, 0 TLS records, {} bytes on port 80",
        packets.bytes_of_port(80)
    ))
}

fn mtls_on_the_link(stage: &Stage) -> Result<String> {
    let (page, packets) = captured(stage, || get(&stage.frontend, &stage.backend))?;
    ensure!(page.contains(&stage.payload), "the backend served {page:?}");
    ensure!(packets.tls_records() > 0, "no TLS record crossed the link");
    nothing_in_clear(stage, &packets)?;
    Ok(format!(
        "curl got {:?}; the link held {} TLS records, 0 bytes on port 80, and not the payload",
        page.trim_end(),
        packets.tls_records()
    ))
}

fn spiffe_ids(stage: &Stage) -> Result<String> {
    let (client, server) = (stage.frontend.spiffe_id(), stage.backend.spiffe_id());
    let identities = [format!("src.identity=\"{client}\""), format!("dst.identity=\"{server}\"")];
    let of = |direction| [identities[0].as_str(), identities[1].as_str(), direction];
    stage.mesh.n1.wait_for_log(&of("direction=\"outbound\"")).context("the frontend's side")?;
    stage.mesh.n2.wait_for_log(&of("direction=\"inbound\"")).context("the backend's side")?;
    Ok(format!("n1, outbound, and n2, inbound: {client} -> {server}"))
}

fn client_address(stage: &Stage) -> Result<String> {
    let log = stage.backend_web.access_log()?;
    let wanted = format!("{} {}:80 GET / ", stage.frontend.ipv4(), stage.backend.ipv4());
    let seen = log.lines().filter(|line| line.starts_with(&wanted)).count();
    // One of them is the control's, from before the mesh.
    ensure!(seen >= 2, "nginx logged:\n{log}");
    Ok(format!("nginx in the backend logged {wanted:?}"))
}

fn backend_to_datastore(stage: &Stage) -> Result<String> {
    let page = get(&stage.backend, &stage.datastore)?;
    ensure!(page == "the datastore", "the datastore served {page:?}");
    Ok(format!("curl got {page:?}"))
}

fn frontend_to_datastore(stage: &Stage) -> Result<String> {
    let refusal = refused(&stage.frontend, &stage.datastore)?;
    let served = stage.datastore_web.access_log().unwrap_or_default();
    ensure!(!served.contains(&format!("{} ", stage.frontend.ipv4())), "nginx logged:\n{served}");
    let line = stage.mesh.n1.wait_for_log(&["datastore-ns/datastore", &stage.frontend.spiffe_id()])?;
    let reason = line.split("error=").nth(1).with_context(|| format!("no reason in {line}"))?;
    Ok(format!("curl: {refusal}\nsignetd on n1: {reason}"))
}

fn strict(stage: &Stage) -> Result<String> {
    let refusal = refused(&stage.stranger, &stage.frontend)?;
    let line =
        stage.mesh.n1.wait_for_log(&["PeerAuthentication istio-system/default", stage.stranger.ipv4()])?;
    let reason = line.split("error=").nth(1).with_context(|| format!("no reason in {line}"))?;
    Ok(format!("curl: {refusal}\nsignetd on n1: {reason}"))
}

fn permissive(stage: &Stage) -> Result<String> {
    stage.mesh.apply("permissive", include_str!("permissive.yaml"))?;
    let page = get(&stage.stranger, &stage.frontend)?;
    let log = stage.frontend_web.access_log()?;
    let client = stage.stranger.ipv4();
    ensure!(log.lines().any(|line| line.starts_with(&format!("{client} "))), "nginx logged:\n{log}");
    Ok(format!("curl got {page:?}; nginx in the frontend logged its client as {client}"))
}

fn rotation(stage: &Stage) -> Result<String> {
    let expected = stage.backend_web.put_noise("photos", DOWNLOAD_MEGABYTES)?;
    let before = [stage.serial(&stage.frontend)?, stage.serial(&stage.backend)?];
    let got = stage.frontend.directory()?.join("download");
    let path = got.to_str().context("a path in UTF-8")?;
    let url = format!("http://{}/photos", stage.backend.ipv4());
    stage.frontend.run(&["curl", "-sS", "--limit-rate", DOWNLOAD_RATE, "-o", path, &url])?;
    let after = [stage.serial(&stage.frontend)?, stage.serial(&stage.backend)?];
    ensure!(nginx::sha256(&got)? == expected, "the download is damaged");
    ensure!(
        before[0] != after[0] && before[1] != after[1],
        "no rotation: {before:?} before, {after:?} after"
    );
    Ok(format!(
        "{DOWNLOAD_MEGABYTES} MiB arrived whole (SHA-256 {}...); the frontend's SVID went from serial {} to {}",
        &expected[..16],
        before[0],
        after[0]
    ))
}

fn killed(stage: &Stage) -> Result<String> {
    get(&stage.frontend, &stage.backend).context("before the kill")?;
    stage.mesh.n1.kill_engine()?;
    let (refusal, packets) = captured(stage, || refused(&stage.frontend, &stage.backend))?;
    nothing_in_clear(stage, &packets)?;
    Ok(format!("curl: {refusal}\nthe link held 0 bytes on port 80, and not the payload"))
}

fn restarted(stage: &Stage) -> Result<String> {
    stage.mesh.n1.launch_again()?;
    stage.mesh.n1.wait_ready()?;
    let ((), packets) = captured(stage, || {
        wait::until("the backend answers", Duration::from_secs(15), || {
            let page = get(&stage.frontend, &stage.backend)?;
            ensure!(page.contains(&stage.payload), "the backend served {page:?}");
            Ok(())
        })
    })?;
    nothing_in_clear(stage, &packets)?;
    ensure!(packets.tls_records() > 0, "no TLS record crossed the link");
    Ok(format!(
        "the backend answers; the link held {} TLS records, and not the payload",
        packets.tls_records()
    ))
}

/// What `act` returned, and what crossed the first node's link meanwhile.
fn captured<T>(stage: &Stage, act: impl FnOnce() -> Result<T>) -> Result<(T, Packets)> {
    let capture = Capture::start(stage.mesh.n1.host(), "eth0", "link")?;
    let result = act();
    let packets = capture.stop()?;
    Ok((result?, packets))
}

fn nothing_in_clear(stage: &Stage, packets: &Packets) -> Result<()> {
    ensure!(!packets.contain(stage.payload.as_bytes()), "the payload crossed the link in clear");
    let clear = packets.bytes_of_port(80);
    ensure!(clear == 0, "{clear} bytes crossed the link on port 80");
    Ok(())
}

fn get(client: &Pod, server: &Pod) -> Result<String> {
    client.run(&["curl", "-sS", "--max-time", "15", &format!("http://{}/", server.ipv4())])
}

/// curl's complaint.
fn refused(client: &Pod, server: &Pod) -> Result<String> {
    let url = format!("http://{}/", server.ipv4());
    let output = client.exec(&["curl", "-sS", "--max-time", "15", &url])?;
    match stdout(&output) {
        Ok(page) => bail!("{} was served: {page:?}", client.name()),
        Err(_) => Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Takes longer than half of an SVID's life, so that one rotation falls into it.
const DOWNLOAD_MEGABYTES: usize = 40;
const DOWNLOAD_RATE: &str = "2M";
