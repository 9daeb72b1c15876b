//! IPv6 on a dual-stack cluster: pods' second addresses, Services of IPv6 alone, and nodes' ports, in the mesh and from outside.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::mesh::{self, Meshed, Pair};
use crate::shared::WITHIN;

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    pods_and_services_of_ipv6_are_in_the_mesh,
);

fn pods_and_services_of_ipv6_are_in_the_mesh() -> Result<()> {
    let mesh = mesh::mesh()?;
    let pair = mesh.pair(NAMESPACE, true)?;
    mesh.kubectl().apply(&service().to_string())?;
    mesh.wait_for_services()?;
    outside_gets_in(&mesh, &pair)?;
    mesh.strict(NAMESPACE)?;
    let wire = mesh.record()?;
    for authority in authorities(&mesh)? {
        pair.fetch(&format!("http://{authority}/{NAMESPACE}"))?;
    }
    let packets = wire.stop()?;
    ensure!(packets.tls_records() > 0 && !pair.is_seen(&packets), "not mTLS on the link");
    let dialled = format!("[{}]:8080", address_of(&mesh, "server")?);
    mesh.signet.engine("n2")?.wait_for_log(&["connection complete", &dialled, "src.identity"]).map(drop)
}

/// The pod's, the Service's, and a port of each node.
fn authorities(mesh: &Meshed) -> Result<Vec<String>> {
    let service = mesh.kubectl().json(&["get", "--namespace", NAMESPACE, "service/six"])?;
    let vip = service["spec"]["clusterIP"].as_str().context("an address")?;
    ensure!(vip.contains(':'), "the Service has {vip}");
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")?;
    let nodes = mesh.cluster.nodes().iter().map(|node| format!("[{}]:{port}", node.ip6()));
    let own = [format!("[{}]:8080", address_of(mesh, "server")?), format!("[{vip}]")];
    Ok(own.into_iter().chain(nodes).collect())
}

/// Without an identity: PERMISSIVE lets it in, by the pod's address and by a node's port.
fn outside_gets_in(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    for authority in authorities(mesh)?.into_iter().filter(|authority| !authority.ends_with(']')) {
        let url = format!("http://{authority}/{NAMESPACE}");
        let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url];
        wait::until(&format!("a client outside gets {url}"), WITHIN, || {
            let said = stdout(&mesh.cluster.outside(&curl)?.output()?)?;
            ensure!(said == pair.secret(), "it got {said:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn address_of(mesh: &Meshed, pod: &str) -> Result<String> {
    let pod = mesh.kubectl().json(&["get", "--namespace", NAMESPACE, "pod", pod])?;
    let all = pod["status"]["podIPs"].as_array().context("addresses")?;
    let six = all.iter().filter_map(|one| one["ip"].as_str()).find(|ip| ip.contains(':'));
    Ok(six.with_context(|| format!("no address of IPv6 among {all:?}"))?.to_owned())
}

fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "six", "namespace": NAMESPACE}, "spec": {
        "type": "NodePort", "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack",
        "selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}],
    }})
}

const NAMESPACE: &str = "six";
