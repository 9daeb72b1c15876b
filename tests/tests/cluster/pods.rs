//! Pods as clusters have them: short, many, replaced, rolled, on the node's network, with several containers. What they
//! say is never seen on the link, and none of them fails that would not fail without the mesh.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::cluster::Kubectl;
use signet_testkit::need::Need;
use signet_testkit::process::Process;
use signet_testkit::wait;

use crate::mesh::{self, Meshed, Pair};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    jobs_and_many_pods_whose_first_act_is_to_connect_never_speak_in_clear,
    replaced_rolled_shared_and_host_network_pods_keep_talking_mtls,
);

fn jobs_and_many_pods_whose_first_act_is_to_connect_never_speak_in_clear() -> Result<()> {
    let mesh = mesh::mesh()?;
    let pair = mesh.pair("crowd", true)?;
    let wire = mesh.record()?;
    // Tried once: whoever comes while the pod is being taken up waits.
    let curl = "curl --silent --show-error --fail";
    let connect = format!("exec {curl} {}", pair.url());
    run_job(mesh.kubectl(), "crowd", MANY, BATCH, &connect)?;
    let short = format!("{curl} {} && sleep 2", pair.url());
    run_job(mesh.kubectl(), "short", 6, 6, &short)?;
    let packets = wire.stop()?;
    ensure!(!pair.is_seen(&packets), "a pod spoke in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    forgets_the_dead(&mesh)
}

/// Until every one of its pods has succeeded; one that failed is not replaced.
fn run_job(kubectl: &Kubectl, name: &str, count: usize, at_once: usize, command: &str) -> Result<()> {
    let pod: Value = serde_json::from_str(&shared::pod("crowd", name, "n1", IMAGE, &["sh", "-c", command]))?;
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "crowd"},
        "spec": {
            "completions": count, "parallelism": at_once, "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod["spec"]},
        },
    });
    kubectl.apply(&job.to_string())?;
    let object = format!("job/{name}");
    let done = kubectl.wait("crowd", &object, "condition=Complete", JOB_WITHIN);
    done.with_context(|| kubectl.logs("crowd", &object).unwrap_or_default())
}

/// Nothing of a pod that has ended stays: no entry, no key, no listener.
fn forgets_the_dead(mesh: &Meshed) -> Result<()> {
    mesh.kubectl().run(&["delete", "jobs", "--namespace=crowd", "--all", "--cascade=foreground"])?;
    wait::until("n1 has forgotten the pods that have ended", WITHIN, || {
        let engine = mesh.signet.engine("n1")?;
        for command in ["workloads", "certificates"] {
            let views = engine.signet(&[command])?;
            let dead =
                |view: &&Value| ["crowd-", "short-"].iter().any(|name| view.to_string().contains(name));
            let dead = views.as_array().into_iter().flatten().filter(dead).count();
            ensure!(dead == 0, "{dead} of them are still among the {command}");
        }
        Ok(())
    })
}

fn replaced_rolled_shared_and_host_network_pods_keep_talking_mtls() -> Result<()> {
    let mesh = mesh::mesh()?;
    let pair = mesh.pair("kinds", true)?;
    let wire = mesh.record()?;
    returns_under_its_name(&mesh, &pair)?;
    rolls_under_load(&mesh, &pair)?;
    has_containers_and_neighbours_of_one_account(&mesh, &pair)?;
    shares_the_nodes_network(&mesh, &pair)?;
    let packets = wire.stop()?;
    ensure!(!pair.is_seen(&packets), "a pod spoke in clear");
    ensure!(packets.tls_records() > 0, "no TLS on the link");
    Ok(())
}

/// A StatefulSet's pod that is deleted comes back as another one.
fn returns_under_its_name(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    let template = template("ordinal", &[]);
    apply(
        mesh,
        &json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "ordinal", "namespace": "kinds"},
        "spec": {"serviceName": "ordinal", "replicas": 1, "selector": {"matchLabels": {"app": "ordinal"}}, "template": template}}),
    )?;
    apply(mesh, &service("ordinal"))?;
    let uid = || -> Result<String> {
        let pod = mesh.kubectl().json(&["get", "--namespace=kinds", "pod/ordinal-0"])?;
        Ok(pod["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    };
    mesh.kubectl().wait_ready("kinds", "ordinal-0", WITHIN)?;
    fetch(pair, "ordinal")?;
    let before = uid()?;
    mesh.kubectl().run(&["delete", "--namespace=kinds", "pod/ordinal-0"])?;
    wait::until("the pod is back", WITHIN, || {
        ensure!(uid()? != before, "it is the old one");
        mesh.kubectl().wait_ready("kinds", "ordinal-0", WITHIN)
    })?;
    fetch(pair, "ordinal")?;
    wait::until("n2 has the new one's key alone", WITHIN, || {
        let keys = mesh.signet.engine("n2")?.signet(&["certificates"])?.to_string();
        ensure!(keys.contains(&uid()?) && !keys.contains(&before), "{keys}");
        Ok(())
    })
}

/// Servers that end gracefully lose no request when they are replaced, and with the mesh they lose none either.
fn rolls_under_load(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    let graceful = json!({"preStop": {"sleep": {"seconds": 4}}});
    let mut template = template("rolled", &[("lifecycle", graceful)]);
    template["spec"]["terminationGracePeriodSeconds"] = json!(10);
    apply(
        mesh,
        &json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "rolled", "namespace": "kinds"},
        "spec": {"replicas": 2, "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": {"app": "rolled"}}, "template": template}}),
    )?;
    apply(mesh, &service("rolled"))?;
    let rolled = ["rollout", "status", "--namespace=kinds", "deployment/rolled", "--timeout=60s"];
    mesh.kubectl().run(&rolled)?;
    let url = fetch(pair, "rolled")?;
    let load = format!(
        "ok=0; failed=0; while [ ! -e /tmp/enough ]; do \
         if curl --silent --show-error --fail --max-time 10 --output /dev/null {url}; then ok=$((ok+1)); else failed=$((failed+1)); fi; \
         done; echo ok=$ok failed=$failed"
    );
    let log = tempfile::NamedTempFile::new()?;
    let mut running = Process::start(pair.exec_command("client", &["sh", "-c", &load]), log.path())?;
    mesh.kubectl().run(&["rollout", "restart", "--namespace=kinds", "deployment/rolled"])?;
    mesh.kubectl().run(&rolled)?;
    pair.exec("client", &["touch", "/tmp/enough"])?;
    running.wait(WITHIN)?;
    let said = running.log()?;
    ensure!(said.contains(" failed=0") && !said.contains("ok=0 "), "requests failed: {said}");
    Ok(())
}

/// Both containers of a pod are that pod; two pods of one service account have a key each.
fn has_containers_and_neighbours_of_one_account(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    let mut pod: Value =
        serde_json::from_str(&shared::pod("kinds", "double", "n1", IMAGE, &["sleep", "3600"]))?;
    let containers = pod["spec"]["containers"].as_array_mut().context("a list")?;
    let mut second = containers[0].clone();
    second["name"] = json!("second");
    containers.push(second);
    apply(mesh, &pod)?;
    mesh.kubectl().wait_ready("kinds", "double", WITHIN)?;
    mesh.signet.wait_for_pod("kinds", "double", true)?;
    for container in ["c", "second"] {
        let url = pair.url();
        let argv = [
            "exec",
            "--namespace=kinds",
            "double",
            "-c",
            container,
            "--",
            "curl",
            "--silent",
            "--fail",
            "--max-time",
            "10",
            &url,
        ];
        let said = mesh.kubectl().run(&argv)?;
        ensure!(said == pair.secret(), "{container} got {said:?}");
    }
    let certificates = mesh.signet.engine("n1")?.signet(&["certificates"])?;
    let of_here = |view: &&Value| view.to_string().contains("/kinds/");
    let all: Vec<&Value> = certificates.as_array().into_iter().flatten().filter(of_here).collect();
    let serials: BTreeSet<String> = all.iter().map(|view| view["serial"].to_string()).collect();
    ensure!(all.len() >= 2 && serials.len() == all.len(), "they share a key: {certificates}");
    Ok(())
}

/// A DaemonSet on the node's own network has identities of its own, and is reached over mTLS at the node's address.
fn shares_the_nodes_network(mesh: &Meshed, pair: &Pair<'_>) -> Result<()> {
    let mut template = template("daemon", &[("ports", json!([{"containerPort": HOST_PORT}]))]);
    template["spec"]["hostNetwork"] = json!(true);
    template["spec"]["containers"][0]["command"][2] = json!(serve("kinds", HOST_PORT));
    template["spec"]["containers"][0]["readinessProbe"]["tcpSocket"]["port"] = json!(HOST_PORT);
    apply(
        mesh,
        &json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "daemon", "namespace": "kinds"},
        "spec": {"selector": {"matchLabels": {"app": "daemon"}}, "template": template}}),
    )?;
    mesh.kubectl().run(&["rollout", "status", "--namespace=kinds", "daemonset/daemon", "--timeout=60s"])?;
    let url = format!("http://{}:{HOST_PORT}/kinds", mesh.cluster.nodes()[1].ip());
    pair.fetch(&url)?;
    mesh.signet
        .engine("n2")?
        .wait_for_log(&["direction=\"inbound\"", "dst.workload=\"daemon-", "dst.identity="])
        .map(drop)
}

/// Until it is answered once; then its address.
fn fetch(pair: &Pair<'_>, service: &str) -> Result<String> {
    let url = format!("http://{service}.kinds.svc.cluster.local/kinds");
    pair.fetch(&url)?;
    Ok(url)
}

fn apply(mesh: &Meshed, object: &Value) -> Result<()> {
    mesh.kubectl().apply(&object.to_string())
}

/// A server on n2 that answers with the namespace's secret.
fn template(app: &str, more: &[(&str, Value)]) -> Value {
    let command = serve("kinds", 8080);
    let pod: Value =
        serde_json::from_str(&shared::pod("kinds", app, "n2", IMAGE, &["sh", "-c", &command])).expect("JSON");
    let mut spec = pod["spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("restartPolicy");
        spec.remove("nodeName");
        spec.insert("nodeSelector".into(), json!({"kubernetes.io/hostname": "n2"}));
    }
    let container = &mut spec["containers"][0];
    container["readinessProbe"] = json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1});
    for (field, value) in more {
        container[*field] = value.clone();
    }
    json!({"metadata": {"labels": {"app": app}}, "spec": spec})
}

fn serve(namespace: &str, port: u16) -> String {
    let secret = mesh::secret(namespace);
    format!("mkdir /www && printf {secret} >/www/{namespace} && exec httpd -f -p {port} -h /www")
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "kinds"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

const IMAGE: &str = "signet-workload";
/// Pods that connect first of all, and how many at a time: a node has addresses for 250.
const MANY: usize = 200;
const BATCH: usize = 20;
const JOB_WITHIN: std::time::Duration = std::time::Duration::from_secs(420);
const HOST_PORT: u16 = 18080;
