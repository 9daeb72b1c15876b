//! What breaks, breaks closed, hurts nobody else, and mends itself.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::json;
use signet_testkit::capture::Capture;
use signet_testkit::mesh::{Mesh, rows};
use signet_testkit::need::Need;
use signet_testkit::nginx::{self, Nginx};
use signet_testkit::pod::PodSpec;
use signet_testkit::process::Process;
use signet_testkit::wait;

use crate::connect::{Pair, allow};
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("tcpdump")] =>
    a_killed_engine_fails_closed_and_resumes_after_its_restart,
    a_restarted_engine_adopts_its_pins_without_a_gap,
    a_successor_serves_while_its_predecessor_finishes_and_is_not_needed_before,
    without_its_ca_a_new_workload_waits_and_leaks_nothing,
    an_application_that_does_not_listen_is_a_refusal,
    silent_clients_hurt_nobody,
    a_broken_manifest_is_named_and_leaves_the_rest_in_force,
    an_uninstalled_engine_leaves_no_pin_and_no_capture,
);

pub(crate) const SLOW_TESTS: &[Test] = crate::tests!(&[Need::Engine, Need::Program("nginx"), Need::Program("curl")] =>
    a_stopping_engine_lets_running_transfers_finish,
    svids_rotate_under_a_download_and_outlive_a_ca_outage,
    thousands_of_idle_connections_leave_room_for_others,
);

fn a_killed_engine_fails_closed_and_resumes_after_its_restart() -> Result<()> {
    let mesh = Mesh::start_with("24h", &json!({"timeouts": {"engine": "1s"}}))?;
    let pair = Pair::start(&mesh, "killed")?;
    pair.client.dial(&pair.v4(), &[])?.answered()?;
    mesh.n1.kill_engine()?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "killed")?;
    for _ in 0..5 {
        pair.client.dial(&pair.v4(), &["--text", MARKER])?.refused()?;
    }
    ensure!(!capture.stop()?.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    mesh.n1.launch_again()?;
    mesh.n1.wait_ready()?;
    mesh.settle(&[&pair.client])?;
    pair.client.dial(&pair.v4(), &[])?.answered().context("after the restart")?;
    // The other node's engine, and so inbound, and with a proper shutdown: the same.
    mesh.n2.stop_engine()?;
    pair.client.dial(&pair.v4(), &[])?.refused().context("the server's engine is gone")?;
    mesh.n2.launch_again()?;
    mesh.n2.wait_ready()?;
    mesh.settle(&[&pair.server])?;
    wait::until("the server answers again", Duration::from_secs(15), || {
        pair.client.dial(&pair.v4(), &[])?.answered().map(drop)
    })
}

/// From the kill to readiness some client tries all the time: nothing of it is ever seen on the link, and who has waited for
/// the engine is served.
fn a_restarted_engine_adopts_its_pins_without_a_gap() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "restart")?;
    let pins = mesh.n1.pins();
    ensure!(!pins.is_empty(), "nothing is pinned");
    let capture = Capture::start(mesh.n1.host(), "eth0", "restart")?;
    let ready = AtomicBool::new(false);
    let (restarted, last) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            loop {
                let last = pair.client.dial(&pair.v4(), &["--text", MARKER])?;
                if ready.load(Ordering::Relaxed) {
                    return anyhow::Ok(last);
                }
            }
        });
        let restarted =
            mesh.n1.kill_engine().and_then(|()| mesh.n1.launch_again()).and_then(|()| mesh.n1.wait_ready());
        ready.store(true, Ordering::Relaxed);
        (restarted, client.join().expect("the client's thread does not panic"))
    });
    restarted?;
    last?.answered().context("it was refused while the engine was started again")?;
    mesh.settle(&[&pair.client])?;
    pair.client.dial(&pair.v4(), &["--text", MARKER])?.answered()?;
    let packets = capture.stop()?;
    ensure!(!packets.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    ensure!(packets.tls_records() > 0, "no TLS after the restart");
    ensure!(mesh.n1.pins() == pins, "pins changed from {pins:?} to {:?}", mesh.n1.pins());
    Ok(())
}

/// The engines of both ends change hands while a connection goes through them: it lives on with the one that it began with,
/// and whoever comes meanwhile is served by the other. A successor that cannot serve says so and changes nothing.
fn a_successor_serves_while_its_predecessor_finishes_and_is_not_needed_before() -> Result<()> {
    let mesh = Mesh::start_with("24h", &json!({"timeouts": {"drain": "10m"}}))?;
    let pair = Pair::start(&mesh, "successor")?;
    let mut predecessors = Vec::new();
    let mut before = pair.client.hold(&pair.v4())?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "successor")?;
    for node in [&mesh.n1, &mesh.n2] {
        mesh.ca.kill()?;
        let mut successor = node.launch_successor()?;
        wait::until("it says what it lacks", WITHIN, || {
            let said = node.ask_successor()?;
            ensure!(said.contains("ca: ") && said.contains("does the CA run"), "{said}");
            Ok(())
        })?;
        pair.client.dial(&pair.v4(), &[])?.answered().context("a successor that cannot serve")?;
        mesh.ca.start()?;
        wait::until("it could serve", WITHIN, || {
            let said = node.ask_successor()?;
            ensure!(said == "ok", "{said}");
            Ok(())
        })?;
        successor.check_alive()?;
        pair.client.dial(&pair.v4(), &[])?.answered().context("a successor that stands by")?;
        predecessors.push(node.hand_over(successor)?);
        pair.client.dial(&pair.v4(), &["--text", MARKER])?.answered().context("while it changes hands")?;
        node.wait_for_log(&["capture attached"])?;
        node.wait_ready()?;
        mesh.settle(&[&pair.client, &pair.server])?;
        pair.client.dial(&pair.v4(), &["--text", MARKER])?.answered().context("the successor")?;
    }
    before.check_alive().context("the connection from before")?;
    let mut predecessors = predecessors.iter_mut();
    predecessors.try_for_each(Process::check_alive).context("it ended before the connection it carries")?;
    ensure!(!capture.stop()?.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    wait::until(
        "the connection of before is its predecessor's, and the successor of n1 has none",
        WITHIN,
        || {
            let opened = rows(&mesh.n1.signet(&["connections"])?).count();
            ensure!(opened == 0, "{opened} are open");
            Ok(())
        },
    )
}

fn without_its_ca_a_new_workload_waits_and_leaks_nothing() -> Result<()> {
    let mesh = Mesh::start_with("24h", &json!({"timeouts": {"svid": "2s"}}))?;
    mesh.ca.kill()?;
    let Err(checked) = mesh.n1.signet_text(&["check"]) else { bail!("signet check finds nothing") };
    ensure!(format!("{checked:#}").contains("does the CA run"), "signet check says {checked:#}");
    let pair = Pair::start(&mesh, "orphan")?;
    let capture = Capture::start(mesh.n1.host(), "eth0", "orphan")?;
    pair.client.dial(&pair.v4(), &["--text", MARKER])?.refused()?;
    mesh.n1.wait_for_log(&["no SVID"])?;
    let packets = capture.stop()?;
    ensure!(!packets.contain(MARKER.as_bytes()), "the payload crossed the link in clear");
    let failures = mesh.n1.metrics()?;
    let failed = failures.sum("istio_tcp_connections_failed_total", &[("response_flags", "IDENTITY_ERROR")]);
    ensure!(failed >= 1.0, "the failure is not in the metrics");
    mesh.ca.start()?;
    wait::until("the CA is back, and so is the traffic", Duration::from_secs(40), || {
        pair.client.dial(&pair.v4(), &[])?.answered().map(drop)
    })
}

/// SIGTERM, as at an upgrade: what runs may finish, what is new is refused.
fn a_stopping_engine_lets_running_transfers_finish() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "drain")?;
    let web = Nginx::start(&pair.server, "page\n")?;
    let expected = web.put_noise("noise", 8)?;
    let file = pair.client.directory()?.join("noise");
    let url = format!("http://{}/noise", pair.server.ipv4());
    let path = file.to_str().context("UTF-8")?;
    let mut transfer = pair.client.spawn("curl", &["curl", "-sS", "--limit-rate", "4M", "-o", path, &url])?;
    wait::until("the transfer runs", Duration::from_secs(10), || {
        ensure!(std::fs::metadata(&file)?.len() > 0, "nothing has arrived");
        Ok(())
    })?;
    mesh.n1.stop_engine()?;
    let status = transfer.wait(Duration::from_secs(20))?;
    ensure!(status.success() && nginx::sha256(&file)? == expected, "curl ended with {status}");
    pair.client.dial(&pair.v4(), &[])?.refused()?;
    Ok(())
}

fn an_application_that_does_not_listen_is_a_refusal() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "deaf")?;
    pair.client.dial(&format!("{}:8081", pair.server.ipv4()), &[])?.refused()?;
    mesh.n2.wait_for_log(&["direction=\"inbound\"", ":8081", "error="])?;
    pair.client.dial(&pair.v4(), &[])?.answered().context("the port that has a listener")?;
    Ok(())
}

fn silent_clients_hurt_nobody() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "silent")?;
    let hbone: SocketAddr = format!("{}:15008", pair.server.ipv4()).parse()?;
    let open = || (0..100).map(|_| TcpStream::connect_timeout(&hbone, Duration::from_secs(5))).collect();
    let silent: std::io::Result<Vec<TcpStream>> = mesh.n1.host().netns().enter(open)?;
    let silent = silent?;
    pair.client.dial(&pair.v4(), &[])?.answered().context("with 100 silent clients on 15008")?;
    // Sooner or later the engine loses patience with them: its handshake timeout is 10 s.
    let mut one = silent.into_iter().next().context("one of a hundred")?;
    one.set_read_timeout(Some(Duration::from_secs(40)))?;
    let end = one.read(&mut [0; 1]);
    ensure!(!matches!(end, Ok(1..)), "the engine spoke first");
    ensure!(
        !matches!(&end, Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)),
        "it was kept for ever"
    );
    Ok(())
}

fn a_broken_manifest_is_named_and_leaves_the_rest_in_force() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "broken")?;
    mesh.apply("broken-policy", &allow("broken", "server", "spiffe://cluster.local/ns/broken/sa/nobody"))?;
    pair.client.dial(&pair.v4(), &[])?.refused()?;
    mesh.bed
        .manifests()
        .put("broken-policy", "apiVersion: security.istio.io/v1\nkind: [AuthorizationPolicy\n")?;
    mesh.n2.wait_for_log(&["broken-policy.yaml"]).context("the file is not named")?;
    pair.client.dial(&pair.v4(), &[])?.refused().context("what the file said last is still in force")?;
    mesh.bed.manifests().remove("broken-policy")?;
    wait::until("the policy is gone with its file", Duration::from_secs(10), || {
        pair.client.dial(&pair.v4(), &[])?.answered().map(drop)
    })
}

fn an_uninstalled_engine_leaves_no_pin_and_no_capture() -> Result<()> {
    let mesh = Mesh::start()?;
    let pair = Pair::start(&mesh, "uninstall")?;
    pair.client.dial(&pair.v4(), &[])?.answered()?;
    for node in mesh.nodes() {
        node.stop_engine()?;
        node.uninstall_engine()?;
        ensure!(node.pins().is_empty(), "left: {:?}", node.pins());
    }
    let capture = Capture::start(mesh.n1.host(), "eth0", "uninstalled")?;
    pair.client.dial(&pair.v4(), &["--text", MARKER])?.answered()?;
    ensure!(capture.stop()?.contain(MARKER.as_bytes()), "something still stands between them");
    Ok(())
}

fn svids_rotate_under_a_download_and_outlive_a_ca_outage() -> Result<()> {
    let mesh = Mesh::start_with("20s", &json!({}))?;
    let client = mesh.n1.pod(PodSpec::new("rotation", "client"))?;
    let server = mesh.n2.pod(PodSpec::new("rotation", "server"))?;
    mesh.settle(&[&client, &server])?;
    let web = Nginx::start(&server, "page\n")?;
    let expected = web.put_noise("noise", 40)?;
    let serial = || -> Result<String> {
        let view = mesh.n1.signet(&["certificates"])?;
        let row = rows(&view).find(|row| row["id"] == client.spiffe_id());
        Ok(row.context("no SVID yet")?["serial"].to_string())
    };
    client.run(&["curl", "-sS", &format!("http://{}/", server.ipv4())])?;
    let before = serial()?;
    let file = client.directory()?.join("noise");
    let path = file.to_str().context("UTF-8")?;
    client.run(&[
        "curl",
        "-sS",
        "--limit-rate",
        "2M",
        "-o",
        path,
        &format!("http://{}/noise", server.ipv4()),
    ])?;
    ensure!(nginx::sha256(&file)? == expected, "the download is damaged");
    ensure!(serial()? != before, "no rotation during the download");
    // The CA is down across a rotation: what is valid goes on serving.
    let current = serial()?;
    wait::until("a fresh SVID", Duration::from_secs(20), || {
        ensure!(serial()? != current, "not rotated yet");
        Ok(())
    })?;
    mesh.ca.kill()?;
    client.run(&["curl", "-sS", &format!("http://{}/", server.ipv4())])?;
    mesh.ca.start()?;
    let outlived = serial()?;
    wait::until("rotation has resumed", Duration::from_secs(40), || {
        ensure!(serial()? != outlived, "not rotated yet");
        Ok(())
    })
}

fn thousands_of_idle_connections_leave_room_for_others() -> Result<()> {
    let mesh = shared::mesh()?;
    let pair = Pair::start(&mesh, "idle")?;
    let _idle = pair.client.idle(&pair.v4(), idle_connections()?)?;
    pair.client.dial(&pair.v4(), &[])?.answered().context("one more")?;
    let other = Pair::start(&mesh, "idle-neighbour")?;
    other.client.dial(&other.v4(), &[])?.answered().context("a neighbour")?;
    Ok(())
}

/// Ten thousand, or as many as the limit of open files has room for: each takes two descriptors of an engine.
fn idle_connections() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let room = usize::try_from(hard)?.saturating_sub(1_000) / 2;
    Ok(room.min(10_000))
}

const WITHIN: Duration = Duration::from_secs(30);
const MARKER: &str = "the-payload-that-must-not-be-seen";
