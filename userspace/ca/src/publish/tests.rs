//! What is written, as the API server sees it.

use signet_apiserver::testing::Server;

use super::*;

fn map(roots: &str, labels: &Value) -> Value {
    json!({
        "metadata": {"name": "roots", "namespace": "a", "resourceVersion": "7", "labels": labels, "annotations": {"x": "y"}},
        "data": {KEY: roots, "other": "kept"},
    })
}

#[test]
fn only_istios_own_is_left_alone() {
    assert_eq!(held(&map("R", &json!({})), "R"), Held::Roots);
    assert_eq!(held(&map("S", &json!({})), "R"), Held::Others);
    assert_eq!(held(&map("S", &json!({ISTIOS_LABEL: "true"})), "R"), Held::Istios);
    assert_eq!(held(&map("R", &json!({ISTIOS_LABEL: "true"})), "R"), Held::Roots);
    assert_eq!(held(&json!({}), "R"), Held::Others);
}

#[tokio::test]
async fn what_is_put_back_keeps_everything_else() {
    let mut server = Server::start().await;
    let mut registry = prometheus_client::registry::Registry::default();
    let health = Health::register(&mut registry, "x");
    let metrics = Metrics::new(&mut registry);
    let publisher =
        Publisher::open(&server.client("signet-ca"), &health, "roots".into(), "R".into(), metrics);
    tokio::spawn(publisher.run());
    for _ in 0..2 {
        let asked = server.next().await;
        match asked.path.as_str() {
            "/api/v1/namespaces" => {
                asked.list(&[json!({"metadata": {"name": "a", "resourceVersion": "1"}})], "")
            }
            _ => {
                assert_eq!(asked.of("fieldSelector"), "metadata.name=roots");
                asked.list(&[map("S", &json!({}))], "");
            }
        }
    }
    let mut watches = Vec::new();
    let asked = loop {
        let asked = server.next().await;
        match asked.is_watch() {
            true => watches.push(asked.watch(&[])),
            false => break asked,
        }
    };
    assert_eq!(
        (asked.method.as_str(), asked.path.as_str()),
        ("GET", "/api/v1/namespaces/a/configmaps/roots")
    );
    asked.object(&map("S", &json!({"l": "m"})));
    let asked = loop {
        let asked = server.next().await;
        match asked.is_watch() {
            true => watches.push(asked.watch(&[])),
            false => break asked,
        }
    };
    assert_eq!(asked.method.as_str(), "PUT");
    assert_eq!(asked.body, map("R", &json!({"l": "m"})));
}
