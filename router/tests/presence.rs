//! Presence in the memory of one process and in a real Redis (`CHAPPE_TEST_REDIS_URL`): the same laws, and what happens when
//! Redis forgets, stops answering, goes away and comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

mod common;

use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, GatewayId, MailboxId};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_router::presence::{DeviceLease, LEASE_MS, Lease, Presence};
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

/// Each device with the gateway of its newest lease, in order; a released one is not there.
async fn every_device_is_told(presence: &dyn Presence) {
    let (ben, web) = (MailboxId([1; 16]), lease(1, "web", TWO, (1, 0, 1)));
    assert_eq!(presence.devices(ben).await, Some(vec![]), "it answers: nobody is there");
    let phone = lease(1, "phone", ONE, (1, 0, 1));
    presence.lease(&[web.clone(), phone, lease(2, "pad", TWO, (1, 0, 1))]).await;
    presence.lease(&[lease(1, "phone", TWO, (2, 0, 1))]).await;
    let told = |leases: Option<Vec<DeviceLease>>| -> Vec<(String, GatewayId)> {
        let leases = leases.unwrap();
        assert!(leases.iter().all(|lease| lease.age < Millis(LEASE_MS)), "{leases:?}");
        leases.into_iter().map(|lease| (lease.device.as_str().to_owned(), lease.gateway)).collect()
    };
    let both = [("phone".to_owned(), TWO), ("web".to_owned(), TWO)];
    assert_eq!(told(presence.devices(ben).await), both);
    assert_eq!(presence.gateways(ben).await, [TWO], "each once");
    presence.release(&web).await;
    assert_eq!(told(presence.devices(ben).await), both[..1]);
}

#[tokio::test(start_paused = true)]
async fn in_memory_a_lease_ages_until_it_is_renewed_or_over() {
    let presence = memory();
    let held = lease(1, "phone", ONE, (2, 0, 1));
    let age = async || {
        let leases = presence.devices(MailboxId([1; 16])).await.unwrap();
        leases.first().map(|lease| lease.age)
    };
    presence.lease(std::slice::from_ref(&held)).await;
    assert_eq!(age().await, Some(Millis(0)));
    tokio::time::advance(Duration::from_secs(21)).await;
    assert_eq!(age().await, Some(Millis(21_000)));
    presence.lease(&[lease(1, "phone", TWO, (1, 0, 1))]).await;
    assert_eq!(age().await, Some(Millis(21_000)), "an older claim renews nothing");
    presence.lease(std::slice::from_ref(&held)).await;
    assert_eq!(age().await, Some(Millis(0)), "renewed");
    tokio::time::advance(Duration::from_millis(LEASE_MS - 1)).await;
    assert_eq!(age().await, Some(Millis(LEASE_MS - 1)));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(age().await, None, "over");
}

#[tokio::test(start_paused = true)]
async fn laws_in_memory() {
    every_device_is_told(&*memory()).await;
    the_newest_lease_stands(&*memory()).await;
    a_batch_holds_many(&*memory()).await;
    only_the_holder_releases(&*memory()).await;
}

#[tokio::test]
async fn laws_in_redis() {
    redis().check().await.unwrap();
    every_device_is_told(&*redis()).await;
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
    // As it stands there 20 s before its time.
    let value: String = ::redis::cmd("HGET").arg(key).arg("phone").query_async(&mut operator).await.unwrap();
    let (now, _): (u64, u64) = ::redis::cmd("TIME").query_async(&mut operator).await.unwrap();
    let soon = format!("{}{}", &value[..88], now * 1000 + 20_000);
    ::redis::cmd("HSET").arg(key).arg("phone").arg(soon).exec_async(&mut operator).await.unwrap();
    let age = presence.devices(held.mailbox).await.unwrap()[0].age;
    assert!(age >= Millis(40_000), "{age:?}");
    // As it stands there after its time, kept alive by another device's lease.
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

/// Every pusher hears of all that live; who leaves is gone at once, whoever does not renew by the clock of Redis; clusters are apart.
#[tokio::test]
async fn pushers_know_each_other() {
    let name = cluster();
    let (presence, other) = (redis_at(&url(), &name), redis());
    let minute = Millis::from_secs(60);
    let (first, second) = (u64::MAX, 7);
    assert_eq!(presence.join_pushers(first, minute).await, Some(vec![first]));
    assert_eq!(presence.join_pushers(second, minute).await, Some(vec![second, first]), "in order");
    assert_eq!(presence.join_pushers(first, minute).await, Some(vec![second, first]), "renewed, not twice");
    assert_eq!(other.join_pushers(3, minute).await, Some(vec![3]));
    presence.leave_pushers(second).await;
    assert_eq!(presence.join_pushers(first, minute).await, Some(vec![first]));
    // As if its lease had ended.
    let key = format!("chappe:{name}:pushers");
    let mut operator = operator().await;
    let left: u64 = ::redis::cmd("PTTL").arg(&key).query_async(&mut operator).await.unwrap();
    assert!((1..=60_000).contains(&left), "it goes by itself: {left}");
    ::redis::cmd("ZADD")
        .arg(&key)
        .arg(1)
        .arg(format!("{first:016x}"))
        .exec_async(&mut operator)
        .await
        .unwrap();
    assert_eq!(presence.join_pushers(second, Millis(5)).await, Some(vec![second]));
    until("a short lease ends", || async { presence.join_pushers(first, minute).await == Some(vec![first]) })
        .await;
    assert!(presence.join_pushers(second, Millis(5)).await.is_some());
    let left: u64 = ::redis::cmd("PTTL").arg(&key).query_async(&mut operator).await.unwrap();
    assert!(left > 30_000, "a short lease does not shorten the others: {left}");
}

/// The set is bounded, and whoever joins is in it.
#[tokio::test]
async fn pushers_are_bounded() {
    let name = cluster();
    let presence = redis_at(&url(), &name);
    let key = format!("chappe:{name}:pushers");
    let mut operator = operator().await;
    let mut many = ::redis::cmd("ZADD");
    many.arg(&key);
    for n in 0..2000_u64 {
        many.arg(4_000_000_000_000 + n).arg(format!("{n:016x}"));
    }
    many.exec_async(&mut operator).await.unwrap();
    let live = presence.join_pushers(5000, Millis(1000)).await.unwrap();
    assert_eq!(live.len(), 1024);
    assert_eq!((live[0], live.last()), (2000 - 1023, Some(&5000)), "those whose lease ends first have gone");
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
            assert_eq!(presence.devices(held.mailbox).await, None, "it does not answer");
            assert_eq!(presence.gateways(held.mailbox).await, [], "nobody is known: probes find it");
            assert_eq!(presence.join_pushers(1, Millis(1000)).await, None);
            presence.leave_pushers(1).await;
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
    assert_eq!(metrics.calls.with_label_values(&["devices", "busy"]).get(), 8);
    assert_eq!(metrics.calls.with_label_values(&["devices", "timeout"]).get(), 2);
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
