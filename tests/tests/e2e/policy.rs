//! Istio's L4 policies, from the outside: who is let in, who is not, and how fast a change takes hold.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use signet_testkit::mesh::Mesh;
use signet_testkit::need::Need;
use signet_testkit::pod::{Enrolment, Pod, PodSpec};
use signet_testkit::probe::Report;
use signet_testkit::process::{Process, stdout};
use signet_testkit::wait;

use crate::connect::{Pair, allow};
use crate::{Test, shared};

pub(crate) const TESTS: &[Test] = crate::tests!(&[Need::Engine] =>
    only_the_allowed_principal_gets_in,
    a_deny_wins_over_an_allow,
    namespaces_addresses_and_ports_are_told_apart,
    a_dry_run_is_logged_and_not_enforced,
    a_policy_change_closes_running_connections,
    strict_refuses_clear_text_and_permissive_serves_it,
    a_port_may_be_permissive_on_its_own,
);

fn only_the_allowed_principal_gets_in() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "principal")?;
    mesh.apply("principal", &allow("principal", "server", &scene.client.spiffe_id()))?;
    scene.client.dial(&scene.to(8080), &[])?.answered()?;
    scene.other.dial(&scene.to(8080), &[])?.refused()?;
    // The node that was refused says which policy it was; so does the one that refused.
    mesh.n2.wait_for_log(&["principal/principal-server", "direction=\"inbound\""])?;
    Ok(())
}

fn a_deny_wins_over_an_allow() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "deny")?;
    let rule = "rules: [{from: [{source: {principals: [cluster.local/ns/deny/sa/other]}}]}]";
    mesh.apply("deny-allow", &policy("deny", "allow-all", "action: ALLOW, rules: [{}]"))?;
    mesh.apply("deny-deny", &policy("deny", "deny-other", &format!("action: DENY, {rule}")))?;
    scene.client.dial(&scene.to(8080), &[])?.answered()?;
    scene.other.dial(&scene.to(8080), &[])?.refused()?;
    mesh.n2.wait_for_log(&["deny/deny-other"])?;
    Ok(())
}

fn namespaces_addresses_and_ports_are_told_apart() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "attributes")?;
    let _second = scene.server.serve(9090)?;
    let neighbour = mesh.n1.pod(PodSpec::new("attributes-neighbour", "client"))?;
    mesh.settle(&[&neighbour])?;
    let by_namespace =
        "{from: [{source: {namespaces: [attributes-neighbour]}}], to: [{operation: {ports: ['9090']}}]}";
    let by_address = format!(
        "{{from: [{{source: {{ipBlocks: ['{}/32']}}}}], to: [{{operation: {{notPorts: ['9090']}}}}]}}",
        scene.client.ipv4()
    );
    mesh.apply(
        "attributes",
        &policy("attributes", "mixed", &format!("rules: [{by_namespace}, {by_address}]")),
    )?;
    neighbour.dial(&scene.to(9090), &[])?.answered().context("the namespace, on the port")?;
    neighbour.dial(&scene.to(8080), &[])?.refused().context("the namespace, on another port")?;
    scene.client.dial(&scene.to(8080), &[])?.answered().context("the address, on another port")?;
    scene.client.dial(&scene.to(9090), &[])?.refused().context("the address, on the port")?;
    scene.other.dial(&scene.to(8080), &[])?.refused().context("another address")?;
    Ok(())
}

fn a_dry_run_is_logged_and_not_enforced() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "dryrun")?;
    mesh.apply(
        "dryrun",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: dryrun-deny\n  namespace: dryrun\n  \
         annotations: {istio.io/dry-run: 'true'}\nspec: {action: DENY, rules: [{}]}\n",
    )?;
    scene.client.dial(&scene.to(8080), &[])?.answered()?;
    mesh.n2.wait_for_log(&["would be denied", "dryrun/dryrun-deny"])?;
    Ok(())
}

fn a_policy_change_closes_running_connections() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "live")?;
    let mut running = scene.client.hold(&scene.to(8080))?;
    mesh.apply("live", &policy("live", "live-deny", "action: DENY, rules: [{}]"))?;
    // A generous bound for a busy machine; what is promised is that it ends at all, without a restart of anything.
    running.wait_for_line(&["ended"], Duration::from_secs(10))?;
    running.wait(Duration::from_secs(5))?;
    mesh.n2.wait_for_log(&["live/live-deny"])?;
    mesh.bed.manifests().remove("live")?;
    wait::until("it is let in again", Duration::from_secs(10), || {
        scene.client.dial(&scene.to(8080), &[])?.answered().map(drop)
    })
}

fn strict_refuses_clear_text_and_permissive_serves_it() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "strict")?;
    let outside = mesh.n1.pod(PodSpec::new("strict", "outside").enrolment(Enrolment::OptOut))?;
    mesh.settle(&[&outside])?;
    let served = outside.dial(&scene.to(8080), &[])?;
    let (_, greeting) = served.answered().context("PERMISSIVE is the default")?;
    ensure!(greeting.peer.ip().to_string() == outside.ipv4(), "the server saw {greeting:?}");
    ensure!(greeting.local.to_string() == scene.to(8080), "the server saw {greeting:?}");
    mesh.apply("strict", &peer_authentication("strict", "mtls: {mode: STRICT}"))?;
    outside.dial(&scene.to(8080), &[])?.refused().context("STRICT")?;
    scene.client.dial(&scene.to(8080), &[])?.answered().context("mTLS under STRICT")?;
    mesh.n2.wait_for_log(&["PeerAuthentication strict/strict"])?;
    // The server's own node is no exception.
    let probe = signet_testkit::binaries::path("signet-probe")?;
    let argv = [probe.to_str().context("UTF-8")?, "dial", &scene.to(8080)];
    let report: Report = serde_json::from_str(&stdout(&mesh.n2.host().place("stranger")?.exec(&argv)?)?)?;
    report.refused().context("a process of the server's node")?;
    Ok(())
}

fn a_port_may_be_permissive_on_its_own() -> Result<()> {
    let mesh = shared::mesh()?;
    let scene = Scene::start(&mesh, "port")?;
    let _second = scene.server.serve(9090)?;
    let outside = mesh.n1.pod(PodSpec::new("port", "outside").enrolment(Enrolment::OptOut))?;
    mesh.settle(&[&outside])?;
    let spec = "selector: {matchLabels: {app: server}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}";
    mesh.apply("port", &peer_authentication("port", spec))?;
    outside.dial(&scene.to(9090), &[])?.answered()?;
    outside.dial(&scene.to(8080), &[])?.refused()?;
    Ok(())
}

/// A client, another client, and a server that listens on 8080.
struct Scene {
    client: Pod,
    server: Pod,
    other: Pod,
    _serving: Process,
}

impl Scene {
    fn start(mesh: &Mesh, namespace: &str) -> Result<Self> {
        let other = mesh.n1.pod(PodSpec::new(namespace, "other"))?;
        mesh.settle(&[&other])?;
        let (client, server, serving) = Pair::start(mesh, namespace)?.into_parts();
        Ok(Self { client, server, other, _serving: serving })
    }

    fn to(&self, port: u16) -> String {
        format!("{}:{port}", self.server.ipv4())
    }
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{selector: {{matchLabels: {{app: server}}}}, {spec}}}\n"
    )
}

pub(crate) fn peer_authentication(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {namespace}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}
