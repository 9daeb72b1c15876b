//! A whole way: `client - relay - tunnel - relay - server`, the ends being TCP over loopback.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::tunnel::assert_reset;
use super::*;
use crate::net::{RelayError, Side, Traffic, relay, reset};

struct Way {
    client: TcpStream,
    server: TcpStream,
    outbound: JoinHandle<Result<(), RelayError>>,
    inbound: JoinHandle<Result<(), RelayError>>,
}

impl Way {
    async fn new() -> Self {
        let ((client, captured), (application, server)) = (pair().await, pair().await);
        let (near, far) = tunnel().await;
        let outbound = tokio::spawn(async move { relay(captured, near, &Traffic::default()).await });
        let inbound = tokio::spawn(async move { relay(far, application, &Traffic::default()).await });
        Self { client, server, outbound, inbound }
    }
}

#[tokio::test]
async fn an_exchange_ends_in_order_on_every_leg() {
    let mut way = Way::new().await;
    way.client.write_all(b"question").await.unwrap();
    way.client.shutdown().await.unwrap();
    let mut question = Vec::new();
    within(way.server.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    way.server.write_all(b"answer").await.unwrap();
    way.server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within(way.client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    within(way.outbound).await.unwrap().unwrap();
    within(way.inbound).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_server_as_one() {
    let mut way = Way::new().await;
    reset(way.client);
    assert_reset(within(way.server.read(&mut [0; 8])).await);
    assert_eq!(within(way.outbound).await.unwrap().unwrap_err().side, Side::A);
    assert_eq!(within(way.inbound).await.unwrap().unwrap_err().side, Side::A);
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_client_as_one() {
    let mut way = Way::new().await;
    reset(way.server);
    assert_reset(within(way.client.read(&mut [0; 8])).await);
    assert_eq!(within(way.inbound).await.unwrap().unwrap_err().side, Side::B);
    assert_eq!(within(way.outbound).await.unwrap().unwrap_err().side, Side::B);
}

#[tokio::test]
async fn a_server_that_answers_and_resets_is_heard_before_the_reset() {
    for _ in 0..50 {
        let mut way = Way::new().await;
        way.client.write_all(b"more than the server wants").await.unwrap();
        way.server.write_all(b"413 too much").await.unwrap();
        reset(way.server);
        let mut answer = Vec::new();
        assert_reset(within(way.client.read_to_end(&mut answer)).await);
        assert_eq!(answer, b"413 too much");
    }
}

#[tokio::test]
async fn a_relay_given_up_in_the_middle_is_a_reset_at_both_far_ends() {
    let mut way = Way::new().await;
    way.server.write_all(b"half of").await.unwrap();
    within(way.client.read_exact(&mut [0; 7])).await.unwrap();
    way.outbound.abort();
    assert_reset(within(way.client.read(&mut [0; 8])).await);
    assert_reset(within(way.server.read(&mut [0; 8])).await);
}

#[tokio::test]
async fn every_byte_arrives_in_its_place_both_ways_at_once() {
    let Way { client, server, outbound, inbound } = Way::new().await;
    within(async { tokio::join!(exchange(client), exchange(server)) }).await;
    within(outbound).await.unwrap().unwrap();
    within(inbound).await.unwrap().unwrap();
}

/// Sends the pattern and checks that the same comes from the other end.
async fn exchange(stream: TcpStream) {
    let (mut reader, mut writer) = stream.into_split();
    let pattern = Pattern::new();
    let write = async {
        for offset in (0..VOLUME).step_by(LONGEST) {
            writer.write_all(pattern.at(offset, LONGEST)).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let read = async {
        let (mut received, mut buffer) = (0, vec![0; LONGEST]);
        loop {
            let count = reader.read(&mut buffer).await.unwrap();
            assert!(buffer[..count] == *pattern.at(received, count), "other bytes from {received} on");
            received += count;
            if count == 0 {
                break assert_eq!(received, VOLUME);
            }
        }
    };
    tokio::join!(write, read);
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

const VOLUME: usize = 64 * 1024 * 1024;
