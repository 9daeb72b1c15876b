//! The `files` source over a real directory: order, changes, and files that cannot be taken.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::discovery::testing;
use crate::drain::Drain;

const DEADLINE: Duration = Duration::from_secs(20);

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: {name}}}\n\
         spec: {{containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n"
    )
}

fn start(directory: &Path) -> (mpsc::Receiver<Event>, Drain, Registry) {
    let mut registry = Registry::default();
    let files = Files::open(directory.to_owned(), testing::options(), &mut registry).unwrap();
    let (tx, rx) = mpsc::channel(16);
    let (drain, watch) = Drain::new();
    tokio::spawn(files.run(tx, watch));
    (rx, drain, registry)
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn everything_comes_before_synced_and_changes_after() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("a")).unwrap();
    let (mut events, drain, _registry) = start(directory.path());
    assert!(matches!(next(&mut events).await, Event::Workload(_)));
    assert_eq!(next(&mut events).await, Event::Synced);
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    assert!(matches!(next(&mut events).await, Event::WorkloadGone(_)));
    assert!(drain.drain(DEADLINE).await);
    assert!(events.recv().await.is_none());
}

#[tokio::test]
async fn a_broken_pod_holds_nobody_up_and_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), "kind: [").unwrap();
    let (mut events, _drain, registry) = start(directory.path());
    assert_eq!(next(&mut events).await, Event::Synced);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("signet_source_faults 1"), "{text}");
}

#[tokio::test]
async fn synced_waits_for_a_file_that_may_hold_a_policy() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("a")).unwrap();
    fs::write(directory.path().join("p.yaml"), "kind: AuthorizationPolicy\nspec: [").unwrap();
    let (mut events, _drain, _registry) = start(directory.path());
    assert!(matches!(next(&mut events).await, Event::Workload(_)));
    fs::remove_file(directory.path().join("p.yaml")).unwrap();
    assert_eq!(next(&mut events).await, Event::Synced);
}

#[tokio::test]
async fn a_missing_directory_is_told_at_once() {
    let error =
        Files::open("/nonexistent/m".into(), testing::options(), &mut Registry::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/m"), "{error}");
}
