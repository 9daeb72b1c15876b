//! Two ends of a tunnel over loopback: `application - relay - tunnel - relay - application`, and the pool.

use std::io;
use std::time::Duration;

use http::StatusCode;
use rustls::pki_types::UnixTime;
use signet_identity::testing::TestCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::tunnel::Tunnel;
use super::*;
use crate::addr::WorkloadUid;
use crate::block::Block;
use crate::mtls::{Authenticated, Endpoint, Protocol};
use crate::net::{RelayError, Side, Traffic, relay, reset};
use crate::proxy::hbone::PoolKey;

mod resting;

/// A tunnel's client and its server.
async fn tunnel() -> (Proven, Tunnel) {
    let ca = TestCa::new("td");
    let svid = |name| Endpoint::native(&ca.svid("a", name)).unwrap();
    let (client, server, expected) = (svid("client"), svid("server"), [ca.id("a", "server")]);
    let (near, far) = pair().await;
    let (connected, accepted) = tokio::join!(client.connect(near, &expected, None), server.accept(far));
    let ((near, peer), (far, seen)) = (connected.unwrap(), accepted.unwrap());
    assert_eq!((peer.protocol, seen.protocol), (Protocol::Native, Protocol::Native));
    (Proven { tunnel: Tunnel::new(near), peer }, Tunnel::new(far))
}

/// A connection over loopback with small kernel buffers.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(64 * 1024).unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let near = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    near.set_nodelay(true).unwrap();
    let (far, _) = listener.accept().await.unwrap();
    (near, far)
}

fn request() -> Open {
    Open { authority: "10.0.0.1:80".into(), client: "10.0.0.2:1".into(), ..Open::default() }
}

/// Both applications, and the two relays between them.
struct Way {
    client: TcpStream,
    server: TcpStream,
    outbound: JoinHandle<(Result<(), RelayError>, Proven)>,
    inbound: JoinHandle<(Result<(), RelayError>, Tunnel)>,
}

impl Way {
    async fn new() -> Self {
        let (near, far) = tunnel().await;
        Self::over(near, far).await
    }

    /// Opened on these two ends at rest.
    async fn over(mut near: Proven, mut far: Tunnel) -> Self {
        let ((client, mut captured), (application, server)) = (pair().await, pair().await);
        let outbound = tokio::spawn(async move {
            let mut early = Early::default();
            let status = open(&mut near.tunnel, &request(), &mut early, &mut captured).await.unwrap();
            assert_eq!(status.code, StatusCode::OK);
            (relay::<Block, _, _>(captured, &mut near.tunnel, &Traffic::default()).await, near)
        });
        let inbound = tokio::spawn(async move {
            assert_eq!(*far.next_open().await.unwrap().unwrap(), request());
            far.accept("k8s.namespace.name=ns".into()).unwrap();
            (relay::<Block, _, _>(&mut far, application, &Traffic::default()).await, far)
        });
        Self { client, server, outbound, inbound }
    }

    /// Both relays have ended in order, and here are their tunnel's ends.
    async fn ended(self) -> (Proven, Tunnel) {
        let ((outbound, near), (inbound, far)) =
            (within(self.outbound).await.unwrap(), within(self.inbound).await.unwrap());
        outbound.unwrap();
        inbound.unwrap();
        (near, far)
    }
}

#[tokio::test]
async fn a_tunnel_serves_one_connection_after_the_other() {
    let (mut near, mut far) = tunnel().await;
    for round in 0..5 {
        let mut way = Way::over(near, far).await;
        let text = format!("question {round}");
        way.client.write_all(text.as_bytes()).await.unwrap();
        way.client.shutdown().await.unwrap();
        assert_eq!(all(&mut way.server).await.unwrap(), text.as_bytes());
        way.server.write_all(b"answer").await.unwrap();
        way.server.shutdown().await.unwrap();
        assert_eq!(all(&mut way.client).await.unwrap(), b"answer");
        (near, far) = way.ended().await;
        assert!(near.tunnel.is_at_rest() && far.is_at_rest());
    }
}

#[tokio::test]
async fn either_application_may_speak_first() {
    let mut way = Way::new().await;
    way.server.write_all(b"220 ready").await.unwrap();
    let mut greeting = [0; 9];
    within(way.client.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
    let mut way = Way::new().await;
    way.client.write_all(b"GET /").await.unwrap();
    let mut request = [0; 5];
    within(way.server.read_exact(&mut request)).await.unwrap();
    assert_eq!(&request, b"GET /");
}

#[tokio::test]
async fn what_a_client_has_said_arrives_with_its_request() {
    let ((mut near, mut far), (mut client, mut captured)) = (tunnel().await, pair().await);
    client.write_all(b"said before").await.unwrap();
    captured.readable().await.unwrap();
    let mut early = Early::default();
    let request = request();
    let asking = open(&mut near.tunnel, &request, &mut early, &mut captured);
    let serving = async {
        far.next_open().await.unwrap().unwrap();
        // Both were in one flight.
        assert!(far.has_unread());
        far.accept(String::new()).unwrap();
        far
    };
    let mut far = tokio::select! {
        _ = asking => unreachable!("nothing was answered yet"),
        far = within(serving) => far,
    };
    assert_eq!(early.bytes(), b"said before");
    let (application, mut server) = pair().await;
    let relaying = async move { relay::<Block, _, _>(&mut far, application, &Traffic::default()).await };
    tokio::spawn(relaying);
    let mut said = [0; 11];
    within(server.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"said before");
}

#[tokio::test]
async fn a_refused_request_leaves_the_tunnel_at_rest_and_its_first_bytes_unheard() {
    let ((mut near, mut far), (mut client, mut captured)) = (tunnel().await, pair().await);
    client.write_all(b"for nobody").await.unwrap();
    captured.readable().await.unwrap();
    let mut early = Early::default();
    let refusing = async {
        far.next_open().await.unwrap().unwrap();
        far.refuse(StatusCode::SERVICE_UNAVAILABLE).await.unwrap();
        far
    };
    let request = request();
    let (answer, far) = tokio::join!(open(&mut near.tunnel, &request, &mut early, &mut captured), refusing);
    assert_eq!(answer.unwrap().code, StatusCode::SERVICE_UNAVAILABLE);
    assert!(near.tunnel.is_at_rest() && !early.are_at_risk());
    assert_eq!(early.bytes(), b"for nobody");
    let mut way = Way::over(near, far).await;
    way.client.write_all(b"next").await.unwrap();
    way.client.shutdown().await.unwrap();
    assert_eq!(all(&mut way.server).await.unwrap(), b"next");
}

#[tokio::test]
async fn first_bytes_are_at_risk_until_a_server_has_refused_them() {
    for said in [&b""[..], b"said"] {
        let ((mut near, mut far), (mut client, mut captured)) = (tunnel().await, pair().await);
        client.write_all(said).await.unwrap();
        if !said.is_empty() {
            captured.readable().await.unwrap();
        }
        let mut early = Early::default();
        let dying = async {
            far.next_open().await.unwrap().unwrap();
            drop(far);
        };
        let request = request();
        let (answer, ()) = tokio::join!(open(&mut near.tunnel, &request, &mut early, &mut captured), dying);
        assert_eq!(matches!(answer, Err(Attempt::Broken(_))), !said.is_empty(), "{answer:?}");
        assert!(!near.tunnel.is_at_rest());
    }
}

#[tokio::test]
async fn a_reset_of_either_application_reaches_the_other_as_one() {
    let mut way = Way::new().await;
    way.client.write_all(b"x").await.unwrap();
    within(way.server.read_u8()).await.unwrap();
    reset(way.client);
    let (outbound, near) = within(way.outbound).await.unwrap();
    assert_eq!(outbound.unwrap_err().side, Side::A);
    assert!(!near.tunnel.is_at_rest());
    assert_reset(within(way.server.read_u8()).await);
    let mut way = Way::new().await;
    way.client.write_all(b"x").await.unwrap();
    within(way.server.read_u8()).await.unwrap();
    reset(way.server);
    drop(within(way.inbound).await.unwrap());
    assert_reset(within(way.client.read_u8()).await);
}

#[tokio::test]
async fn a_server_that_answers_and_resets_is_heard_before_the_reset() {
    for _ in 0..20 {
        let mut way = Way::new().await;
        way.client.write_all(b"more than the server wants").await.unwrap();
        within(way.server.read_u8()).await.unwrap();
        way.server.write_all(b"413 too much").await.unwrap();
        reset(way.server);
        tokio::spawn(way.inbound);
        let mut answer = Vec::new();
        assert_reset(within(way.client.read_to_end(&mut answer)).await);
        assert_eq!(answer, b"413 too much");
    }
}

#[tokio::test]
async fn a_tunnel_that_is_cut_in_the_middle_never_looks_complete() {
    let mut way = Way::new().await;
    way.server.write_all(b"half of").await.unwrap();
    within(way.client.read_exact(&mut [0; 7])).await.unwrap();
    way.inbound.abort();
    assert_reset(within(way.client.read_u8()).await);
    // Neither where one direction has ended already.
    let mut way = Way::new().await;
    way.client.shutdown().await.unwrap();
    assert_eq!(all(&mut way.server).await.unwrap(), b"");
    way.server.write_all(b"half of").await.unwrap();
    within(way.client.read_exact(&mut [0; 7])).await.unwrap();
    way.inbound.abort();
    assert_reset(within(way.client.read_u8()).await);
}

#[tokio::test]
async fn both_directions_carry_much_at_once_and_whole() {
    let way = Way::new().await;
    let Way { client, server, outbound, inbound } = way;
    let (sent, received) = tokio::join!(exchange(client, 1), exchange(server, 2));
    assert!(sent == noise(2) && received == noise(1));
    within(outbound).await.unwrap().0.unwrap();
    within(inbound).await.unwrap().0.unwrap();
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_writer() {
    let mut way = Way::new().await;
    let chunk = vec![7; 64 * 1024];
    let (mut total, mut stalled) = (0, false);
    while !stalled {
        match tokio::time::timeout(Duration::from_secs(1), way.client.write(&chunk)).await {
            Ok(written) => total += written.unwrap(),
            Err(_) => stalled = true,
        }
        assert!(total < 64 << 20, "{total} bytes are held for a reader that does not read");
    }
    let mut read = vec![0; total];
    within(way.server.read_exact(&mut read)).await.unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
}

/// Sends noise and ends, and returns what came until the end.
async fn exchange(stream: TcpStream, seed: u8) -> Vec<u8> {
    let (mut reader, mut writer) = stream.into_split();
    let mut received = Vec::new();
    let write = async {
        writer.write_all(&noise(seed)).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async { reader.read_to_end(&mut received).await.unwrap() };
    within(async { tokio::join!(write, read) }).await;
    received
}

fn noise(seed: u8) -> Vec<u8> {
    (0..8_000_000_usize).map(|at| (at / 3 * 31) as u8 ^ seed).collect()
}

async fn all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.map(|_| bytes)
}

fn assert_reset<T: std::fmt::Debug>(outcome: io::Result<T>) {
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

async fn within<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), step).await.expect("within the deadline")
}
