//! The test kit itself: without an engine, pods are plain, and what a testbed made is gone with it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use signet_testkit::capture::Capture;
use signet_testkit::cgroup;
use signet_testkit::need::Need;
use signet_testkit::pod::{Pod, PodSpec};
use signet_testkit::probe::Report;
use signet_testkit::process::Process;
use signet_testkit::testbed::Testbed;

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Nodes, Need::Program("tcpdump")] =>
    without_an_engine_every_kind_of_connect_reaches_the_server_in_clear,
    a_testbed_leaves_nothing_behind,
);

fn without_an_engine_every_kind_of_connect_reaches_the_server_in_clear() -> Result<()> {
    let bed = Testbed::new()?;
    let (n1, n2) = (bed.node("n1")?, bed.node("n2")?);
    let client = n1.pod(PodSpec::new("ns", "client"))?;
    let server = n2.pod(PodSpec::new("ns", "server"))?;
    let _running = serve(&server)?;
    let capture = Capture::start(n1.host(), "eth0", "plain")?;
    for kind in
        ["blocking", "non-blocking", "fast-open", "fast-open-connect", "io-uring", "mptcp", "mapped", "udp"]
    {
        let report = dial(&client, &format!("{}:8080", server.ipv4()), &["--kind", kind])?;
        let (peer, greeting) = report.answered().context(kind)?;
        ensure!(peer.ip().to_string() == server.ipv4(), "{kind}: {peer}");
        ensure!(greeting.peer.ip().to_string() == client.ipv4(), "{kind}: {greeting:?}");
    }
    let report = dial(&client, &format!("[{}]:8080", server.ipv6()), &["--text", "sixth sense"])?;
    report.answered()?;
    let packets = capture.stop()?;
    ensure!(packets.contain(b"hello") && packets.contain(b"sixth sense"), "the capture saw nothing");
    ensure!(packets.tls_records() == 0, "TLS from nowhere");
    Ok(())
}

fn a_testbed_leaves_nothing_behind() -> Result<()> {
    let bed = Testbed::new()?;
    let name = bed.name().to_owned();
    let node = bed.node("n1")?;
    let pod = node.pod(PodSpec::new("ns", "pod"))?;
    let sleeper = pod.spawn("sleep", &["sleep", "1000"])?;
    let pid = sleeper.pid();
    drop(bed);
    let places = [cgroup::mount()?, "/run/netns".into(), std::env::temp_dir()];
    for place in places {
        let left = std::fs::read_dir(&place)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|entry| *entry == name || entry.starts_with(&format!("{name}-")));
        ensure!(left.is_none(), "left in {}: {left:?}", place.display());
    }
    drop((sleeper, pod, node));
    ensure!(!Path::new("/proc").join(pid.to_string()).exists(), "a process survived");
    Ok(())
}

fn serve(pod: &Pod) -> Result<Process> {
    let probe = signet_testkit::binaries::path("signet-probe")?;
    let process = pod.spawn("server", &[probe.to_str().context("UTF-8")?, "serve", "8080"])?;
    process.wait_for_line(&["listening"], Duration::from_secs(10))?;
    Ok(process)
}

fn dial(pod: &Pod, to: &str, more: &[&str]) -> Result<Report> {
    let probe = signet_testkit::binaries::path("signet-probe")?;
    let argv = [&[probe.to_str().context("UTF-8")?, "dial", to], more].concat();
    Ok(serde_json::from_str(&pod.run(&argv)?)?)
}
