//! Presence in the memory of one process and in a real Redis (`CHAPPE_TEST_REDIS_URL`): the same laws, and what happens when
//! Redis forgets, stops answering, goes away and comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

mod common;

use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, GatewayId, MailboxId};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_router::presence::{Lease, Presence};
use chappe_router::redis::{RedisConfig, RedisPresence, RedisPresenceError};
use chappe_router::{Directory, PresenceMetrics, RouterMetrics};
use common::PausedWorld;
use common::gate::Gate;
use prometheus::Registry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const ONE: GatewayId = GatewayId([1; 16]);
const TWO: GatewayId = GatewayId([2; 16]);

fn lease(mailbox: u8, device: &str, gateway: GatewayId, order: (u64, u32, u8)) -> Lease {
    Lease {
        mailbox: MailboxId([mailbox; 16]),
        device: DeviceId::new(device).unwrap(),
        gateway,
        epoch: Epoch(order.0),
        resumes: order.1,
        connection: ConnectionId([order.2; 16]),
    }
}

#[allow(clippy::disallowed_methods, reason = "a test is told where the real parts are")]
fn url() -> String {
    std::env::var("CHAPPE_TEST_REDIS_URL").expect(
        "CHAPPE_TEST_REDIS_URL is not set: run ./test, or: dev/deps start redis && eval \"$(dev/deps env redis)\"",
    )
}

/// A cluster name of its own for every test, so that they share one Redis.
fn cluster() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn redis_at(url: &str, cluster: &str) -> Arc<RedisPresence> {
    let metrics = Arc::new(PresenceMetrics::new(&Registry::new()).unwrap());
    Arc::new(RedisPresence::open(&RedisConfig::new(url, cluster), metrics).unwrap())
}

fn redis() -> Arc<RedisPresence> {
    redis_at(&url(), &cluster())
}

fn memory() -> Arc<Directory> {
    let metrics = Arc::new(RouterMetrics::new(&Registry::new()).unwrap());
    let world: Arc<dyn World> = Arc::new(PausedWorld::new(1));
    Arc::new(Directory::new(world, 1000, metrics))
}

/// The newest lease stands, by epoch, then resumes, then connection; what is not older is taken.
async fn the_newest_lease_stands(presence: &dyn Presence) {
    let mailbox = MailboxId([1; 16]);
    for (order, gateway, taken, stands) in [
        ((2, 0, 5), ONE, true, ONE),
        ((1, 9, 9), TWO, false, ONE),
        ((2, 0, 4), TWO, false, ONE),
        ((2, 0, 5), ONE, true, ONE),
        ((2, 0, 6), TWO, true, TWO),
        ((2, 1, 1), ONE, true, ONE),
        ((2, 0, 255), TWO, false, ONE),
        // Numbers, not text: 10 is more than 9, and what does not fit a float counts to its last digit.
        ((9, 0, 1), TWO, true, TWO),
        ((10, 0, 1), ONE, true, ONE),
        (((1 << 60) + 1, 0, 0), TWO, true, TWO),
        ((1 << 60, u32::MAX, 255), ONE, false, TWO),
        ((u64::MAX, 9, 0), ONE, true, ONE),
        ((u64::MAX, 10, 0), TWO, true, TWO),
    ] {
        assert_eq!(presence.lease(&[lease(1, "phone", gateway, order)]).await, [taken], "{order:?}");
        assert_eq!(presence.gateways(mailbox).await, [stands], "{order:?}");
    }
}

/// Each device has its own; a batch is answered lease by lease; a gateway is named once.
async fn a_batch_holds_many(presence: &dyn Presence) {
    let leases: Vec<Lease> = (0..150)
        .map(|n| lease(n, "phone", ONE, (2, 0, 1)))
        .chain([lease(3, "web", TWO, (1, 0, 1)), lease(3, "pad", ONE, (1, 0, 1))])
        .collect();
    assert_eq!(presence.lease(&leases).await, vec![true; 152]);
    assert_eq!(presence.gateways(MailboxId([3; 16])).await, [ONE, TWO]);
    assert_eq!(presence.gateways(MailboxId([149; 16])).await, [ONE]);
    assert_eq!(presence.gateways(MailboxId([200; 16])).await, []);
    let mut again: Vec<Lease> = (0..150).map(|n| lease(n, "phone", TWO, (2, 0, 0))).collect();
    again[70].epoch = Epoch(3);
    let taken = presence.lease(&again).await;
    assert!(taken.iter().enumerate().all(|(n, taken)| *taken == (n == 70)), "{taken:?}");
}

/// A lease is given up by whoever holds it, and by nobody else.
async fn only_the_holder_releases(presence: &dyn Presence) {
    let mailbox = MailboxId([1; 16]);
    let held = lease(1, "phone", ONE, (2, 3, 4));
    presence.lease(std::slice::from_ref(&held)).await;
    for other in [
        lease(1, "phone", TWO, (2, 3, 4)),
        lease(1, "phone", ONE, (1, 3, 4)),
        lease(1, "phone", ONE, (3, 3, 4)),
        lease(1, "phone", ONE, (2, 2, 4)),
        lease(1, "phone", ONE, (2, 3, 5)),
        lease(1, "web", ONE, (2, 3, 4)),
    ] {
        presence.release(&other).await;
        assert_eq!(presence.gateways(mailbox).await, [ONE]);
    }
    presence.release(&held).await;
    assert_eq!(presence.gateways(mailbox).await, []);
    assert_eq!(
        presence.lease(&[lease(1, "phone", TWO, (1, 0, 0))]).await,
        [true],
        "nothing is there any more"
    );
}

#[tokio::test(start_paused = true)]
async fn laws_in_memory() {
    the_newest_lease_stands(&*memory()).await;
    a_batch_holds_many(&*memory()).await;
    only_the_holder_releases(&*memory()).await;
}

#[tokio::test]
async fn laws_in_redis() {
    redis().check().await.unwrap();
    the_newest_lease_stands(&*redis()).await;
    a_batch_holds_many(&*redis()).await;
    only_the_holder_releases(&*redis()).await;
}

/// Clusters on one Redis do not see each other, and routers and gateways of one cluster do.
#[tokio::test]
async fn a_cluster_is_a_name() {
    let name = cluster();
    let (gateway, router, other) = (redis_at(&url(), &name), redis_at(&url(), &name), redis());
    gateway.lease(&[lease(1, "phone", ONE, (1, 0, 1))]).await;
    assert_eq!(router.gateways(MailboxId([1; 16])).await, [ONE]);
    assert_eq!(other.gateways(MailboxId([1; 16])).await, []);
}

/// A plain connection to the same Redis, to do what an operator or a failover does.
async fn operator() -> ::redis::aio::MultiplexedConnection {
    ::redis::Client::open(url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Keys of a test's cluster.
async fn keys(name: &str) -> Vec<String> {
    ::redis::cmd("KEYS").arg(format!("chappe:{name}:*")).query_async(&mut operator().await).await.unwrap()
}

/// An expired lease counts for nothing although its row is still there, and a hash that nobody renews goes by itself.
#[tokio::test]
async fn a_lease_ends_by_its_own_time() {
    let name = cluster();
    let presence = redis_at(&url(), &name);
    let held = lease(1, "phone", ONE, (9, 0, 1));
    presence.lease(std::slice::from_ref(&held)).await;
    let [key] = &keys(&name).await[..] else { panic!("one mailbox, one key") };
    let mut operator = operator().await;
    let left: u64 = ::redis::cmd("PTTL").arg(key).query_async(&mut operator).await.unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    // As it stands there after its time, kept alive by another device's lease.
    let value: String = ::redis::cmd("HGET").arg(key).arg("phone").query_async(&mut operator).await.unwrap();
    let past = format!("{}{}", &value[..88], 1_700_000_000_000_u64);
    ::redis::cmd("HSET").arg(key).arg("phone").arg(past).exec_async(&mut operator).await.unwrap();
    assert_eq!(presence.gateways(held.mailbox).await, []);
    assert_eq!(
        presence.lease(&[lease(1, "phone", TWO, (1, 0, 0))]).await,
        [true],
        "older, but the other is over"
    );
    assert_eq!(presence.gateways(held.mailbox).await, [TWO]);
}

/// Redis loses its data and its scripts: the next renewal is as good as the first.
#[tokio::test]
async fn redis_forgets_everything() {
    let name = cluster();
    let presence = redis_at(&url(), &name);
    let held = lease(1, "phone", ONE, (2, 0, 1));
    presence.lease(std::slice::from_ref(&held)).await;
    let mut operator = operator().await;
    ::redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut operator).await.unwrap();
    for key in keys(&name).await {
        ::redis::cmd("DEL").arg(key).exec_async(&mut operator).await.unwrap();
    }
    assert_eq!(presence.gateways(held.mailbox).await, []);
    assert_eq!(presence.lease(std::slice::from_ref(&held)).await, [true]);
    assert_eq!(presence.gateways(held.mailbox).await, [ONE]);
}

async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let tries = async { while !done().await {} };
    tokio::time::timeout(Duration::from_secs(20), tries).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A Redis that is paused or gone costs each call its timeout, keeps every lease, and is used again when it is back.
#[tokio::test]
async fn redis_stops_and_comes_back() {
    let gate = Gate::open(&url()).await;
    let presence = redis_at(&gate.url(), &cluster());
    let held = lease(1, "phone", ONE, (2, 0, 1));
    assert_eq!(presence.lease(std::slice::from_ref(&held)).await, [true]);
    for gone in [true, false] {
        if gone {
            gate.close();
        } else {
            gate.pause();
        }
        let older = lease(1, "phone", TWO, (1, 0, 1));
        let answers = async {
            assert_eq!(presence.lease(std::slice::from_ref(&older)).await, [true], "nothing is known: go on");
            assert_eq!(presence.gateways(held.mailbox).await, [], "nobody is known: probes find it");
            presence.release(&older).await;
            assert!(matches!(presence.check().await, Err(RedisPresenceError::Unreachable(_))));
        };
        tokio::time::timeout(Duration::from_secs(20), answers).await.expect("every call is bounded");
        gate.serve();
        until("back again", || async { presence.gateways(held.mailbox).await == [ONE] }).await;
        assert_eq!(presence.lease(std::slice::from_ref(&older)).await, [false], "the newer is still there");
    }
}

/// More calls than allowed are not queued without end.
#[tokio::test]
async fn calls_are_bounded() {
    let gate = Gate::open(&url()).await;
    let config =
        RedisConfig { calls_max: 2, timeout: Millis(5000), ..RedisConfig::new(gate.url(), cluster()) };
    let metrics = Arc::new(PresenceMetrics::new(&Registry::new()).unwrap());
    let presence = RedisPresence::open(&config, Arc::clone(&metrics)).unwrap();
    presence.check().await.unwrap();
    gate.pause();
    let calls = futures_util::future::join_all((0..10).map(|n| presence.gateways(MailboxId([n; 16]))));
    assert!(calls.await.iter().all(Vec::is_empty));
    assert_eq!(metrics.calls.with_label_values(&["gateways", "busy"]).get(), 8);
    assert_eq!(metrics.calls.with_label_values(&["gateways", "timeout"]).get(), 2);
}

/// What cannot work is told apart, and no password is repeated.
#[tokio::test]
async fn wrong_settings_are_told() {
    let open = |config: &RedisConfig| {
        RedisPresence::open(config, Arc::new(PresenceMetrics::new(&Registry::new()).unwrap()))
    };
    let refused = open(&RedisConfig::new("http://:hunter2@nowhere", "c")).err().unwrap().to_string();
    assert!(refused.starts_with("redis_url") && !refused.contains("hunter2"), "{refused}");
    let mut config = RedisConfig::new(url(), cluster());
    config.username = "nobody".into();
    config.password = "hunter2".into();
    let refused = open(&config).unwrap().check().await.unwrap_err();
    assert!(matches!(refused, RedisPresenceError::Refused(_)), "{refused}");
    assert!(!refused.to_string().contains("hunter2") && !format!("{config:?}").contains("hunter2"));
    let gone = redis_at("redis://127.0.0.1:1", "c").check().await.unwrap_err();
    assert!(matches!(gone, RedisPresenceError::Unreachable(_)), "{gone}");
}
