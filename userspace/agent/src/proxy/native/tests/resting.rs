//! Tunnels at rest: who gets one, and what takes one out of the pool.

use super::*;
use crate::workers::WorkerId;

fn slot(svid: &str) -> Slot {
    let uid = |name: &str| WorkloadUid::new(name);
    let key = PoolKey {
        source: uid("client"),
        destination: uid("server"),
        address: "10.0.0.1:15008".parse().unwrap(),
        sni_port: None,
    };
    Slot { key, svid: svid.into(), worker: WorkerId::current() }
}

#[tokio::test]
async fn a_tunnel_at_rest_is_found_by_its_slot_and_by_whom_it_proves() {
    let (pool, (near, _far)) = (Pool::new(), tunnel().await);
    let expected = [near.peer.peer.clone()];
    pool.put(slot("1"), near);
    assert!(pool.take(&slot("2"), &expected).is_none(), "another SVID");
    assert!(pool.take(&slot("1"), &expected).is_some());
    assert!(pool.take(&slot("1"), &expected).is_none(), "it is taken");
    let (near, _far) = tunnel().await;
    pool.put(slot("1"), near);
    assert!(pool.take(&slot("1"), &[]).is_none(), "nobody is expected");
    assert_eq!(pool.resting(), 0);
}

#[tokio::test]
async fn one_whose_proof_has_expired_is_given_to_nobody() {
    let (pool, (near, _far)) = (Pool::new(), tunnel().await);
    let expected = [near.peer.peer.clone()];
    let expired = Authenticated { not_after: UnixTime::now().as_secs() - 1, ..near.peer.clone() };
    pool.put(slot("1"), Proven { peer: expired, ..near });
    assert!(pool.take(&slot("1"), &expected).is_none());
}

#[tokio::test]
async fn a_peer_that_closes_or_leaves_takes_its_tunnel_out_of_the_pool() {
    let pool = Pool::new();
    let ((one, far), (other, mut leaving)) = (tunnel().await, tunnel().await);
    pool.put(slot("1"), one);
    pool.put(slot("1"), other);
    assert_eq!(pool.resting(), 2);
    drop(far);
    within(until(|| pool.resting() == 1)).await;
    leaving.leave().await.unwrap();
    within(until(|| pool.resting() == 0)).await;
    // The client has said goodbye.
    assert!(within(leaving.next_open()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_tunnel_that_is_not_at_rest_is_not_kept() {
    let (pool, (mut near, mut far)) = (Pool::new(), tunnel().await);
    near.tunnel.begin();
    pool.put(slot("1"), near);
    assert_eq!(pool.resting(), 0);
    assert!(within(far.next_open()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_workload_that_is_forgotten_is_left_in_order() {
    let (pool, (near, mut far)) = (Pool::new(), tunnel().await);
    pool.put(slot("1"), near);
    pool.forget(&WorkloadUid::new("somebody else"));
    assert_eq!(pool.resting(), 1);
    pool.forget(&WorkloadUid::new("server"));
    assert_eq!(pool.resting(), 0);
    assert!(within(far.next_open()).await.unwrap().is_none());
}

#[tokio::test]
async fn two_workloads_keep_a_bounded_number_and_the_youngest() {
    let pool = Pool::new();
    let (first, mut first_far) = tunnel().await;
    pool.put(slot("1"), first);
    let mut fars = Vec::new();
    for _ in 0..pool::MAX_RESTING {
        let (near, far) = tunnel().await;
        pool.put(slot("1"), near);
        fars.push(far);
    }
    assert_eq!(pool.resting(), pool::MAX_RESTING);
    assert!(within(first_far.next_open()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_request_that_crossed_the_servers_leaving_is_served_and_is_the_last() {
    let ((mut near, mut far), (_client, mut captured)) = (tunnel().await, pair().await);
    far.leave().await.unwrap();
    let serving = async {
        far.next_open().await.unwrap().unwrap();
        far.accept(String::new()).unwrap();
        let (application, server) = pair().await;
        drop(server);
        relay::<Block, _, _>(&mut far, application, &Traffic::default()).await.unwrap();
    };
    let asking = async {
        let mut early = Early::default();
        let status = open(&mut near.tunnel, &request(), &mut early, &mut captured).await.unwrap();
        assert_eq!(status.code, StatusCode::OK);
        drop(_client);
        relay::<Block, _, _>(captured, &mut near.tunnel, &Traffic::default()).await.unwrap();
        near
    };
    let ((), near) = within(async { tokio::join!(serving, asking) }).await;
    let pool = Pool::new();
    pool.put(slot("1"), near);
    assert_eq!(pool.resting(), 0, "its peer leaves");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_nobody_uses_ends_after_a_minute() {
    let (pool, (near, mut far)) = (Pool::new(), tunnel().await);
    pool.put(slot("1"), near);
    tokio::time::advance(pool::IDLE).await;
    assert!(within(far.next_open()).await.unwrap().is_none());
    assert_eq!(pool.resting(), 0);
}

async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
