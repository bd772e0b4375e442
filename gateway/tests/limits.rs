//! What one connection may ask of a gateway at most, in paused time.
//! **Invariant:** what goes beyond a limit is told, or its socket is not read; it never grows in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_protocol::close::ErrorFrame;
use chappe_protocol::frame::{ClientFrame, Limits, ServerFrame, Submit, SubmitResult};
use chappe_protocol::id::{Seq, SubmitId};
use chappe_protocol::internode::Outcome;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::carrier::every_carrier;
use support::client::{Client, In, submit_to};
use support::{Cluster, session};

/// The answer to a submit: its result, or why it was refused.
async fn answer(client: &mut Client, id: SubmitId) -> Result<SubmitResult, ErrorFrame> {
    loop {
        match client.next().await {
            In::Frame(ServerFrame::SubmitResult(result)) if result.submit_id == id => return Ok(result),
            In::Frame(ServerFrame::Error(error)) if error.submit_id == Some(id) => return Err(error),
            In::Frame(_) => {}
            other => panic!("no answer but {other:?}"),
        }
    }
}

fn whisper(id: u8) -> Submit {
    Submit { ephemeral: true, ..submit_to(id, &["ben"], b"typing") }
}

every_carrier! {
async fn ephemerals_have_a_rate_of_their_own() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let mut refusals = Vec::new();
    for id in 0..50 {
        let whisper = whisper(id);
        let submit_id = whisper.submit_id;
        ada.send(&ClientFrame::Submit(whisper)).await;
        refusals.extend(answer(&mut ada, submit_id).await.err());
    }
    assert_eq!(refusals.len(), 10, "40 at once");
    assert!(refusals.iter().all(|error| error.limit_name == "ephemerals_per_second_max" && error.retryable));
    assert_eq!(ada.outcome(submit_to(99, &["ben"], b"x")).await, Outcome::Accepted, "others go on");
}
}

every_carrier! {
async fn few_ephemerals_are_under_way_at_once() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.links.hang.store(true, Ordering::Relaxed);
    for id in 0..17 {
        ada.send(&ClientFrame::Submit(whisper(id))).await;
    }
    let error = answer(&mut ada, SubmitId([16; 16])).await.expect_err("16 hang already");
    assert_eq!((&error.limit_name[..], error.retry_after_ms), ("ephemerals_per_second_max", 1000));
}
}

every_carrier! {
async fn a_submit_that_comes_too_fast_is_refused_and_not_overtaken() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.session = session(|s| (s.limits.frames_per_second_max, s.limits.frames_burst_max) = (1, 10));
    });
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    for nonce in 0..10 {
        ada.send(&ClientFrame::Ping { nonce }).await;
    }
    let (first, second) = (submit_to(1, &["ben"], b"1"), submit_to(2, &["ben"], b"2"));
    ada.send(&ClientFrame::Submit(first.clone())).await;
    let error = answer(&mut ada, first.submit_id).await.expect_err("the eleventh frame");
    assert_eq!((&error.limit_name[..], error.retryable), ("frames_per_second_max", true));
    tokio::time::sleep(Duration::from_secs(5)).await;
    // It was refused for now and will come again: what was sent behind it must not go before it.
    assert_eq!(ada.outcome(second.clone()).await, Outcome::NotAttempted);
    let head = cluster.store.head(cluster.mailbox("ben").await, true).await.unwrap();
    assert_eq!(head, Seq(0));
    for submit in [first, second] {
        assert_eq!(ada.outcome(Submit { attempt: 2, ..submit }).await, Outcome::Accepted);
    }
}
}

every_carrier! {
/// More undecided envelopes than can be kept in order: what is on its way must not be served, so the socket goes.
async fn whoever_has_too_much_undecided_begins_anew() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.session = session(|s| s.limits.submits_in_flight_max = 1);
    });
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.links.hang.store(true, Ordering::Relaxed);
    ada.send(&ClientFrame::Submit(submit_to(100, &["ben"], b"x"))).await;
    // The others are refused for now, and are owed: 1,000 each.
    for id in 0..5_u8 {
        let users: Vec<String> = (0..1000).map(|n| format!("user{id}x{n}")).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        ada.send(&ClientFrame::Submit(submit_to(id, &users, b"x"))).await;
    }
    loop {
        match ada.next().await {
            In::Frame(_) => {}
            other => break assert!(matches!(other, In::Close(3005)), "{other:?}"),
        }
    }
}
}

/// Sends until the gateway takes no more for a second; how many frames it took.
async fn taken(client: &mut Client, frames: impl Iterator<Item = Submit>) -> usize {
    let mut count = 0;
    for submit in frames {
        let bytes = ClientFrame::Submit(submit).encode();
        let sent = tokio::time::timeout(Duration::from_secs(1), client.try_send_bytes(&bytes)).await;
        if sent.is_err() {
            break;
        }
        count += 1;
    }
    count
}

every_carrier! {
async fn a_socket_is_not_read_while_much_of_it_is_in_work() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.submit_bytes_max = 100_000);
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.links.hang.store(true, Ordering::Relaxed);
    let frames = (0..20).map(|id| submit_to(id, &["ben"], &vec![id; 60_000]));
    let count = taken(&mut ada, frames).await;
    assert!((2..=3).contains(&count), "{count} of 20: two in work, and what the pipe holds");
}
}

every_carrier! {
async fn a_socket_is_not_read_while_its_own_answers_wait() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.session = session(|s| {
            s.limits = Limits { frames_per_second_max: 10_000, frames_burst_max: 10_000, ..s.limits }
        });
    });
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let names: Vec<String> = (0..1000).map(|n| format!("nobody{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let frames = (0..=255).map(|id| submit_to(id, &names, b"x"));
    let count = taken(&mut ada, frames).await;
    // Nobody takes the answers: 32 KiB of pipe each way, 64 KiB of out buffer, and what was in work then.
    assert!(count < 100, "{count} of 256 were read");
}
}

every_carrier! {
async fn sockets_beyond_the_headroom_are_closed_before_any_work() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.sessions_max = 1);
    let mut silent = Vec::new();
    for _ in 0..257 {
        silent.push(gateway.knock().await);
    }
    let mut beyond = gateway.knock().await;
    assert!(tokio::io::AsyncReadExt::read_u8(&mut beyond).await.is_err(), "closed without a byte");
    assert_eq!(gateway.metrics.refused_total.get(), 1);
}
}
