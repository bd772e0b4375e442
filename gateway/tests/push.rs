//! A device says where and when it is woken, in paused time. **Invariant:** what was answered is durable and sealed; whatever
//! is refused says why, and the session goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use bytes::Bytes;
use chappe_gateway::GatewayConfig;
use chappe_protocol::close::{CloseCode, ErrorFrame};
use chappe_protocol::frame::{ClientFrame, Hello, Reply, Request, Role, ServerFrame};
use chappe_protocol::id::Seq;
use chappe_protocol::internode::Outcome;
use chappe_protocol::push::{
    ApnsKind, AppName, PUSH_TARGETS_MAX, PushAddress, PushSettings, PushTarget, Quiet, QuietHours,
};
use chappe_protocol::time::UnixMillis;
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::sealed::PushKeys;
use chappe_storage::slotlog::LogConfig;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::carrier::every_carrier;
use support::client::{Client, In, device, submit_to};
use support::{Cluster, Gateway};

fn keys() -> PushKeys {
    PushKeys::new(&[7; 32], [&[6; 32]]).unwrap()
}

fn with_key(config: &mut GatewayConfig) {
    config.push_keys = Some(Arc::new(keys()));
}

fn fcm(token: &str) -> PushTarget {
    let app = AppName::new("project-7").unwrap();
    PushTarget { app, address: PushAddress::Fcm { token: token.into() }, registered_at: UnixMillis(0) }
}

fn to(targets: Vec<PushTarget>) -> PushSettings {
    PushSettings { targets, quiet: Quiet::default() }
}

/// Everything there is to say.
fn all() -> PushSettings {
    let app = AppName::new("org.example.chat").unwrap();
    let address = PushAddress::Apns { token: b"kvqzkvqzkvqz".to_vec(), kind: ApnsKind::Voip };
    let apns = PushTarget { app, address, registered_at: UnixMillis(0) };
    let night = vec![QuietHours::new(1320, 390).unwrap()];
    let quiet = Quiet::new(night, Some(UnixMillis(1_767_300_000_000)), true).unwrap();
    PushSettings { targets: vec![apns, fcm("kvqzkvqzkvqz")], quiet }
}

async fn ask(client: &mut Client, id: u64, settings: PushSettings) {
    client.send(&ClientFrame::Request { id, request: Request::SetPush(settings) }).await;
}

async fn reply(client: &mut Client) -> (u64, Reply) {
    loop {
        match client.next().await {
            In::Frame(ServerFrame::Reply { id, reply }) => return (id, reply),
            In::Frame(_) => {}
            other => panic!("no reply but {other:?}"),
        }
    }
}

async fn asked(client: &mut Client, id: u64, settings: PushSettings) -> Reply {
    ask(client, id, settings).await;
    let (of, reply) = reply(client).await;
    assert_eq!(of, id);
    reply
}

fn error(reply: Reply) -> ErrorFrame {
    match reply {
        Reply::Error(error) => error,
        Reply::PushSet => panic!("it was set"),
    }
}

async fn sealed(cluster: &Cluster) -> Option<Bytes> {
    cluster.store.push_targets(cluster.mailbox("ben").await, &device("phone")).await.unwrap()
}

/// What a pusher reads.
async fn stored(cluster: &Cluster) -> PushSettings {
    let blob = sealed(cluster).await.expect("something is registered");
    keys().open(&blob, cluster.mailbox("ben").await, &device("phone")).unwrap()
}

fn count(gateway: &Gateway, outcome: &str) -> u64 {
    gateway.metrics.requests_total.with_label_values(&[outcome]).get()
}

every_carrier! {
async fn what_a_device_says_is_stored_sealed_replaced_and_taken_back() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, with_key);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = cluster.world_wall();
    assert_eq!(asked(&mut ben, 7, all()).await, Reply::PushSet);
    let there = stored(&cluster).await;
    for target in &there.targets {
        assert!((before..=cluster.world_wall()).contains(&target.registered_at.0), "by the gateway's clock");
    }
    let addresses = |set: &PushSettings| {
        set.targets.iter().map(|target| (target.app.clone(), target.address.clone())).collect::<Vec<_>>()
    };
    assert_eq!((addresses(&there), &there.quiet), (addresses(&all()), &all().quiet));
    let blob = sealed(&cluster).await.unwrap();
    assert!(!blob.windows(4).any(|bytes| bytes == b"kvqz"), "no token stands in the store");

    assert_eq!(asked(&mut ben, 7, to(vec![fcm("another")])).await, Reply::PushSet);
    let there = stored(&cluster).await;
    assert_eq!(addresses(&there), addresses(&to(vec![fcm("another")])));
    assert_eq!(there.quiet, Quiet::default(), "all is replaced");
    assert_eq!(asked(&mut ben, u64::MAX, PushSettings::default()).await, Reply::PushSet);
    assert!(stored(&cluster).await.targets.is_empty(), "it is not woken any more");
    assert_eq!((count(&gateway, "push_set"), count(&gateway, "push_cleared")), (2, 1));
}
}

every_carrier! {
async fn what_is_out_of_bounds_or_unknown_is_answered_and_the_session_goes_on() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, with_key);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    ask(&mut ben, 1, to(vec![fcm("t"); PUSH_TARGETS_MAX + 1])).await;
    // A field 100 where a body should be.
    assert!(ben.try_send_bytes(&[0x32, 0x05, 0x08, 0x02, 0xa2, 0x06, 0x00]).await);
    ask(&mut ben, 3, to(vec![fcm(&"t".repeat(4096)); PUSH_TARGETS_MAX])).await;
    ask(&mut ben, 4, to(vec![fcm("t")])).await;
    let codes = ["bad_request", "unknown_request", "bad_request"];
    for (wanted, code) in (1..).zip(codes) {
        let (id, reply) = reply(&mut ben).await;
        let error = error(reply);
        assert_eq!((id, &error.code[..], error.retryable), (wanted, code, false), "{}", error.message);
    }
    assert_eq!(reply(&mut ben).await, (4, Reply::PushSet));
    assert_eq!((count(&gateway, "bad_request"), count(&gateway, "unknown_request")), (2, 1));
}
}

#[tokio::test(start_paused = true)]
async fn a_peek_may_not_and_a_gateway_without_a_key_does_not() {
    let cluster = Cluster::new();
    let (gateway, keyless) = (cluster.gateway_with(1, with_key), cluster.gateway(2));
    let mut ben = Client::connect(&cluster, &keyless, "ben", "phone").await;
    let refused = error(asked(&mut ben, 1, to(vec![fcm("t")])).await);
    assert_eq!((&refused.code[..], refused.retryable), ("push_unavailable", false));
    assert!(refused.message.contains("push.key"), "a hint: {}", refused.message);
    let hello = Hello { role: Role::Peek, ..Client::hello(&cluster, "ben", "phone") };
    let mut peek = Client::connect_with(&gateway, hello).await;
    let refused = error(asked(&mut peek, 1, to(vec![fcm("t")])).await);
    assert_eq!((&refused.code[..], refused.retryable), ("not_main", false));
    assert_eq!(sealed(&cluster).await, None);
}

#[tokio::test(start_paused = true)]
async fn ten_a_minute_are_enough() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, with_key);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    for id in 0..10 {
        assert_eq!(asked(&mut ben, id, to(vec![fcm("t")])).await, Reply::PushSet);
    }
    let refused = error(asked(&mut ben, 10, to(vec![fcm("other")])).await);
    assert_eq!((&refused.code[..], refused.retryable), ("rate", true));
    assert!((5000..=6000).contains(&refused.retry_after_ms), "{}", refused.retry_after_ms);
    assert_eq!(stored(&cluster).await.targets[0].address, fcm("t").address);
    tokio::time::sleep(Duration::from_millis(refused.retry_after_ms.into())).await;
    assert_eq!(asked(&mut ben, 11, to(vec![fcm("other")])).await, Reply::PushSet);
}

#[tokio::test(start_paused = true)]
async fn a_revoked_device_is_closed() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, with_key);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    cluster.links.deaf.store(true, Ordering::Relaxed);
    cluster.store.revoke(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    ask(&mut ben, 1, to(vec![fcm("t")])).await;
    let (frames, code) = ben.until_close().await;
    assert_eq!(code, CloseCode::DeviceRevoked.code());
    assert!(!frames.iter().any(|frame| matches!(frame, ServerFrame::Reply { .. })), "{frames:?}");
    assert_eq!(count(&gateway, "device_revoked"), 1);
    assert_eq!(sealed(&cluster).await, None);
}

/// A cluster whose store fails like this from the switch on.
fn failing(faults: Faults) -> (Cluster, Arc<Faulty<MemoryRows>>) {
    let mut faulty = None;
    let cluster = Cluster::over(LogConfig::default(), |world| {
        let rows = Arc::new(Faulty::new(Arc::new(MemoryRows::new(world)), 1, faults));
        rows.switch(false);
        faulty = Some(rows.clone());
        rows
    });
    (cluster, faulty.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_told_and_the_same_passes_later() {
    let none = Faults { delay_ms_max: 0, unavailable: 0, lost_reply: 0, late: 0, stale: 0 };
    for faults in [Faults { unavailable: 1000, ..none }, Faults { lost_reply: 1000, ..none }] {
        let (cluster, rows) = failing(faults);
        let gateway = cluster.gateway_with(1, with_key);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        rows.switch(true);
        let refused = error(asked(&mut ben, 1, to(vec![fcm("t")])).await);
        assert_eq!((&refused.code[..], refused.retryable), ("unavailable", true), "{}", refused.message);
        assert!((2000..=4000).contains(&refused.retry_after_ms), "{}", refused.retry_after_ms);
        rows.switch(false);
        assert_eq!(asked(&mut ben, 2, to(vec![fcm("t")])).await, Reply::PushSet);
    }
}

every_carrier! {
async fn a_store_that_hangs_keeps_nobody_else_waiting_and_few_requests() {
    let faults = Faults { delay_ms_max: 1 << 40, unavailable: 0, lost_reply: 0, late: 0, stale: 0 };
    let (cluster, rows) = failing(faults);
    let gateway = cluster.gateway_with(1, with_key);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let whisper = |id| {
        let mut whisper = submit_to(id, &["ben"], b"typing");
        whisper.ephemeral = true;
        whisper
    };
    // So that the gateway knows ben's mailbox without its store.
    assert_eq!(ada.outcome(whisper(1)).await, Outcome::Accepted);
    rows.switch(true);
    for id in 1..=6 {
        ask(&mut ben, id, to(vec![fcm("t")])).await;
    }
    let (id, sixth) = reply(&mut ben).await;
    assert_eq!((id, &error(sixth).code[..]), (6, "rate"), "one is with the store, four wait");
    assert_eq!(gateway.metrics.requests_waiting.get(), 5);
    assert_eq!(ada.outcome(whisper(2)).await, Outcome::Accepted);
    ben.send(&ClientFrame::Ping { nonce: 9 }).await;
    let mut seen = (false, false);
    while let Some(event) = ben.next_within(100).await {
        match event {
            In::Frame(ServerFrame::Pong { nonce: 9, .. }) => seen.0 = true,
            In::Frame(ServerFrame::Ephemeral { .. }) => seen.1 = true,
            In::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, (true, true), "a pong and an envelope");
    for wanted in 1..=3 {
        ben.send(&ClientFrame::Ping { nonce: wanted }).await;
        let (id, late) = reply(&mut ben).await;
        assert_eq!((id, &error(late).code[..]), (wanted, "unavailable"), "in order, after the budget");
    }
    drop(ben);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(gateway.metrics.requests_waiting.get(), 0);
}
}

/// Pings for so long, so that the gateway takes it for slow and not for dead.
async fn dawdle(client: &mut Client, seconds: u64) {
    for nonce in 0..seconds / 5 {
        client.send(&ClientFrame::Ping { nonce }).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn is_noted(cluster: &Cluster, since: u64) -> bool {
    let (noted, _) = cluster.store.pending_since(UnixMillis(since)).await.unwrap();
    noted.contains(&cluster.mailbox("ben").await)
}

every_carrier! {
async fn who_is_left_silent_with_something_un_acked_is_noted_for_the_sweepers() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    // Long enough for all notes of before to be old.
    dawdle(&mut ben, 300).await;
    let silent = cluster.world_wall();
    assert!(!is_noted(&cluster, silent).await, "nothing has happened since");
    assert_eq!(ben.closed().await, CloseCode::AckTimeout.code());
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(is_noted(&cluster, silent).await);
    let leases = cluster.leases.devices(cluster.mailbox("ben").await).await.unwrap();
    assert!(leases.is_empty(), "and its lease is gone");
    assert_eq!(gateway.metrics.left_unacked_total.get(), 1);
}
}

every_carrier! {
async fn who_has_acked_all_or_was_taken_over_is_not_noted() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    let mut newer = Client::connect(&cluster, &gateway, "ben", "phone").await;
    assert_eq!(ben.closed().await, CloseCode::ConnectedElsewhere.code());
    assert_eq!(newer.deliver().await.seq, Seq(1));
    newer.ack(1).await;
    dawdle(&mut newer, 10).await;
    newer.leave().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(gateway.metrics.left_unacked_total.get(), 0);
}
}
