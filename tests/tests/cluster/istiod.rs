//! The real istiod beside the cluster: `signetd` with its CA, what that CA gives, and what it refuses.

use anyhow::{Context, Result, bail, ensure};
use signet_testkit::cluster::{Cluster, Signet};
use signet_testkit::need::Need;
use signet_testkit::wait;

use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Istiod, Need::Engine] =>
    signetd_gets_its_svids_from_istiods_ca_as_it_is,
);

/// `server` is on n2 and `client` on n1, each with the identity of its own namespace.
fn signetd_gets_its_svids_from_istiods_ca_as_it_is() -> Result<()> {
    let cluster = Cluster::start()?;
    let kubectl = cluster.kubectl();
    let signet = Signet::start_with_istiod(&cluster, cluster.start_istiod()?)?;
    for (name, node, command) in [
        (
            "server",
            "n2",
            &["sh", "-c", "mkdir /www && printf hello >/www/index.html && exec httpd -f -p 8080 -h /www"][..],
        ),
        ("client", "n1", &["sleep", "3600"]),
    ] {
        kubectl.create_namespace(name)?;
        kubectl.run(&["label", "namespace", name, "istio.io/dataplane-mode=ambient"])?;
        kubectl.apply(&shared::pod(name, name, node, "signet-workload", command))?;
        kubectl.wait_ready(name, name, WITHIN)?;
    }
    for name in ["server", "client"] {
        signet.wait_for_pod(name, name, true)?;
    }
    let pod = kubectl.json(&["get", "pod", "server", "--namespace=server"])?;
    let address = pod["status"]["podIP"].as_str().context("an address")?.to_owned();
    let url = format!("http://{address}:8080/");
    wait::until("the client gets an answer", WITHIN, || {
        kubectl.exec(
            "client",
            "client",
            &["curl", "--silent", "--show-error", "--fail", "--max-time", "10", &url],
        )
    })?;
    let identity = |name: &str| format!("spiffe://cluster.local/ns/{name}/sa/default");
    let (source, destination) = (
        format!("src.identity=\"{}\"", identity("client")),
        format!("dst.identity=\"{}\"", identity("server")),
    );
    for node in ["n1", "n2"] {
        signet.engine(node)?.wait_for_log(&["connection complete", &source, &destination])?;
    }
    let istiod = signet.ca();
    let svid = istiod.svid(&cluster.node_token("n1")?, &identity("client"))?;
    ensure!(svid.roots.trim() == istiod.roots().trim(), "the chain ends in other roots than those published");
    let Err(refused) = istiod.svid(&cluster.node_token("n1")?, &identity("server")) else {
        bail!("istiod signed for a pod of another node")
    };
    ensure!(format!("{refused:#}").contains("impersonation authentication failure"), "{refused:#}");
    Ok(())
}
