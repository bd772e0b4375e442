//! Who may come back how, and whose place it is, in paused time.
//! **Invariant:** a resume is honoured only for the newest session of a device that may still come.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use async_trait::async_trait;
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::{ClientFrame, Hello, Role, Secret, ServerFrame};
use chappe_protocol::id::{ConnectionId, MailboxId, Seq};
use chappe_protocol::internode::Outcome;
use chappe_router::Directory;
use chappe_router::presence::{DeviceLease, Lease, Presence};
use chappe_storage::memory::MemoryRows;
use chappe_storage::rows::Rows;
use chappe_storage::slotlog::LogConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::carrier::every_carrier;
use support::client::{Client, In, device, submit_to};
use support::{Cluster, FarPresence, Gateway};

/// What a Hello is answered with, if not with a Welcome: the code of the close.
async fn refused(gateway: &Gateway, hello: Hello) -> u16 {
    let mut client = Client::open(gateway).await;
    client.send(&ClientFrame::Hello(hello)).await;
    let (frames, code) = client.until_close().await;
    assert!(!frames.iter().any(|frame| matches!(frame, ServerFrame::Welcome(_))), "welcomed, then {code}");
    code
}

every_carrier! {
async fn a_revoked_device_neither_attaches_nor_resumes_nor_peeks() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let resume = ben.again(&cluster, "ben", "phone", 0);
    drop(ben);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.store.revoke(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    let attach = Client::hello(&cluster, "ben", "phone");
    let peek = Hello { role: Role::Peek, ..attach.clone() };
    for hello in [resume, attach, peek] {
        assert_eq!(refused(&gateway, hello).await, 4501);
    }
}
}

every_carrier! {
async fn a_ticket_of_an_older_session_does_not_resume() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let first = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let old = first.again(&cluster, "ben", "phone", 0);
    let second = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let newer = second.welcome().epoch;
    drop((first, second));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let third = Client::connect_with(&gateway, old).await;
    assert!(!third.welcome().resumed);
    assert!(third.welcome().epoch > newer, "an epoch of its own");
}
}

every_carrier! {
/// Two attaches may have taken the same epoch: the greater connection is the newer.
async fn a_ticket_of_the_lesser_of_two_sessions_with_one_epoch_does_not_resume() {
    let mut kept = None;
    let cluster = Cluster::over(LogConfig::default(), |world| {
        let rows = Arc::new(MemoryRows::new(world));
        kept = Some(rows.clone());
        rows
    });
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let (ticket, epoch) = (ben.again(&cluster, "ben", "phone", 0), ben.welcome().epoch);
    drop(ben);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mailbox, greater) = (cluster.mailbox("ben").await, ConnectionId([0xff; 16]));
    kept.unwrap().raise_session(mailbox, &device("phone"), epoch, greater).await.unwrap();
    let ben = Client::connect_with(&gateway, ticket).await;
    assert!(!ben.welcome().resumed);
    assert!(ben.welcome().epoch > epoch);
}
}

every_carrier! {
async fn the_cursor_of_a_resume_counts_as_an_ack_and_is_written() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    // Persisted, and the ack never sent.
    let hello = ben.again(&cluster, "ben", "phone", 1);
    drop(ben);
    let ben = Client::connect_with(&gateway, hello).await;
    assert!(ben.welcome().resumed);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let stored = cluster.store.cursor(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    assert_eq!(stored, Seq(1));
}
}

/// Presence that says of the next lease that a newer socket holds it.
struct Lost {
    inner: Arc<Directory>,
    next: AtomicBool,
}

#[async_trait]
impl Presence for Lost {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        if self.next.swap(false, Ordering::Relaxed) {
            return vec![false; leases.len()];
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
async fn a_resume_that_does_not_get_the_lease_takes_a_new_epoch() {
    let mut cluster = Cluster::new();
    let lost = Arc::new(Lost { inner: cluster.presence.clone(), next: AtomicBool::new(false) });
    cluster.leases = lost.clone();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let (hello, epoch) = (ben.again(&cluster, "ben", "phone", 0), ben.welcome().epoch);
    drop(ben);
    tokio::time::sleep(Duration::from_secs(1)).await;
    lost.next.store(true, Ordering::Relaxed);
    let ben = Client::connect_with(&gateway, hello).await;
    assert!(!ben.welcome().resumed);
    assert!(ben.welcome().epoch > epoch);
    assert!(!cluster.presence.is_empty(), "it can be rung");
}
}

every_carrier! {
async fn an_attach_that_was_overtaken_is_not_welcomed() {
    let mut cluster = Cluster::new();
    let far = Arc::new(FarPresence { inner: cluster.presence.clone(), lease_ms: AtomicU64::new(3000) });
    cluster.leases = far.clone();
    let gateway = cluster.gateway(1);
    let mut slow = Client::open(&gateway).await;
    slow.send(&ClientFrame::Hello(Client::hello(&cluster, "ben", "phone"))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    far.lease_ms.store(0, Ordering::Relaxed);
    let mut quick = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let (frames, code) = slow.until_close().await;
    assert_eq!(code, 4409);
    assert!(!frames.iter().any(|frame| matches!(frame, ServerFrame::Welcome(_))), "{frames:?}");
    quick.send(&ClientFrame::Ping { nonce: 5 }).await;
    let pong = In::Frame(ServerFrame::Pong { nonce: 5, upto: Seq(0) });
    while quick.next().await != pong {}
}
}

every_carrier! {
async fn what_is_committed_between_attach_and_lease_does_not_wait_for_a_probe() {
    let mut cluster = Cluster::new();
    let far = Arc::new(FarPresence { inner: cluster.presence.clone(), lease_ms: AtomicU64::new(0) });
    cluster.leases = far.clone();
    let gateway = cluster.gateway(1);
    drop(Client::connect(&cluster, &gateway, "ben", "phone").await);
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    far.lease_ms.store(3000, Ordering::Relaxed);
    let mut ben = Client::open(&gateway).await;
    ben.send(&ClientFrame::Hello(Client::hello(&cluster, "ben", "phone"))).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    let start = cluster.world_now();
    assert_eq!(ben.deliver().await.seq, Seq(1));
    assert!(cluster.world_now() - start < 3000, "as soon as the lease is taken");
}
}

every_carrier! {
async fn an_erased_user_comes_back_to_an_empty_mailbox() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let before = ben.welcome().tag;
    // With the tokens of the session, which say where it was.
    let resume = ben.again(&cluster, "ben", "phone", 0);
    drop(ben);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for hello in [resume, Client::hello(&cluster, "ben", "phone")] {
        cluster.store.erase(&chappe_protocol::id::UserId::new("ben").unwrap()).await.unwrap();
        let ben = Client::connect_with(&gateway, hello).await;
        assert_ne!(ben.welcome().tag, before, "another mailbox");
        assert!(!ben.welcome().resumed);
        assert_eq!(ben.welcome().from, Seq(0));
    }
}
}

every_carrier! {
async fn a_peek_cannot_be_resumed() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    drop(Client::connect(&cluster, &gateway, "ben", "phone").await);
    let hello = Hello { role: Role::Peek, ..Client::hello(&cluster, "ben", "phone") };
    let peek = Client::connect_with(&gateway, hello).await;
    assert!(peek.welcome().resume_token.is_empty());
}
}

every_carrier! {
async fn whoever_wrote_to_an_erased_user_finds_the_new_mailbox() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    drop(Client::connect(&cluster, &two, "ben", "phone").await);
    let mut ada = Client::connect(&cluster, &one, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"1")).await, Outcome::Accepted);
    cluster.store.erase(&chappe_protocol::id::UserId::new("ben").unwrap()).await.unwrap();
    let mut ben = Client::connect(&cluster, &two, "ben", "phone").await;
    // The first one may still go to where ben was; it is told so, and the gateway looks again.
    assert_eq!(ada.outcome(submit_to(2, &["ben"], b"2")).await, Outcome::UnknownUser);
    assert_eq!(ada.outcome(submit_to(3, &["ben"], b"3")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.payload[..], *b"3");
}
}

every_carrier! {
async fn an_attach_that_hangs_is_told_to_come_again() {
    let mut cluster = Cluster::new();
    let far = FarPresence { inner: cluster.presence.clone(), lease_ms: AtomicU64::new(1 << 40) };
    cluster.leases = Arc::new(far);
    let gateway = cluster.gateway(1);
    let start = cluster.world_now();
    assert_eq!(refused(&gateway, Client::hello(&cluster, "ben", "phone")).await, 3004);
    assert!((10_000..10_100).contains(&(cluster.world_now() - start)));
}
}

every_carrier! {
async fn a_resume_token_is_no_access_token() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let good = ben.again(&cluster, "ben", "phone", 0);
    let signature = good.token.0.rsplit_once('.').unwrap().1.to_owned();
    let of_eve = cluster.token("eve", "phone");
    let forged = [
        // Somebody else's claims; no signature; the signature of another.
        format!("{}.{signature}", of_eve.rsplit_once('.').unwrap().0),
        format!("{}.", good.token.0.rsplit_once('.').unwrap().0),
        format!("{}.{}", good.token.0.rsplit_once('.').unwrap().0, of_eve.rsplit_once('.').unwrap().1),
    ];
    for token in forged {
        let hello = Hello { token: Secret(token), ..good.clone() };
        assert_eq!(refused(&gateway, hello).await, CloseCode::TokenInvalid.code());
    }
    // The same, unchanged; and a fresh one of the same user: both resume.
    let again = Client::connect_with(&gateway, good).await;
    assert!(again.welcome().resumed);
    tokio::time::advance(Duration::from_secs(2)).await;
    let fresh = again.again(&cluster, "ben", "phone", 0);
    let last = Client::connect_with(&gateway, fresh).await;
    assert!(last.welcome().resumed);
    // Eve's own token with ben's resume token: a session of hers, begun anew.
    let hello = Hello {
        resume_token: last.welcome().resume_token.clone(),
        ..Client::hello(&cluster, "eve", "phone")
    };
    let eve = Client::connect_with(&gateway, hello).await;
    assert!(!eve.welcome().resumed);
}
}
