//! What an API server with 100,000 pods costs this node: the source and the view together, and one change among them.
//!
//! Anonymous memory that stays is the promise and asserted; the server is in this process, but makes its pages one by
//! one. It has a process to itself, since pages of other tests would count too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Shared};
use axum::http::Uri;
use axum::response::Response;
use serde_json::{Value, json};
use signet_agent::config::SameNode;
use signet_agent::discovery::{DiscoveryOptions, Kubernetes, Origin};
use signet_agent::drain::Drain;
use signet_agent::footprint::{Footprint, Memory};
use signet_agent::state::{Event, State};
use signet_agent::telemetry::Registry;
use signet_identity::TrustDomain;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn a_hundred_thousand_pods_cost_at_most_60_mib_and_a_change_one_event() {
    let (server, address) = Server::start().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, kubeconfig_for(&address)).expect("it can be written");
    let source =
        Kubernetes::open(Some(&kubeconfig), options(), &mut Registry::default()).await.expect("a client");
    let (tx, mut events) = mpsc::channel(1024);
    let (_drain, watch) = Drain::new();
    let state = State::new("istio-system");
    let before = settled_bytes();
    tokio::spawn(source.run(tx, watch));
    while next(&mut events, &state).await != Event::Synced {}
    let grown = settled_bytes() - before;
    println!("{PODS} pods: {} MiB, {} bytes each", grown >> 20, grown / u64::from(PODS));
    assert_eq!(state.workloads().len(), PODS as usize);

    let mut moved = pod(77);
    moved["status"]["podIP"] = "10.255.0.1".into();
    server.say("/api/v1/pods", &json!({"type": "MODIFIED", "object": moved})).await;
    let event = next(&mut events, &state).await;
    assert!(
        matches!(&event, Event::Workload(w) if w.addresses[..] == ["10.255.0.1".parse::<std::net::IpAddr>().unwrap()])
    );
    assert!(events.try_recv().is_err(), "one change, one event");
    assert!(grown <= 60 << 20, "{grown} bytes");
}

async fn next(events: &mut mpsc::Receiver<Event>, state: &State) -> Event {
    let event =
        tokio::time::timeout(DEADLINE, events.recv()).await.expect("an event").expect("the source runs");
    state.apply(&event);
    event
}

/// The test's end of a watch.
type Open = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// An API server that makes its pods up, page by page.
#[derive(Clone, Default)]
struct Server {
    watches: Arc<Mutex<HashMap<String, Open>>>,
}

impl Server {
    async fn start() -> (Self, String) {
        let server = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let router = axum::Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (server, address)
    }

    /// Says something on a watch, once there is one.
    async fn say(&self, path: &str, event: &Value) {
        loop {
            let watch = self.watches.lock().await.get(path).cloned();
            match watch {
                Some(watch) => {
                    return watch.send(Ok(Bytes::from(format!("{event}\n")))).await.expect("it is open");
                }
                None => tokio::task::yield_now().await,
            }
        }
    }
}

async fn answer(
    Shared(server): Shared<Server>,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let of = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    if of("watch") == "true" {
        let (tx, rx) = mpsc::channel(16);
        server.watches.lock().await.insert(uri.path().to_owned(), tx);
        return Response::new(Body::from_stream(ReceiverStream::new(rx)));
    }
    let first: u32 = of("continue").parse().unwrap_or(0);
    let end = (first + of("limit").parse::<u32>().unwrap_or(u32::MAX)).min(PODS);
    let (items, more): (Vec<Value>, String) = match uri.path() {
        "/api/v1/pods" => ((first..end).map(pod).collect(), more(end)),
        "/api/v1/namespaces" => ((0..NAMESPACES).map(namespace).collect(), String::new()),
        _ => (Vec::new(), String::new()),
    };
    let metadata = json!({"resourceVersion": "1", "continue": more});
    Response::new(Body::from(
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string(),
    ))
}

fn more(end: u32) -> String {
    if end < PODS { end.to_string() } else { String::new() }
}

fn namespace(i: u32) -> Value {
    json!({"metadata": {"name": format!("ns-{i}"), "resourceVersion": "1", "labels": {"signet.dev/mode": "enabled"}}})
}

fn pod(i: u32) -> Value {
    let deployment = i % DEPLOYMENTS;
    json!({
        "metadata": {
            "name": format!("app-{deployment}-7d4b9c6f5d-{i:05x}"), "namespace": format!("ns-{}", deployment % NAMESPACES),
            "uid": format!("{i:08x}-cafe-4bad-8bad-0123456789ab"), "resourceVersion": "1",
            "labels": {
                "app": format!("app-{deployment}"), "version": "v1", "pod-template-hash": format!("{deployment:010x}"),
                "app.kubernetes.io/managed-by": "Helm",
            },
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:conditions": {}}}}],
        },
        "spec": {
            "nodeName": format!("node-{}", i % 1000), "serviceAccountName": format!("app-{deployment}"),
            "containers": [{"name": "app", "image": "app", "env": [{"name": "A", "value": "b"}],
                "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": format!("10.{}.{}.{}", i >> 16, (i >> 8) & 255, i & 255),
            "podIPs": [], "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn kubeconfig_for(address: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": address}}], "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}

fn options() -> DiscoveryOptions {
    DiscoveryOptions {
        trust_domain: TrustDomain::parse("cluster.local").expect("a legal name"),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        root_namespace: "istio-system".into(),
        origin: Origin::Cluster { node: "node-1".into() },
        same_node: SameNode::Direct,
        node: "n1".into(),
        zone: "".into(),
    }
}

/// Anonymous memory, once what loading took has been given back, as an engine does.
fn settled_bytes() -> u64 {
    let mut footprint = Footprint::default();
    (0..4).for_each(|_| footprint.heartbeat());
    Memory::now().expect("every Linux process has it").anonymous
}

const PODS: u32 = 100_000;
const DEPLOYMENTS: u32 = 2_000;
const NAMESPACES: u32 = 100;
/// Unoptimised, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
