//! The whole source: what is asked first, when it is synced, and what a new list takes back.

use super::*;

struct Source {
    server: Server,
    events: mpsc::Receiver<Event>,
    /// Watches that stay open.
    watches: Vec<Watching>,
    _drain: crate::drain::Drain,
}

/// What there is at its path, of the name it asks for.
fn list_of(asked: Asked, objects: &HashMap<&str, Vec<Value>>) {
    let mut items = objects.get(asked.path.as_str()).cloned().unwrap_or_default();
    if let Some(name) = asked.of("fieldSelector").strip_prefix("metadata.name=") {
        items.retain(|item| item["metadata"]["name"] == name);
    }
    asked.list(&items, "");
}

async fn source() -> Source {
    let server = Server::start().await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"{}\"}}}}]\n\
         users: [{{name: c, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: c}}}}]\n",
        server.address
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let options = DiscoveryOptions { origin: Origin::Cluster { node: "n1".into() }, ..testing::options() };
    let source = Kubernetes::open(Some(&kubeconfig), options, &mut Registry::default()).await.unwrap();
    let (tx, events) = mpsc::channel(64);
    let (drain, watch) = crate::drain::Drain::new();
    tokio::spawn(source.run(tx, watch));
    Source { server, events, watches: Vec::new(), _drain: drain }
}

impl Source {
    /// Answers until somebody lists `path`: lists with nothing but `objects`, watches with silence.
    async fn until_list_of(&mut self, path: &str, objects: &HashMap<&str, Vec<Value>>) -> Asked {
        loop {
            let asked = self.server.next().await;
            if asked.is_watch() {
                self.watches.push(asked.watch(&[]));
            } else if asked.path == path {
                return asked;
            } else {
                list_of(asked, objects);
            }
        }
    }

    async fn event(&mut self) -> Event {
        tokio::time::timeout(DEADLINE, self.events.recv()).await.expect("an event").unwrap()
    }
}

fn namespaces() -> HashMap<&'static str, Vec<Value>> {
    let shop = json!({"metadata": {"name": "shop", "resourceVersion": "1", "labels": {"signet.dev/mode": "enabled"}}});
    [("/api/v1/namespaces", vec![shop])].into()
}

fn definition() -> Value {
    json!({
        "metadata": {"name": "authorizationpolicies.security.istio.io", "resourceVersion": "1"},
        "spec": {"versions": [{"name": "v1", "served": true}]},
        "status": {"conditions": [{"type": "Established", "status": "True"}]},
    })
}

#[tokio::test]
async fn pods_are_not_asked_for_before_their_namespaces_and_policies_are_known() {
    let mut source = source().await;
    let mut served = namespaces();
    served.insert("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", vec![definition()]);
    let policies = "/apis/security.istio.io/v1/authorizationpolicies";
    let asked = source.until_list_of(policies, &served).await;
    // Namespaces, Nodes, ServiceCIDRs and three CRDs are listed once they are watched.
    while source.watches.len() < 6 {
        let other = source.server.next().await;
        assert_ne!(other.path, "/api/v1/pods");
        if other.is_watch() { source.watches.push(other.watch(&[])) } else { list_of(other, &served) }
    }
    assert!(source.server.is_idle());
    asked.list(&[], "");
    source.until_list_of("/api/v1/pods", &served).await.list(&[pod("a", "2")], "");
    assert!(matches!(source.event().await, Event::Workload(w) if w.enrolled && &*w.name == "a"));
}

#[tokio::test]
async fn synced_waits_for_every_kind() {
    let mut source = source().await;
    let services = source.until_list_of("/api/v1/services", &namespaces()).await;
    let slices = source.until_list_of("/apis/discovery.k8s.io/v1/endpointslices", &namespaces()).await;
    slices.list(&[], "");
    assert!(source.events.try_recv().is_err());
    services.list(&[], "");
    loop {
        tokio::select! {
            event = source.events.recv() => {
                assert_eq!(event, Some(Event::Synced));
                return;
            }
            asked = source.server.next() => source.watches.push(asked.watch(&[])),
        }
    }
}

#[tokio::test]
async fn what_a_new_list_does_not_have_is_gone() {
    let mut source = source().await;
    let pods = source.until_list_of("/api/v1/pods", &namespaces()).await;
    pods.list(&[pod("a", "2"), pod("b", "3")], "");
    let watch = loop {
        let asked = source.server.next().await;
        match (asked.path.as_str(), asked.is_watch()) {
            ("/api/v1/pods", true) => break asked,
            (_, true) => source.watches.push(asked.watch(&[])),
            (_, false) => asked.list(&[], ""),
        }
    };
    watch.refuse(410, "Expired");
    source.until_list_of("/api/v1/pods", &namespaces()).await.list(&[pod("b", "3")], "");
    loop {
        match source.event().await {
            Event::WorkloadGone(uid) => {
                assert!(uid.as_str().ends_with("/a/a"), "{uid}");
                return;
            }
            Event::Workload(_) | Event::Synced => {}
            other => panic!("{other:?}"),
        }
    }
}

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);
