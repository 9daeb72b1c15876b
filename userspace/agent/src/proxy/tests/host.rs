//! Workloads that share the node's network namespace and address.

use http::StatusCode;

use super::{Pair, needs_privileges};
use crate::addr::CgroupId;
use crate::proxy::testing::{Echo, Pod, assert_reset, ping, until};

/// Two of them on the far node, each with an application of its own.
struct Shared {
    pair: Pair,
    host: Pod,
    apps: [Echo; 2],
}

impl Shared {
    async fn new() -> Self {
        let pair = Pair::new().await;
        let host = pair.far.host(&["logs", "metrics"]).await;
        let apps = [Echo::start(host.ip).await, Echo::start(host.ip).await];
        for (app, cgroup) in apps.iter().zip((0..).map(CgroupId)) {
            pair.far.owns_port(cgroup, app.address.port());
        }
        pair.apply_all(&host);
        Self { pair, host, apps }
    }
}

#[tokio::test]
async fn each_port_answers_with_the_identity_of_its_owner() {
    needs_privileges!();
    let Shared { pair, host: _host, apps } = Shared::new().await;
    for (app, name) in apps.iter().zip(["logs", "metrics"]) {
        let mut stream = pair.near.connect(&pair.client, app.address).await;
        ping(&mut stream, name).await;
        let view = pair.near.only_connection().await;
        let expected = format!("spiffe://cluster.local/ns/ns/sa/{name}");
        assert_eq!(view.destination_identity.unwrap().as_str(), expected);
        drop(stream);
        until("both outcomes are written", || pair.is_quiet()).await;
    }
}

#[tokio::test]
async fn who_has_seen_one_identity_does_not_reach_the_other() {
    needs_privileges!();
    let Shared { pair, host, apps: [logs, metrics] } = Shared::new().await;
    let sni = Some(logs.address.port());
    assert_eq!(pair.ask(&host, sni, &logs.address.to_string()).await, Ok(()));
    let other = pair.ask(&host, sni, &metrics.address.to_string()).await;
    assert_eq!(other, Err(StatusCode::SERVICE_UNAVAILABLE));
    assert!(metrics.clients.lock().is_empty());
}

#[tokio::test]
async fn a_port_that_no_workload_owns_gets_no_certificate() {
    needs_privileges!();
    let Shared { pair, host, apps } = Shared::new().await;
    let unowned = Echo::start(host.ip).await;
    assert_reset(pair.near.connect(&pair.client, unowned.address).await).await;
    until("both outcomes are written", || pair.is_quiet()).await;
    assert!(pair.log.only("inbound").contains("no enrolled workload of this network namespace owns port"));
    assert!(unowned.clients.lock().is_empty());
    drop(apps);
}
