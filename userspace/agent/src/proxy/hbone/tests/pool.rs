//! Which tunnels share a connection, and what ends one.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http::StatusCode;
use rustls::pki_types::UnixTime;

use super::tunnel::assert_reset;
use super::*;

#[tokio::test]
async fn tunnels_of_the_same_two_workloads_share_a_connection() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    for _ in 0..300 {
        let (mut tunnel, _) = machine.open(&pool, &request()).await.unwrap();
        assert_echo(&mut tunnel).await;
    }
    assert_eq!(machine.dials(), 1);
}

#[tokio::test]
async fn nothing_else_is_shared() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    let changes: [fn(&mut PoolKey); 5] = [
        |_| {},
        |key| key.source = WorkloadUid::new("frontend reborn"),
        |key| key.destination = WorkloadUid::new("backend reborn"),
        |key| key.address = "10.0.0.3:15008".parse().unwrap(),
        |key| key.sni_port = Some(8080),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut request = request();
        change(&mut request.key);
        machine.open(&pool, &request).await.unwrap();
        assert_eq!(machine.dials(), at + 1);
    }
}

#[tokio::test]
async fn a_rotated_svid_gets_a_connection_of_its_own_and_old_tunnels_go_on() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    let (mut old, _) = machine.open(&pool, &request()).await.unwrap();
    let rotated = pool.open_with(&"2".into(), &request(), || machine.clone().dial()).await;
    assert_echo(&mut rotated.unwrap().0).await;
    assert_eq!(machine.dials(), 2);
    assert_echo(&mut old).await;
}

#[tokio::test]
async fn a_connection_to_a_peer_that_is_no_longer_expected_is_not_used() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    machine.open(&pool, &request()).await.unwrap();
    let other = SpiffeId::parse("spiffe://cluster.local/ns/photo-ns/sa/other").unwrap();
    let mut request = request();
    request.expected = Arc::new([other.clone()]);
    let successor = Machine { identity: other.clone(), ..machine.clone() };
    let (_, opened) = successor.open(&pool, &request).await.unwrap();
    assert_eq!((opened.peer, machine.dials()), (other, 2));
}

#[tokio::test]
async fn a_connection_opens_nothing_more_once_a_certificate_of_it_has_expired() {
    let now = Arc::new(AtomicU64::new(100));
    let clock = Arc::clone(&now);
    let read = move || UnixTime::since_unix_epoch(Duration::from_secs(clock.load(Ordering::SeqCst)));
    let (pool, machine) = (Pool::with_clock(read), Machine { not_after: 100, ..Machine::new(echo) });
    let (mut old, _) = machine.open(&pool, &request()).await.unwrap();
    machine.open(&pool, &request()).await.unwrap();
    assert_eq!(machine.dials(), 1, "the last second of its validity is part of it");
    now.store(101, Ordering::SeqCst);
    let renewed = Machine { not_after: 200, ..machine.clone() };
    let (mut new, _) = renewed.open(&pool, &request()).await.unwrap();
    assert_eq!(machine.dials(), 2);
    assert_echo(&mut old).await;
    assert_echo(&mut new).await;
}

#[tokio::test]
async fn concurrent_openers_share_a_dial() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    let opened = open_many(&pool, &machine, 50).await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(machine.dials(), 1);
}

#[tokio::test]
async fn a_full_connection_is_joined_by_another() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    let mut opened = open_many(&pool, &machine, 300).await;
    for tunnel in &mut opened {
        assert_echo(&mut tunnel.as_mut().unwrap().0).await;
    }
    assert_eq!(machine.dials(), 3);
}

#[tokio::test]
async fn a_failed_dial_fails_all_who_wait_and_nobody_after_them() {
    let pool = Pool::new();
    let failed = || async {
        tokio::task::yield_now().await;
        Err::<(DuplexStream, _), _>(HboneError::Dial(
            request().key.address,
            Arc::new(NetError::Refused(request().key.address)),
        ))
    };
    let (svid, request) = ("1".into(), request());
    let waiting = (0..20).map(|_| pool.open_with(&svid, &request, failed));
    for outcome in within(futures_util::future::join_all(waiting)).await {
        assert!(matches!(outcome, Err(HboneError::Dial(..))));
    }
    let machine = Machine::new(echo);
    machine.open(&pool, &request).await.unwrap();
    assert_eq!(machine.dials(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_status_and_costs_no_connection() {
    let (pool, machine) = (Pool::new(), Machine::new(|incoming| incoming.refuse(StatusCode::UNAUTHORIZED)));
    for _ in 0..2 {
        let refused = machine.open(&pool, &request()).await.map(|_| ());
        assert!(matches!(refused, Err(HboneError::Status(_, StatusCode::UNAUTHORIZED))), "{refused:?}");
    }
    assert_eq!(machine.dials(), 1);
}

#[tokio::test]
async fn what_is_no_header_value_is_an_error_and_not_a_panic() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    for garbage in ["", "a b", "10.0.0.2:8080\n", "user@host:1/path"] {
        let mut request = request();
        request.authority = garbage.to_owned();
        let refused = machine.open(&pool, &request).await.map(|_| ());
        assert!(matches!(refused, Err(HboneError::Request(":authority", _))), "{garbage:?}: {refused:?}");
    }
    let mut request = request();
    request.baggage = "line\nfeed".to_owned();
    let refused = machine.open(&pool, &request).await.map(|_| ());
    assert!(matches!(refused, Err(HboneError::Request("baggage", _))), "{refused:?}");
}

#[tokio::test]
async fn after_goaway_old_tunnels_go_on_and_new_ones_go_elsewhere() {
    let pool = Pool::new();
    let (near, far) = tokio::io::duplex(PIPE);
    let leaving = Arc::new(tokio::sync::Notify::new());
    let leave = Arc::clone(&leaving);
    let server = tokio::spawn(async move {
        let mut server = Server::handshake(far).await.unwrap();
        echo(server.next().await.unwrap().unwrap());
        tokio::select! {
            _ = server.next() => unreachable!("nothing is opened yet"),
            () = leave.notified() => server.shutdown(),
        }
        while let Some(Ok(_)) = server.next().await {}
    });
    let (mut old, _) = open_over(&pool, near).await.unwrap();
    leaving.notify_one();
    // GOAWAY is on its way before the echo.
    assert_echo(&mut old).await;
    let machine = Machine::new(echo);
    assert_echo(&mut machine.open(&pool, &request()).await.unwrap().0).await;
    assert_eq!(machine.dials(), 1);
    assert_echo(&mut old).await;
    old.shutdown().await.unwrap();
    assert_eq!(within(old.read(&mut [0; 8])).await.unwrap(), 0);
    drop(old);
    within(server).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_died_unnoticed_is_replaced_before_anybody_hears_of_it() {
    let pool = Pool::new();
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::spawn(async move {
        let mut server = Server::handshake(far).await.unwrap();
        echo(server.next().await.unwrap().unwrap());
        // It takes the second CONNECT, and the whole connection breaks without an answer.
        drop(server.next().await);
    });
    open_over(&pool, near).await.unwrap();
    let machine = Machine::new(echo);
    assert_echo(&mut machine.open(&pool, &request()).await.unwrap().0).await;
    assert_eq!(machine.dials(), 1);
}

#[tokio::test]
async fn a_broken_connection_is_a_reset_of_its_tunnels() {
    let pool = Pool::new();
    let (near, far) = tokio::io::duplex(PIPE);
    tokio::spawn(async move {
        let mut server = Server::handshake(far).await.unwrap();
        let mut tunnel = server.next().await.unwrap().unwrap().accept(None).unwrap();
        tunnel.write_all(b"half of").await.unwrap();
        // Until the client asks again, what was written is on its way.
        drop(server.next().await);
    });
    let (mut tunnel, _) = open_over(&pool, near).await.unwrap();
    let mut half = [0; 7];
    within(tunnel.read_exact(&mut half)).await.unwrap();
    let machine = Machine::new(echo);
    machine.open(&pool, &request()).await.unwrap();
    assert_reset(within(tunnel.read(&mut [0; 8])).await);
}

#[tokio::test]
async fn a_forgotten_workload_loses_its_connections_and_others_keep_theirs() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    let mut elsewhere = request();
    elsewhere.key.destination = WorkloadUid::new("datastore");
    let (mut gone, _) = machine.open(&pool, &request()).await.unwrap();
    let (mut kept, _) = machine.open(&pool, &elsewhere).await.unwrap();
    pool.forget(&request().key.destination);
    assert_reset(within(gone.read(&mut [0; 8])).await);
    assert_echo(&mut kept).await;
    machine.open(&pool, &request()).await.unwrap();
    assert_eq!(machine.dials(), 3);
}

#[tokio::test]
async fn a_dial_for_a_forgotten_workload_is_given_up() {
    let pool = Pool::new();
    let never = || std::future::pending::<Result<(DuplexStream, Authenticated), HboneError>>();
    let (svid, request) = ("1".into(), request());
    let forget = async {
        tokio::task::yield_now().await;
        pool.forget(&request.key.source);
    };
    let (outcome, ()) = within(async { tokio::join!(pool.open_with(&svid, &request, never), forget) }).await;
    assert!(matches!(outcome, Err(HboneError::Forgotten(_))));
}

#[tokio::test]
async fn the_pools_end_is_its_connections_end() {
    let (pool, machine) = (Pool::new(), Machine::new(echo));
    let (mut tunnel, _) = machine.open(&pool, &request()).await.unwrap();
    drop(pool);
    assert_reset(within(tunnel.read(&mut [0; 8])).await);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_ends_and_one_in_use_does_not() {
    let pool = Pool::new();
    let (near, far) = tokio::io::duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut server = Server::handshake(far).await.unwrap();
        echo(server.next().await.unwrap().unwrap());
        server.next().await.map(|_| ())
    });
    let (mut tunnel, _) = open_over(&pool, near).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_echo(&mut tunnel).await;
    drop(tunnel);
    let ended = tokio::time::timeout(Duration::from_secs(120), server).await;
    assert!(ended.expect("idle for twice as long as it may be").unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_a_timeout() {
    let (pool, machine) = (Pool::new(), Machine::new(std::mem::forget));
    let outcome = machine.open(&pool, &request()).await.map(|_| ());
    assert!(matches!(outcome, Err(HboneError::Timeout(..))), "{outcome:?}");
    let mute = || async { Ok((tokio::io::duplex(PIPE).0, proven(backend()))) };
    let outcome = pool.open_with(&"mute".into(), &request(), mute).await.map(|_| ());
    assert!(outcome.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_no_ping_is_given_up_with_its_tunnels() {
    let pool = Pool::new();
    let (near, far) = tokio::io::duplex(PIPE);
    let (stopped, mut server) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut connection: h2::server::Connection<_, Bytes> = h2::server::handshake(far).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let body = respond.send_response(http::Response::new(()), false).unwrap();
        std::future::poll_fn(|cx| {
            let _ = connection.poll_closed(cx);
            std::task::Poll::Ready(())
        })
        .await;
        // Nobody polls it any more, and nobody closes it.
        let _ = stopped.send((connection, body));
    });
    let (mut tunnel, _) = open_over(&pool, near).await.unwrap();
    assert_reset(tunnel.read(&mut [0; 8]).await);
    assert!(server.try_recv().is_ok());
}

async fn open_over(pool: &Pool, io: DuplexStream) -> Result<(Tunnel, Opened), HboneError> {
    let io = std::sync::Mutex::new(Some(io));
    let dial = || {
        let io = io.lock().unwrap().take().expect("one dial");
        async { Ok((io, proven(backend()))) }
    };
    within(pool.open_with(&"1".into(), &request(), dial)).await
}

async fn open_many(
    pool: &Pool,
    machine: &Machine,
    count: usize,
) -> Vec<Result<(Tunnel, Opened), HboneError>> {
    let request = request();
    within(futures_util::future::join_all((0..count).map(|_| machine.open(pool, &request)))).await
}

async fn assert_echo(tunnel: &mut Tunnel) {
    within(async {
        tunnel.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        tunnel.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"ping");
    })
    .await;
}
