//! How connections end while something else hangs, or begins, in paused time.
//! **Invariant:** nothing outside keeps the end of a connection, or of a gateway, beyond its deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use async_trait::async_trait;
use chappe_protocol::frame::{GoAwayClass, ServerFrame};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use chappe_router::Directory;
use chappe_router::presence::{DeviceLease, Lease, Presence};
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::slotlog::LogConfig;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;
use support::carrier::{carrier, every_carrier};
use support::client::{Client, In, device, submit_to};
use support::{Cluster, Gateway};

/// The deadline of a connection's last steps, and a second.
const FINISHED: Duration = Duration::from_secs(6);

/// Presence that takes leases and never answers to their release.
struct Hanging(Arc<Directory>);

#[async_trait]
impl Presence for Hanging {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        self.0.lease(leases).await
    }
    async fn release(&self, _: &Lease) {
        std::future::pending::<()>().await;
    }
    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        self.0.devices(mailbox).await
    }
}

every_carrier! {
async fn a_presence_that_hangs_does_not_keep_the_end_of_a_connection() {
    let mut cluster = Cluster::new();
    cluster.leases = Arc::new(Hanging(cluster.presence.clone()));
    let gateway = cluster.gateway(1);
    drop(Client::connect(&cluster, &gateway, "ben", "phone").await);
    // Nobody comes any more: the gateway ends with its last connection.
    drop(gateway.door);
    tokio::time::timeout(FINISHED, gateway.task).await.expect("its connection has ended").unwrap();
}
}

every_carrier! {
async fn a_store_that_hangs_does_not_keep_the_end_of_a_connection() {
    let faults = Faults { delay_ms_max: 1 << 40, unavailable: 0, lost_reply: 0, late: 0, stale: 0 };
    let mut faulty = None;
    let cluster = Cluster::over(LogConfig::default(), |world| {
        let rows = Arc::new(Faulty::new(Arc::new(MemoryRows::new(world)), 1, faults));
        rows.switch(false);
        faulty = Some(rows.clone());
        rows
    });
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    ben.deliver().await;
    faulty.unwrap().switch(true);
    ben.ack(1).await;
    drop((ben, ada, gateway.door));
    tokio::time::timeout(FINISHED, gateway.task).await.expect("its connections have ended").unwrap();
}
}

every_carrier! {
async fn a_peer_that_takes_nothing_does_not_keep_a_drain() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    // More than the pipe takes: the close finds no way out.
    assert_eq!(ada.outcome(submit_to(1, &["ben"], &vec![1; 60_000])).await, Outcome::Accepted);
    drop(ada);
    gateway.drain.cancel();
    // Those on UDP may stay for the jitter that they are told.
    let jitter = Duration::from_secs(if carrier().is_udp() { 3 } else { 0 });
    tokio::time::timeout(FINISHED + jitter, gateway.task).await.expect("long before the budget is used up").unwrap();
}
}

every_carrier! {
async fn what_was_acked_last_is_written_when_the_connection_ends() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    ben.deliver().await;
    ben.ack(1).await;
    ben.leave().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stored = cluster.store.cursor(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    assert_eq!(stored, Seq(1));
}
}

every_carrier! {
async fn who_says_goodbye_is_answered_and_what_came_before_counts() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut nobody = Client::open(&gateway).await;
    if !carrier().is_udp() {
        // On QUIC there is nothing yet that could be ended.
        nobody.part().await;
        assert_eq!(nobody.closed().await, 1000, "before a Hello");
    }
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    ben.deliver().await;
    ben.ack(1).await;
    ben.part().await;
    assert_eq!(ben.closed().await, 1000);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stored = cluster.store.cursor(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    assert_eq!((stored, gateway.metrics.sessions.get()), (Seq(1), 1));
}
}

every_carrier! {
async fn a_drain_does_not_outlast_its_budget_whatever_its_sessions_do() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.drain.grace = Millis::from_secs(3600));
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    gateway.drain.cancel();
    let budget = Duration::from_secs(26);
    tokio::time::timeout(budget, gateway.task).await.expect("25 s are its budget").unwrap();
    while ben.next().await != In::End {}
}
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Presence that does something else while it takes the first lease.
struct Ambush {
    inner: Arc<Directory>,
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

#[async_trait]
impl Presence for Ambush {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        self.inner.lease(leases).await
    }
    async fn release(&self, lease: &Lease) {
        self.inner.release(lease).await;
    }
    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        self.inner.devices(mailbox).await
    }
}

every_carrier! {
/// On another thread the drain may count the sessions after this one has its lease and before it stands in the registry.
async fn a_session_that_enters_while_a_drain_starts_is_told_and_closed() {
    let mut cluster = Cluster::new();
    let ambush = Arc::new(Ambush { inner: cluster.presence.clone(), meanwhile: Mutex::default() });
    cluster.leases = ambush.clone();
    let (door, udp, drain, metrics, running) = cluster.unstarted(1, |_| {});
    let running: Arc<Mutex<Running>> = Arc::new(Mutex::new(Box::pin(running)));
    let ours = running.clone();
    #[allow(clippy::disallowed_methods)] // waited for below
    let task = tokio::spawn(poll_fn(move |cx| ours.lock().unwrap().as_mut().poll(cx)));
    let gateway = Gateway { door, net: cluster.net.clone(), udp, drain: drain.clone(), task, metrics, io: Arc::default() };
    *ambush.meanwhile.lock().unwrap() = Some(Box::new(move || {
        drain.cancel();
        // The drain starts here and now, and finds no session; its own task goes on with it later.
        let ended = running.lock().unwrap().as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(ended.is_pending(), "a connection is still there");
    }));
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let start = cluster.world_now();
    let (frames, code) = ben.until_close().await;
    assert_eq!(code, 3000);
    let told =
        |frame: &ServerFrame| matches!(frame, ServerFrame::GoAway(go) if go.class == GoAwayClass::Drain);
    assert!(frames.iter().any(told), "told before it was closed: {frames:?}");
    assert!(cluster.world_now() - start < 1000, "within its grace");
    drop(ben);
    tokio::time::timeout(FINISHED, gateway.task).await.expect("nobody was left behind").unwrap();
    assert!(cluster.presence.is_empty(), "its lease was given up");
}
}
