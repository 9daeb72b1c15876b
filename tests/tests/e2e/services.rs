//! Services: virtual addresses lead to endpoints that are ready, and the client does not notice.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use signet_testkit::need::Need;
use signet_testkit::pod::{Pod, PodSpec};

use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    a_virtual_address_leads_to_the_ready_endpoints_only,
    the_nearest_zone_is_preferred,
    a_service_without_a_ready_endpoint_refuses,
);

fn a_virtual_address_leads_to_the_ready_endpoints_only() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("vip", "client"))?;
    let [ready, unready] = ["ready", "unready"].map(|name| mesh.n2.pod(PodSpec::new("vip", name)));
    let (ready, unready) = (ready?, unready?);
    let _serving = [ready.serve(8080)?, unready.serve(8080)?];
    let endpoints = [(&ready, true, "zone-n2"), (&unready, false, "zone-n1")];
    mesh.bed.manifests().put("vip-service", &service("vip", ["10.96.0.1", "fd96::1"], &endpoints))?;
    mesh.settle(&[&client, &ready, &unready])?;
    for (vip, endpoint) in [
        ("10.96.0.1:80", format!("{}:8080", ready.ipv4())),
        ("[fd96::1]:80", format!("[{}]:8080", ready.ipv6())),
    ] {
        for _ in 0..4 {
            let report = client.dial(vip, &[])?;
            let (peer, greeting) = report.answered()?;
            ensure!(peer.to_string() == vip, "the client's getpeername says {peer}");
            ensure!(greeting.local.to_string() == endpoint, "{vip} led to {greeting:?}");
        }
    }
    Ok(())
}

fn the_nearest_zone_is_preferred() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("zones", "client"))?;
    let near = mesh.n1.pod(PodSpec::new("zones", "near"))?;
    let far = mesh.n2.pod(PodSpec::new("zones", "far"))?;
    let _serving = [near.serve(8080)?, far.serve(8080)?];
    let endpoints = [(&near, true, "zone-n1"), (&far, true, "zone-n2")];
    mesh.bed.manifests().put("zones-service", &service("zones", ["10.96.0.2", "fd96::2"], &endpoints))?;
    mesh.settle(&[&client, &near, &far])?;
    let mut reached = BTreeSet::new();
    for _ in 0..6 {
        let report = client.dial("10.96.0.2:80", &[])?;
        reached.insert(report.answered()?.1.local.ip().to_string());
    }
    ensure!(reached == BTreeSet::from([near.ipv4().to_owned()]), "reached {reached:?}");
    Ok(())
}

fn a_service_without_a_ready_endpoint_refuses() -> Result<()> {
    let mesh = shared::mesh()?;
    let client = mesh.n1.pod(PodSpec::new("empty", "client"))?;
    let server = mesh.n2.pod(PodSpec::new("empty", "server"))?;
    let _serving = server.serve(8080)?;
    let endpoints = [(&server, false, "zone-n2")];
    mesh.bed.manifests().put("empty-service", &service("empty", ["10.96.0.3", "fd96::3"], &endpoints))?;
    mesh.settle(&[&client, &server])?;
    client.dial("10.96.0.3:80", &[])?.refused()?;
    mesh.n1.wait_for_log(&["no ready endpoint", "empty"]).context("the reason is not in the log")?;
    Ok(())
}

/// A dual-stack Service `namespace/web`, port 80 to 8080, with one slice for each family.
pub(crate) fn service(namespace: &str, vips: [&str; 2], endpoints: &[(&Pod, bool, &str)]) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace},
        "spec": {"clusterIP": vips[0], "clusterIPs": vips, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let slice = |family: &str, address: fn(&Pod) -> &str| {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(pod, ready, zone)| json!({"addresses": [address(pod)], "conditions": {"ready": ready}, "zone": zone}))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("web-{}", family.to_lowercase()), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    };
    [service, slice("IPv4", Pod::ipv4), slice("IPv6", Pod::ipv6)].map(|o| o.to_string()).join("\n---\n")
}
