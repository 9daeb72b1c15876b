//! What the watch tells becomes what may be signed; what it does not tell yet is asked for.

use serde_json::{Value, json};
use signet_apiserver::testing::{Server, Watching};

use super::*;
use crate::inventory::BoundPod;

struct Watched {
    server: Server,
    reader: Reader,
    watch: Watching,
}

fn pod(name: &str, node: &str, phase: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": "11"},
        "spec": {"nodeName": node, "serviceAccountName": "web"}, "status": {"phase": phase},
    })
}

/// The watch has listed `pods`.
async fn watched(pods: &[Value]) -> Watched {
    let mut server = Server::start().await;
    let api_server = server.client("signet-ca");
    let health = Health::register(&mut prometheus_client::registry::Registry::default(), "x");
    let (source, reader) = Pods::open(&api_server, &health);
    tokio::spawn(source.run());
    server.next().await.list(pods, "");
    let watch = server.next().await.watch(&[]);
    Watched { server, reader, watch }
}

impl Watched {
    async fn tell(&self, kind: &str, pod: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": pod}));
        self.watch.send(Ok(line.into())).await.unwrap();
    }

    async fn until(&self, node: &str, there: bool) {
        let mut known = self.reader.known.clone();
        known.wait_for(|inventory| inventory.has(node, "shop", "web") == there).await.unwrap();
    }
}

fn bound(uid: &str) -> BoundPod {
    BoundPod { namespace: "shop".into(), name: "a".into(), uid: uid.into() }
}

#[tokio::test]
async fn a_pod_counts_from_its_binding_to_its_end() {
    let watched = watched(&[]).await;
    watched.tell("ADDED", &pod("a", "", "Pending")).await;
    watched.tell("MODIFIED", &pod("a", "n1", "Pending")).await;
    watched.until("n1", true).await;
    assert!(watched.reader.knows(&bound("uid-a")) && !watched.reader.knows(&bound("uid-b")));
    watched.tell("MODIFIED", &pod("a", "n1", "Succeeded")).await;
    watched.until("n1", false).await;
    assert!(!watched.reader.knows(&bound("uid-a")));
}

#[tokio::test]
async fn two_pods_of_an_account_count_until_the_last_is_gone() {
    let watched = watched(&[pod("a", "n1", "Running"), pod("b", "n1", "Running")]).await;
    watched.tell("DELETED", &pod("a", "n1", "Running")).await;
    watched.tell("ADDED", &pod("c", "n2", "Running")).await;
    watched.until("n2", true).await;
    watched.until("n1", true).await;
    watched.tell("DELETED", &pod("b", "n1", "Running")).await;
    watched.until("n1", false).await;
}

#[tokio::test]
async fn what_a_new_list_does_not_have_is_gone() {
    let mut watched = watched(&[pod("a", "n1", "Running")]).await;
    watched.until("n1", true).await;
    watched.tell("ERROR", &json!({"kind": "Status", "code": 410, "message": "too old"})).await;
    watched.server.next().await.list(&[pod("b", "n2", "Running")], "");
    watched.until("n1", false).await;
    watched.until("n2", true).await;
}

#[tokio::test]
async fn a_pod_that_the_watch_does_not_know_yet_is_asked_for_once() {
    let mut watched = watched(&[]).await;
    let reader = watched.reader.clone();
    let found = tokio::spawn(async move { reader.finds("n1", "shop", "web").await });
    let asked = watched.server.next().await;
    assert_eq!(
        (asked.path.as_str(), asked.of("fieldSelector")),
        ("/api/v1/namespaces/shop/pods", "spec.nodeName=n1")
    );
    asked.list(&[pod("a", "n1", "Pending")], "");
    assert_eq!(found.await.unwrap(), Ok(true));
}

#[tokio::test]
async fn a_pod_that_has_finished_or_is_elsewhere_is_not_found_by_asking() {
    let mut watched = watched(&[]).await;
    for (pods, found) in [
        (vec![pod("a", "n1", "Failed"), pod("b", "n2", "Running")], false),
        (vec![pod("a", "n1", "Running")], true),
    ] {
        let reader = watched.reader.clone();
        let asking = tokio::spawn(async move { reader.finds("n1", "shop", "web").await });
        watched.server.next().await.list(&pods, "");
        assert_eq!(asking.await.unwrap(), Ok(found));
    }
}

#[tokio::test]
async fn where_nobody_can_say_the_answer_is_neither_yes_nor_no() {
    let mut watched = watched(&[]).await;
    let reader = watched.reader.clone();
    let found = tokio::spawn(async move { reader.finds("n1", "shop", "web").await });
    watched.server.next().await.refuse(503, "not now");
    assert!(found.await.unwrap().is_err());
}

#[tokio::test]
async fn a_name_that_would_change_the_question_is_not_asked() {
    let watched = watched(&[]).await;
    for (node, namespace) in [("n1,x=y", "shop"), ("n1", "shop/../x"), ("", "shop"), ("n1", "..")] {
        assert_eq!(watched.reader.finds(node, namespace, "web").await, Ok(false));
    }
}

#[tokio::test]
async fn the_node_of_a_pod_is_that_of_its_uid() {
    let mut watched = watched(&[pod("a", "n1", "Running")]).await;
    watched.until("n1", true).await;
    assert_eq!(watched.reader.node_of(&bound("uid-a")).await, Ok(Some("n1".into())));
    let reader = watched.reader.clone();
    let other = tokio::spawn(async move { reader.node_of(&bound("uid-other")).await });
    let asked = watched.server.next().await;
    assert_eq!(asked.path, "/api/v1/namespaces/shop/pods/a");
    asked.object(&pod("a", "n1", "Running"));
    assert_eq!(other.await.unwrap(), Ok(None));
}
