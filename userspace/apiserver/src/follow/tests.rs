//! One kind, followed through what can happen to a list and a watch.

use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::health::Health;
use crate::testing::Server;
use crate::trim::Keep;

#[derive(Debug)]
struct Pods;

impl Kind for Pods {
    const RESOURCE: Resource = Resource { group: "", kind: "Pod", plural: "pods" };
    const KEEP: Keep = Keep::All;
}

struct Followed {
    server: Server,
    heard: mpsc::Receiver<((), Heard)>,
    health: Health,
    _task: AbortOnDropHandle<()>,
}

async fn pods() -> Followed {
    let server = Server::start().await;
    let (to, heard) = mpsc::channel(64);
    let health = Health::register(&mut Registry::default(), "signet_source");
    let follower = Follower {
        api_server: server.client("signetd"),
        resource: Pods::RESOURCE,
        version: "v1".into(),
        name: None,
        tag: (),
        to,
        health: health.kind("Pod"),
    };
    let task = AbortOnDropHandle::new(tokio::spawn(follower.run::<Pods>()));
    Followed { server, heard, health, _task: task }
}

impl Followed {
    async fn hears(&mut self, expected: &str) {
        let ((), heard) =
            tokio::time::timeout(LIST_TIMEOUT, self.heard.recv()).await.expect("something").unwrap();
        let name = |value: &Value| value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let text = match heard {
            Heard::Listing => "listing".to_owned(),
            Heard::Put(value) => format!("put {}", name(&value)),
            Heard::Gone(value) => format!("gone {}", name(&value)),
            Heard::Listed => "listed".to_owned(),
        };
        assert_eq!(text, expected);
    }

    async fn listed(&mut self) {
        self.server.next().await.list(&[], "");
        self.hears("listing").await;
        self.hears("listed").await;
    }
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(version: &str) -> Value {
    event("BOOKMARK", json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version}}))
}

fn pod(name: &str, version: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version}})
}

#[tokio::test]
async fn a_list_is_read_page_by_page_to_its_end() {
    let mut followed = pods().await;
    let first = followed.server.next().await;
    assert_eq!((first.path.as_str(), first.of("limit"), first.of("continue")), ("/api/v1/pods", "500", ""));
    first.list(&[pod("a", "1")], "more");
    let second = followed.server.next().await;
    assert_eq!(second.of("continue"), "more");
    second.list(&[pod("b", "2")], "");
    for expected in ["listing", "put a", "put b", "listed"] {
        followed.hears(expected).await;
    }
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_where_it_stood() {
    let mut followed = pods().await;
    followed.listed().await;
    let watch = followed.server.next().await;
    assert!(watch.is_watch());
    assert_eq!((watch.of("resourceVersion"), watch.of("allowWatchBookmarks")), ("10", "true"));
    drop(watch.watch(&[event("ADDED", pod("a", "11")), event("DELETED", pod("a", "12"))]));
    followed.hears("put a").await;
    followed.hears("gone a").await;
    let watch = followed.server.next().await;
    assert_eq!(watch.of("resourceVersion"), "12");
    drop(watch.watch(&[bookmark("99")]));
    assert_eq!(followed.server.next().await.of("resourceVersion"), "99");
}

#[tokio::test]
async fn a_place_that_the_server_has_forgotten_leads_to_a_new_list() {
    let mut followed = pods().await;
    followed.listed().await;
    let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    let _watch = followed.server.next().await.watch(&[event("ERROR", gone)]);
    followed.listed().await;
    followed.server.next().await.refuse(410, "Expired");
    followed.listed().await;
}

#[tokio::test]
async fn a_refusal_is_told_as_a_missing_right_once_it_lasts_and_heals() {
    let mut followed = pods().await;
    followed.server.next().await.refuse(403, CANNOT);
    followed.hears("listing").await;
    // The next attempt comes after the fault was noted.
    let mut again = followed.server.next().await;
    let (ok, text) = followed.health.summary();
    assert!(!ok && text.contains("does not know its rules yet"), "{text}");
    while !followed.health.summary().1.contains("lacks the verb \"list\" on pods") {
        again.refuse(403, CANNOT);
        followed.hears("listing").await;
        again = followed.server.next().await;
    }
    again.list(&[], "");
    followed.hears("listing").await;
    followed.hears("listed").await;
    assert!(followed.health.summary().0);
}

#[tokio::test]
async fn a_server_that_talks_nonsense_changes_nothing_and_is_asked_again() {
    let mut followed = pods().await;
    followed.listed().await;
    let watch = followed.server.next().await;
    let _open = watch.watch(&[json!("nonsense")]);
    let again = followed.server.next().await;
    assert_eq!(again.of("resourceVersion"), "10");
    let _watch = again.watch(&[event("ADDED", pod("a", "11"))]);
    followed.hears("put a").await;
}

#[test]
fn pauses_grow_and_are_capped() {
    assert_eq!(pause(0, 1.0), Duration::from_millis(50));
    assert!(pause(1, 0.5) < pause(4, 0.5));
    assert_eq!(pause(u32::MAX, 1.5), Duration::from_secs(15));
}

const CANNOT: &str = "pods is forbidden: User \"u\" cannot list resource \"pods\"";
