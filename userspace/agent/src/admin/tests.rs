//! The listeners as their clients meet them: curl's requests by hand, over the real sockets.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::drain::Drain;

fn sources() -> Arc<Sources> {
    Arc::new(Sources {
        about: About {
            instance: "test".into(),
            node: "n1".into(),
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            started: Instant::now(),
        },
        statuses: Statuses::default(),
        state: Arc::new(State::new("istio-system")),
        source: None,
        certificates: Box::new(Vec::new),
        connections: Box::new(Vec::new),
        probes: Box::new(Vec::new),
        preflight: Box::new(|| vec![Finding { name: "btf".into(), ok: true, detail: "found".into() }]),
        registry: Arc::new(Registry::default()),
    })
}

fn listen(admin: &Path) -> Listen {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Listen { metrics: any, readiness: any, admin: admin.to_owned() }
}

async fn get(mut io: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: signet\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn every_view_answers_json_over_the_admin_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let listening = bind(&listen(&path)).await.unwrap();
    let (_drain, watch) = Drain::new();
    tokio::spawn(listening.serve(sources(), watch));
    for view in ["status", "workloads", "certificates", "connections", "policies", "check"] {
        let (status, body) = get(UnixStream::connect(&path).await.unwrap(), &format!("/v1/{view}")).await;
        assert_eq!(status, 200, "{view}");
        serde_json::from_str::<serde_json::Value>(&body).unwrap();
    }
    let (_, status) = get(UnixStream::connect(&path).await.unwrap(), "/v1/status").await;
    assert!(status.contains(r#""node":"n1""#) && status.contains(r#""ready":false"#), "{status}");
}

#[tokio::test]
async fn a_node_that_is_not_capturing_is_not_ready_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let listening = bind(&listen(&folder.path().join("admin.sock"))).await.unwrap();
    let address = listening.readiness().unwrap();
    let (_drain, watch) = Drain::new();
    tokio::spawn(listening.serve(sources(), watch));
    let (status, body) = get(TcpStream::connect(address).await.unwrap(), "/healthz/ready").await;
    assert_eq!(status, 503);
    assert!(body.contains("capture"), "{body}");
}

#[tokio::test]
async fn metrics_answer_under_prometheus_and_istios_path() {
    let folder = tempfile::tempdir().unwrap();
    let listening = bind(&listen(&folder.path().join("admin.sock"))).await.unwrap();
    let address = listening.metrics().unwrap();
    let (_drain, watch) = Drain::new();
    tokio::spawn(listening.serve(sources(), watch));
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, body) = get(TcpStream::connect(address).await.unwrap(), path).await;
        assert!(status == 200 && body.ends_with("# EOF\n"), "{path}: {status} {body}");
    }
    let (status, _) = get(TcpStream::connect(address).await.unwrap(), "/v1/status").await;
    assert_eq!(status, 404, "views are for the owner of the socket alone");
}

#[tokio::test]
async fn a_drain_ends_the_listeners_although_a_client_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let listening = bind(&listen(&path)).await.unwrap();
    let address = listening.metrics().unwrap();
    let (drain, watch) = Drain::new();
    tokio::spawn(listening.serve(sources(), watch));
    let _silent = TcpStream::connect(address).await.unwrap();
    assert!(drain.drain(Duration::from_secs(30)).await);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let first = bind(&listen(&folder.path().join("a.sock"))).await.unwrap();
    let taken = Listen { metrics: first.metrics().unwrap(), ..listen(&folder.path().join("b.sock")) };
    let error = bind(&taken).await.unwrap_err().to_string();
    assert!(error.contains("listen.metrics"), "{error}");
}
