//! The same story on a Kubernetes cluster: the tiers as Deployments and Services, Signet by helm, policies by kubectl.
//!
//! The promises have the names they have without a cluster; two are the cluster's own: that nothing restarts when a
//! namespace joins, and that `helm uninstall` takes everything out again.

mod stage;
mod tiers;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::stage::Stage;
use self::tiers::{BACKEND, DATASTORE, FRONTEND, STRANGER, Tier};
use super::report::Report;
use crate::capture::Packets;
use crate::cluster::Wire;
use crate::process::stdout;
use crate::wait;

/// Sets the stage and tries everything.
///
/// # Errors
/// The stage could not be set. A promise that is not kept is in the report.
pub(super) fn run(report: &mut Report, keep: bool) -> Result<()> {
    let mut stage = Stage::set(report, keep)?;
    report.check("without the mesh, the link shows the payload", || payload_in_clear(&stage));
    report.progress("helm install signet deploy/chart; kubectl apply; kubectl label namespace");
    stage.install()?;
    report.check("the running pods join the mesh, and none restarts", || joined(&stage));
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
    if keep {
        return stage.keep(report);
    }
    report.check("helm uninstall takes it out of both nodes, and the pods talk on", || uninstalled(&stage));
    Ok(())
}

fn payload_in_clear(stage: &Stage) -> Result<String> {
    let (page, packets) = captured(stage, || get(stage, &FRONTEND, &BACKEND))?;
    ensure!(page.contains(&stage.payload), "the backend served {page:?}");
    ensure!(packets.contain(stage.payload.as_bytes()), "the capture does not hold what crossed it");
    ensure!(packets.tls_records_of_port(HBONE) == 0, "TLS from nowhere");
    let bytes = packets.bytes_of_port(80);
    Ok(format!("control capture: payload found, 0 TLS records on port {HBONE}, {bytes} bytes on port 80"))
}

fn joined(stage: &Stage) -> Result<String> {
    for namespace in tiers::ENROLLED {
        stage.release()?.wait_for_pods(stage.cluster.nodes(), namespace, "captured")?;
    }
    let now = stage.containers()?;
    ensure!(now == stage.before, "containers were {:?}, and are {now:?}", stage.before);
    Ok(format!(
        "`signet workloads` says captured of all of {}; {} containers are the same",
        tiers::ENROLLED.join(", "),
        now.len()
    ))
}

fn mtls_on_the_link(stage: &Stage) -> Result<String> {
    let (page, packets) = captured(stage, || get(stage, &FRONTEND, &BACKEND))?;
    ensure!(page.contains(&stage.payload), "the backend served {page:?}");
    let records = mtls(stage, &packets)?;
    Ok(format!(
        "curl got {:?}; the link held {records} TLS records, 0 bytes on port 80, and not the payload",
        page.trim_end()
    ))
}

fn spiffe_ids(stage: &Stage) -> Result<String> {
    let (client, server) = (FRONTEND.spiffe_id(), BACKEND.spiffe_id());
    let identities = [format!("src.identity=\"{client}\""), format!("dst.identity=\"{server}\"")];
    let of = |direction| [identities[0].as_str(), identities[1].as_str(), direction];
    let release = stage.release()?;
    release.wait_for_log("n1", &of("direction=\"outbound\"")).context("the frontend's side")?;
    release.wait_for_log("n2", &of("direction=\"inbound\"")).context("the backend's side")?;
    Ok(format!("n1, outbound, and n2, inbound: {client} -> {server}"))
}

fn client_address(stage: &Stage) -> Result<String> {
    let (client, server) = (stage.address(&FRONTEND)?, stage.address(&BACKEND)?);
    let log = stage.log(&BACKEND)?;
    let wanted = format!("{client} {server}:80 GET / ");
    let seen = log.lines().filter(|line| line.starts_with(&wanted)).count();
    // One of them is the control's, from before the mesh.
    ensure!(seen >= 2, "nginx logged:\n{log}");
    Ok(format!("nginx in the backend logged {wanted:?}"))
}

fn backend_to_datastore(stage: &Stage) -> Result<String> {
    let page = get(stage, &BACKEND, &DATASTORE)?;
    ensure!(page.trim_end() == DATASTORE.page.trim_end(), "the datastore served {page:?}");
    Ok(format!("curl got {page:?}"))
}

fn frontend_to_datastore(stage: &Stage) -> Result<String> {
    let refusal = refused(stage, &FRONTEND, &DATASTORE)?;
    let served = stage.log(&DATASTORE)?;
    ensure!(!served.contains(&format!("{} ", stage.address(&FRONTEND)?)), "nginx logged:\n{served}");
    let line = stage.release()?.wait_for_log("n1", &["datastore-ns/datastore", &FRONTEND.spiffe_id()])?;
    let reason = line.split("error=").nth(1).with_context(|| format!("no reason in {line}"))?;
    Ok(format!("curl: {refusal}\nsignetd on n1: {reason}"))
}

fn strict(stage: &Stage) -> Result<String> {
    let refusal = refused(stage, &STRANGER, &FRONTEND)?;
    let stranger = stage.address(&STRANGER)?;
    let line =
        stage.release()?.wait_for_log("n1", &["PeerAuthentication istio-system/default", &stranger])?;
    let reason = line.split("error=").nth(1).with_context(|| format!("no reason in {line}"))?;
    Ok(format!("curl: {refusal}\nsignetd on n1: {reason}"))
}

fn permissive(stage: &Stage) -> Result<String> {
    stage.cluster.kubectl().apply(include_str!("permissive.yaml"))?;
    let page = wait::until("the frontend serves the stranger", WITHIN, || get(stage, &STRANGER, &FRONTEND))?;
    let (log, client) = (stage.log(&FRONTEND)?, stage.address(&STRANGER)?);
    ensure!(log.lines().any(|line| line.starts_with(&format!("{client} "))), "nginx logged:\n{log}");
    Ok(format!("curl got {page:?}; nginx in the frontend logged its client as {client}"))
}

fn rotation(stage: &Stage) -> Result<String> {
    let noise =
        format!("dd if=/dev/urandom of=/tmp/web/html/photos bs=1M count={DOWNLOAD_MEGABYTES} 2>/dev/null");
    stage.exec(&BACKEND, &["sh", "-c", &noise])?;
    let sha256 = |tier, path| {
        anyhow::Ok(stage.exec(tier, &["sha256sum", path])?.split(' ').next().unwrap_or_default().to_owned())
    };
    let expected = sha256(&BACKEND, "/tmp/web/html/photos")?;
    let serials = || anyhow::Ok([stage.serial("n1", &FRONTEND)?, stage.serial("n2", &BACKEND)?]);
    let before = serials()?;
    let url = format!("{}photos", BACKEND.url());
    stage.exec(&FRONTEND, &["curl", "-sS", "--limit-rate", DOWNLOAD_RATE, "-o", "/tmp/download", &url])?;
    let after = serials()?;
    ensure!(sha256(&FRONTEND, "/tmp/download")? == expected, "the download is damaged");
    let rotated = before.iter().zip(&after).all(|(before, after)| before != after);
    ensure!(rotated, "no rotation: {before:?} before, {after:?} after");
    Ok(format!(
        "{DOWNLOAD_MEGABYTES} MiB arrived whole (SHA-256 {}...); the frontend's SVID went from serial {} to {}",
        &expected[..16],
        before[0],
        after[0]
    ))
}

/// kubelet starts it again at once, so the frontend asks all the time, from before the kill until it is served again.
fn killed(stage: &Stage) -> Result<String> {
    let (answers, packets) = captured(stage, || stage.kill_under_load(&FRONTEND, &BACKEND))?;
    nothing_in_clear(stage, &packets)?;
    let kinds: BTreeSet<&str> = answers.lines().collect();
    let refused = answers.lines().filter(|answer| *answer != "served").count();
    Ok(format!(
        "of {} requests from before the kill until after the restart {refused} failed ({kinds:?}), and the others \
         were served, if late; the link held 0 bytes on port 80, and not the payload",
        answers.lines().count()
    ))
}

fn restarted(stage: &Stage) -> Result<String> {
    let (_, packets) = captured(stage, || {
        wait::until("the backend answers", WITHIN, || {
            let page = get(stage, &FRONTEND, &BACKEND)?;
            ensure!(page.contains(&stage.payload), "the backend served {page:?}");
            Ok(())
        })
    })?;
    let records = mtls(stage, &packets)?;
    Ok(format!("the backend answers; the link held {records} TLS records, and not the payload"))
}

fn uninstalled(stage: &Stage) -> Result<String> {
    stage.release()?.uninstall()?;
    for node in stage.cluster.nodes() {
        let left = stdout(&node.exec(&["find", "/sys/fs/bpf", "-path", "*signet*"])?)?;
        ensure!(left.is_empty(), "pins are left on {}:\n{left}", node.name());
    }
    let (page, packets) = captured(stage, || get(stage, &FRONTEND, &BACKEND))?;
    ensure!(page.contains(&stage.payload), "the backend served {page:?}");
    ensure!(packets.contain(stage.payload.as_bytes()), "something still carries what they say");
    let now = stage.containers()?;
    ensure!(now == stage.before, "containers were {:?}, and are {now:?}", stage.before);
    Ok("no pin is left on n1 and n2; the backend answers as before the mesh, in clear".to_owned())
}

/// What `act` returned, and what crossed the backend's node's link meanwhile.
fn captured<T>(stage: &Stage, act: impl FnOnce() -> Result<T>) -> Result<(T, Packets)> {
    let wire = Wire::record(&stage.cluster, &stage.cluster.nodes()[1])?;
    let result = act()?;
    Ok((result, wire.stop()?))
}

/// How many TLS records the engines exchanged; the API server's are on the link too.
fn mtls(stage: &Stage, packets: &Packets) -> Result<usize> {
    nothing_in_clear(stage, packets)?;
    let records = packets.tls_records_of_port(HBONE);
    ensure!(records > 0, "no TLS record crossed the link on port {HBONE}");
    Ok(records)
}

fn nothing_in_clear(stage: &Stage, packets: &Packets) -> Result<()> {
    ensure!(!packets.contain(stage.payload.as_bytes()), "the payload crossed the link in clear");
    let clear = packets.bytes_of_port(80);
    ensure!(clear == 0, "{clear} bytes crossed the link on port 80");
    Ok(())
}

fn get(stage: &Stage, client: &Tier, server: &Tier) -> Result<String> {
    stage.exec(client, &["curl", "-sS", "--fail", "--max-time", "15", &server.url()])
}

/// curl's complaint.
fn refused(stage: &Stage, client: &Tier, server: &Tier) -> Result<String> {
    match get(stage, client, server) {
        Ok(page) => bail!("{} was served: {page:?}", client.name),
        Err(error) => {
            let said = format!("{error:#}");
            let complaint = said.lines().find_map(|line| Some(&line[line.find("curl: (")?..]));
            complaint.map(str::to_owned).with_context(|| format!("curl did not say why: {said}"))
        }
    }
}

/// Where engines listen for each other.
const HBONE: u16 = 15008;
/// Takes longer than half of an SVID's life, so that one rotation falls into it.
const DOWNLOAD_MEGABYTES: usize = 40;
const DOWNLOAD_RATE: &str = "2M";
/// For a machine that is busy with a build.
const WITHIN: Duration = Duration::from_secs(60);
