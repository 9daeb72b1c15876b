//! Services as a cluster has them: which endpoint a client of the mesh gets is what kube-proxy would give it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use signet_testkit::need::Need;
use signet_testkit::process::stdout;
use signet_testkit::wait;

use crate::mesh::{self, Meshed};
use crate::shared::{self, WITHIN};

pub(crate) const TESTS: &[crate::Test] = crate::tests!(&[Need::Cluster, Need::Engine] =>
    services_lead_where_the_cluster_says,
);

/// Two servers on n2, whose port of the same name has another number, and one on n1; a client on n1.
fn services_lead_where_the_cluster_says() -> Result<()> {
    let mesh = mesh::mesh()?;
    mesh.namespace(NAMESPACE, true)?;
    for (name, node, port) in [("near", "n1", 8080), ("far", "n2", 8080), ("farther", "n2", 8081)] {
        mesh.kubectl().apply(&server(name, node, port, false).to_string())?;
    }
    mesh.kubectl().apply(&server("unready", "n2", 8080, true).to_string())?;
    mesh.kubectl().apply(&shared::pod(NAMESPACE, "client", "n1", IMAGE, &["sleep", "3600"]))?;
    for pod in ["near", "far", "farther", "client"] {
        mesh.kubectl().wait_ready(NAMESPACE, pod, WITHIN)?;
        mesh.signet.wait_for_pod(NAMESPACE, pod, true)?;
    }
    mesh.kubectl().wait(NAMESPACE, "pod/unready", "jsonpath={.status.podIP}", WITHIN)?;
    mesh.signet.wait_for_pod(NAMESPACE, "unready", true)?;
    by_policy_and_hints(&mesh)?;
    by_name_port_and_affinity(&mesh)?;
    from_outside(&mesh)?;
    from_inside(&mesh)?;
    to_outside(&mesh)
}

fn by_policy_and_hints(mesh: &Meshed) -> Result<()> {
    let local =
        |name: &str, on: &str| service(name, json!({"on": on}), json!({"internalTrafficPolicy": "Local"}));
    apply(mesh, &local("local", "n1"))?;
    answers(mesh, "local", &["near"])?;
    apply(mesh, &local("nowhere", "n2"))?;
    refuses(mesh, "nowhere")?;
    // Meant for the other zone each, which is not what the nearest would be.
    let crossed = json!({"metadata": {"name": "crossed", "namespace": NAMESPACE}, "apiVersion": "v1", "kind": "Service",
        "spec": {"ports": [{"name": "http", "port": 80}]}});
    let endpoint = |pod: &str, zone: &str, hint: &str| -> Result<Value> {
        Ok(json!({"addresses": [address(mesh, pod)?], "conditions": {"ready": true}, "zone": zone,
            "hints": {"forZones": [{"name": hint}]}}))
    };
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "crossed-1", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "crossed"}},
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [endpoint("near", "zone-n1", "zone-n2")?, endpoint("far", "zone-n2", "zone-n1")?]});
    apply(mesh, &crossed)?;
    apply(mesh, &slice)?;
    answers(mesh, "crossed", &["far"])
}

fn by_name_port_and_affinity(mesh: &Meshed) -> Result<()> {
    let on_n2 = json!({"on": "n2"});
    apply(mesh, &service("named", on_n2.clone(), json!({})))?;
    answers(mesh, "named", &["far", "farther"])?;
    apply(mesh, &service("sticky", on_n2, json!({"sessionAffinity": "ClientIP"})))?;
    let seen = asked(mesh, "sticky")?;
    ensure!(seen.len() == 1, "with affinity it got {seen:?}");
    apply(mesh, &service("headless", json!({"app": "far"}), json!({"clusterIP": "None"})))?;
    let url = format!("http://headless.{NAMESPACE}.svc.cluster.local:8080/");
    wait::until("a headless Service's name leads to its pod", WITHIN, || {
        let said = mesh.kubectl().exec(
            NAMESPACE,
            "client",
            &["curl", "--silent", "--fail", "--max-time", "10", &url],
        )?;
        ensure!(said == "far", "it got {said:?}");
        Ok(())
    })?;
    let unready = json!({"app": "unready"});
    apply(mesh, &service("published", unready.clone(), json!({"publishNotReadyAddresses": true})))?;
    answers(mesh, "published", &["unready"])?;
    apply(mesh, &service("unpublished", unready, json!({})))?;
    refuses(mesh, "unpublished")
}

/// Somebody without an identity, which PERMISSIVE lets in.
fn from_outside(mesh: &Meshed) -> Result<()> {
    let more = json!({"type": "LoadBalancer", "externalIPs": [EXTERNAL]});
    apply(mesh, &service("balanced", json!({"app": "far"}), more))?;
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}).to_string();
    let patch =
        ["patch", "service/balanced", "--namespace", NAMESPACE, "--subresource=status", "--type=merge"];
    mesh.kubectl().run(&[&patch[..], &["--patch", &ingress]].concat())?;
    let port = node_port(mesh)?;
    let through = &mesh.cluster.nodes()[0].ip();
    let route = mesh
        .cluster
        .outside(&["ip", "route", "replace", &format!("{BALANCER}/32"), "via", through])?
        .output()?;
    stdout(&route)?;
    let of_its_node = format!("http://{}:{HOST_PORT}/", mesh.cluster.nodes()[1].ip());
    for url in [format!("http://{through}:{port}/"), format!("http://{BALANCER}/"), of_its_node] {
        wait::until(&format!("a client outside gets {url}"), WITHIN, || {
            let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url];
            let said = stdout(&mesh.cluster.outside(&curl)?.output()?)?;
            ensure!(said == "far", "it got {said:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// By all that kube-proxy answers for on every node beside the VIP, and by the port of its own node that the CNI
/// translates, in the mesh: STRICT refuses what is not.
fn from_inside(mesh: &Meshed) -> Result<()> {
    mesh.strict(NAMESPACE)?;
    let port = node_port(mesh)?;
    let of_nodes = mesh.cluster.nodes().iter().map(|node| format!("{}:{port}", node.ip()));
    let of_its_node = format!("{}:{HOST_PORT}", mesh.cluster.nodes()[1].ip());
    for authority in of_nodes.chain([BALANCER.to_owned(), EXTERNAL.to_owned(), of_its_node]) {
        wait::until(&format!("the client gets {authority}"), WITHIN, || {
            let url = format!("http://{authority}/");
            let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url];
            let said = mesh.kubectl().exec(NAMESPACE, "client", &curl)?;
            ensure!(said == "far", "it got {said:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn node_port(mesh: &Meshed) -> Result<u64> {
    let of = mesh.kubectl().json(&["get", "--namespace", NAMESPACE, "service/balanced"])?;
    of["spec"]["ports"][0]["nodePort"].as_u64().context("a node port")
}

/// By a name that is nothing but an alias, and by an address that nobody in the cluster has.
fn to_outside(mesh: &Meshed) -> Result<()> {
    let alias = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias", "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"}});
    apply(mesh, &alias)?;
    for url in
        [&format!("https://alias.{NAMESPACE}.svc.cluster.local/version"), "https://10.77.0.1:6443/version"]
    {
        wait::until(&format!("the client gets {url}"), WITHIN, || {
            let curl = ["curl", "--silent", "--insecure", "--fail", "--max-time", "5", url];
            let said = mesh.kubectl().exec(NAMESPACE, "client", &curl)?;
            ensure!(said.contains("gitVersion"), "it got {said:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn apply(mesh: &Meshed, object: &Value) -> Result<()> {
    mesh.kubectl().apply(&object.to_string())
}

/// Until the answers to many requests are those of the servers, each of them, and of no other.
fn answers(mesh: &Meshed, service: &str, servers: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> = servers.iter().map(|&name| name.to_owned()).collect();
    wait::until(&format!("{service} leads to {servers:?}"), WITHIN, || {
        let seen = asked(mesh, service)?;
        ensure!(seen == wanted, "it led to {seen:?}");
        Ok(())
    })
}

fn refuses(mesh: &Meshed, service: &str) -> Result<()> {
    wait::until(&format!("{service} is known to the engine"), WITHIN, || {
        let said = asked(mesh, service);
        ensure!(said.is_err(), "it led to {said:?}");
        mesh.signet
            .engine("n1")?
            .wait_for_log(&[&format!("Service {service}.{NAMESPACE}"), "has no ready endpoint"])
    })
    .map(drop)
}

/// Who answers, where every one of twelve requests is answered.
fn asked(mesh: &Meshed, service: &str) -> Result<BTreeSet<String>> {
    let object = mesh.kubectl().json(&["get", "--namespace", NAMESPACE, &format!("service/{service}")])?;
    let vip = object["spec"]["clusterIP"].as_str().context("an address")?;
    let ask = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do curl --silent --show-error --fail --max-time 10 http://{vip}/ || exit 1; echo; done"
    );
    let said = mesh.kubectl().exec(NAMESPACE, "client", &["sh", "-c", &ask])?;
    Ok(said.lines().map(str::to_owned).collect())
}

fn address(mesh: &Meshed, pod: &str) -> Result<String> {
    let pod = mesh.kubectl().json(&["get", "--namespace", NAMESPACE, "pod", pod])?;
    Ok(pod["status"]["podIP"].as_str().context("an address")?.to_owned())
}

/// A server that answers with its name.
fn server(name: &str, node: &str, port: u16, unready: bool) -> Value {
    let serve = format!("mkdir /www && printf {name} >/www/index.html && exec httpd -f -p {port} -h /www");
    let mut pod: Value =
        serde_json::from_str(&shared::pod(NAMESPACE, name, node, IMAGE, &["sh", "-c", &serve]))
            .expect("JSON");
    pod["metadata"]["labels"] = json!({"app": name, "on": if unready { "nowhere" } else { node }});
    pod["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": port}]);
    if name == "far" {
        pod["spec"]["containers"][0]["ports"][0]["hostPort"] = json!(HOST_PORT);
    }
    if unready {
        pod["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["false"]}});
    }
    pod
}

/// A Service of a named port.
fn service(name: &str, selector: Value, more: Value) -> Value {
    let mut spec =
        json!({"selector": selector, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
}

const NAMESPACE: &str = "serving";
const IMAGE: &str = "signet-workload";
/// Of `far`, at the addresses of its node.
const HOST_PORT: u16 = 8070;
/// Of no range of the cluster.
const BALANCER: &str = "192.0.2.80";
const EXTERNAL: &str = "192.0.2.81";
