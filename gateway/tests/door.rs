//! Who gets in, what is refused, and how connections end, through a whole gateway, in paused time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_gateway::DrainConfig;
use chappe_protocol::close::ErrorScope;
use chappe_protocol::frame::{ClientFrame, GoAwayClass, Secret, ServerFrame};
use chappe_protocol::id::Seq;
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::carrier::every_carrier;
use support::client::{Client, In, submit_to};
use support::{Cluster, FarPresence, sign};

every_carrier! {
async fn bad_tokens_are_told_apart_and_cost_nobody_else_anything() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let exp = cluster.world_wall() / 1000 + 3600;
    let cases = [
        (sign(&serde_json::json!({ "sub": "ben", "device": "phone", "exp": 1000 })), 4401),
        (sign(&serde_json::json!({ "sub": "ben", "device": "laptop", "exp": exp })), 4500),
        (sign(&serde_json::json!({ "sub": "ben", "device": "phone" })), 4500),
        ("garbage".to_owned(), 4500),
    ];
    for (token, code) in cases {
        let mut hello = Client::hello(&cluster, "ben", "phone");
        hello.token = Secret(token);
        let mut client = Client::open(&gateway).await;
        client.send(&ClientFrame::Hello(hello)).await;
        let (frames, closed) = client.until_close().await;
        assert_eq!(closed, code);
        let [ServerFrame::Error(error)] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(error.scope, ErrorScope::Connection);
    }
    let user = chappe_protocol::id::UserId::new("ben").unwrap();
    assert_eq!(cluster.store.user(&user).await.unwrap(), None, "no user was made of a bad token");
    Client::connect(&cluster, &gateway, "ben", "phone").await;
}
}

every_carrier! {
async fn a_connection_begins_with_a_hello_in_time() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut silent = Client::open(&gateway).await;
    let before = cluster.world_now();
    assert_eq!(silent.closed().await, 3006);
    assert!((5000..5100).contains(&(cluster.world_now() - before)));
    let mut eager = Client::open(&gateway).await;
    eager.send(&ClientFrame::Ping { nonce: 1 }).await;
    assert_eq!(eager.closed().await, 3502);
    let mut garbled = Client::open(&gateway).await;
    assert!(garbled.try_send_bytes(&[0xff; 20]).await);
    assert_eq!(garbled.closed().await, 3500);
    let mut twice = Client::connect(&cluster, &gateway, "ben", "phone").await;
    twice.send(&ClientFrame::Hello(Client::hello(&cluster, "ben", "phone"))).await;
    assert_eq!(twice.closed().await, 3502);
    let mut later = Client::connect(&cluster, &gateway, "ben", "phone").await;
    assert!(later.try_send_bytes(&[0x0a, 0xff]).await);
    assert_eq!(later.closed().await, 3500);
    let mut ahead = Client::connect(&cluster, &gateway, "ben", "phone").await;
    ahead.ack(7).await;
    assert_eq!(ahead.closed().await, 3503);
}
}

every_carrier! {
async fn a_half_open_connection_is_found() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let before = cluster.world_now();
    assert_eq!(ben.closed().await, 3001, "no frame for two intervals");
    assert!((50_000..50_100).contains(&(cluster.world_now() - before)));
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    let before = cluster.world_now();
    assert_eq!(ben.closed().await, 3002, "something un-acked and no frame");
    assert!((20_000..20_100).contains(&(cluster.world_now() - before)));
}
}

every_carrier! {
async fn a_reader_that_takes_nothing_is_closed() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    for id in 0..3 {
        assert_eq!(ada.outcome(submit_to(id, &["ben"], &vec![1; 60_000])).await, Outcome::Accepted);
    }
    for nonce in 0..5 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let _perhaps_gone = ben.try_send_bytes(&ClientFrame::Ping { nonce }.encode()).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reasons = gateway.metrics.closed_total.with_label_values(&["write_timeout"]).get();
    let acks = gateway.metrics.closed_total.with_label_values(&["ack_timeout"]).get();
    assert_eq!(reasons + acks, 1);
}
}

every_carrier! {
async fn a_flood_is_warned_and_then_closed() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    for nonce in 0..500 {
        if !ben.try_send_bytes(&ClientFrame::Ping { nonce }.encode()).await {
            break;
        }
    }
    let (frames, code) = ben.until_close().await;
    assert_eq!(code, 3007);
    let warning = frames.iter().find_map(|frame| match frame {
        ServerFrame::Error(error) if error.scope == ErrorScope::Frame => Some(error.clone()),
        _ => None,
    });
    let warning = warning.expect("a warning before the close");
    assert_eq!((&warning.limit_name[..], warning.retryable), ("frames_per_second_max", true));
}
}

every_carrier! {
async fn limits_of_a_submit_are_named() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let mut long = submit_to(2, &["ada"], b"x");
    long.ttl = Millis::from_secs(31 * 24 * 3600);
    let names: Vec<String> = (0..1025).map(|n| format!("user{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let cases = [
        (submit_to(1, &["ada"], &vec![0; 96 * 1024 + 1]), "envelope_bytes_max"),
        (long, "ttl_ms_max"),
        (submit_to(3, &names, b"x"), "targets_max"),
    ];
    for (submit, limit) in cases {
        let id = submit.submit_id;
        ada.send(&ClientFrame::Submit(submit)).await;
        let error = loop {
            if let In::Frame(ServerFrame::Error(error)) = ada.next().await {
                break error;
            }
        };
        assert_eq!(
            (error.scope, error.submit_id, &error.limit_name[..]),
            (ErrorScope::Submit, Some(id), limit)
        );
        assert!(!error.retryable);
    }
    assert_eq!(ada.outcome(submit_to(4, &["ada"], &vec![0; 96 * 1024])).await, Outcome::Accepted);
}
}

every_carrier! {
async fn a_token_ends_its_connection_unless_refreshed() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let short = |user: &str, seconds: u64| {
        let exp = cluster.world_wall() / 1000 + seconds;
        Secret(sign(&serde_json::json!({ "sub": user, "device": "phone", "exp": exp })))
    };
    let mut hello = Client::hello(&cluster, "ben", "phone");
    hello.token = short("ben", 10);
    let mut ben = Client::connect_with(&gateway, hello.clone()).await;
    ben.send(&ClientFrame::Refresh { token: short("ben", 100) }).await;
    let start = cluster.world_now();
    let mut refused = false;
    ben.send(&ClientFrame::Refresh { token: Secret("rubbish".to_owned()) }).await;
    let code = loop {
        match ben.next_within(20_000).await {
            None => ben.send(&ClientFrame::Ping { nonce: 0 }).await,
            Some(In::Close(code)) => break code,
            Some(In::Frame(ServerFrame::Error(error))) if error.code == "refresh_refused" => refused = true,
            Some(In::Frame(_)) => {}
            Some(In::End) => panic!("no close"),
        }
    };
    assert_eq!((code, refused), (4401, true));
    assert!((159_000..161_000).contains(&(cluster.world_now() - start)), "100 s and the skew of 60 s");
    hello.token = short("ben", 10);
    let mut ben = Client::connect_with(&gateway, hello).await;
    ben.send(&ClientFrame::Refresh { token: short("eve", 100) }).await;
    assert_eq!(ben.closed().await, 4500, "another user's token");
}
}

every_carrier! {
async fn a_drain_tells_everybody_at_a_pace_and_ends_within_its_budget() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.drain = DrainConfig { sessions_per_second: 20, ..DrainConfig::default() };
    });
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(Client::connect(&cluster, &gateway, &format!("user{n}"), "phone").await);
    }
    assert_eq!(clients[0].outcome(submit_to(1, &["user1"], b"x")).await, Outcome::Accepted);
    assert_eq!(clients[1].deliver().await.seq, Seq(1));
    clients[1].ack(1).await;
    let start = cluster.world_now();
    gateway.drain.cancel();
    let mut waits = Vec::new();
    for client in &mut clients {
        let (frames, code) = client.until_close().await;
        assert_eq!(code, 3000);
        let go_away = frames.iter().any(
            |frame| matches!(frame, ServerFrame::GoAway(go) if go.class == GoAwayClass::Drain && go.jitter.0 > 0),
        );
        assert!(go_away, "told before it was closed");
        waits.push(cluster.world_now() - start);
    }
    clients.clear();
    gateway.task.await.unwrap();
    let total = cluster.world_now() - start;
    assert!((1000..25_000).contains(&total), "paced, and within the budget: {total} ms");
    let phone = chappe_protocol::id::DeviceId::new("phone").unwrap();
    let mailbox = cluster.mailbox("user1").await;
    assert_eq!(cluster.store.cursor(mailbox, &phone).await.unwrap(), Seq(1), "cursors were written");
    assert!(cluster.presence.is_empty(), "leases were given up");
}
}

every_carrier! {
async fn beyond_its_ceiling_a_gateway_sends_newcomers_away() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.sessions_max = 1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::open(&gateway).await;
    ada.send(&ClientFrame::Hello(Client::hello(&cluster, "ada", "laptop"))).await;
    let (frames, code) = ada.until_close().await;
    assert_eq!(code, 3005);
    assert!(matches!(&frames[0], ServerFrame::GoAway(go) if go.class == GoAwayClass::Shed));
    ben.send(&ClientFrame::Ping { nonce: 3 }).await;
    let pong = In::Frame(ServerFrame::Pong { nonce: 3, upto: Seq(0) });
    while ben.next().await != pong {}
}
}

every_carrier! {
async fn the_admission_bucket_closes_before_any_work() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        (config.handshakes_per_second, config.handshakes_burst) = (1, 2);
    });
    Client::connect(&cluster, &gateway, "ben", "phone").await;
    Client::connect(&cluster, &gateway, "ada", "phone").await;
    let mut refused = gateway.knock().await;
    let read = tokio::io::AsyncReadExt::read_u8(&mut refused).await;
    assert!(read.is_err(), "closed without a byte");
    assert_eq!(gateway.metrics.refused_total.get(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    Client::connect(&cluster, &gateway, "cara", "phone").await;
}
}

every_carrier! {
async fn dropping_the_gateway_drops_every_connection() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    gateway.task.abort();
    loop {
        match ben.next().await {
            In::Frame(_) => {}
            In::End => break,
            In::Close(code) => panic!("a dead process says nothing, but said {code}"),
        }
    }
}
}

every_carrier! {
async fn a_session_that_ends_while_its_lease_is_renewed_leaves_none_behind() {
    let mut cluster = Cluster::new();
    let far = Arc::new(FarPresence { inner: cluster.presence.clone(), lease_ms: AtomicU64::new(0) });
    cluster.leases = far.clone();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    far.lease_ms.store(3000, Ordering::Relaxed);
    // Leases are renewed every 20 s.
    tokio::time::sleep(Duration::from_secs(21)).await;
    drop(ben);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(cluster.presence.is_empty(), "nobody is here");
}
}
