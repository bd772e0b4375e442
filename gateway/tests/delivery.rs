//! Submits, deliveries, resumes and takeovers through a whole gateway, in paused time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_protocol::frame::{ClientFrame, Cursor, Role, ServerFrame, TruncatedReason};
use chappe_protocol::id::{CursorTag, Seq, SubmitId};
use chappe_protocol::internode::Outcome;
use chappe_storage::slotlog::LogConfig;
use std::sync::atomic::Ordering;
use support::carrier::every_carrier;
use support::client::{Client, In, device, submit_to};
use support::{Cluster, session};

every_carrier! {
async fn the_first_message_arrives() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    assert_eq!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { upto: Seq(0) }));
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let result = ada.submit(submit_to(1, &["ben"], b"hello")).await;
    assert_eq!(result.results[0].outcome, Outcome::Accepted);
    let deliver = ben.deliver().await;
    assert_eq!((deliver.seq, deliver.prev, &deliver.payload[..]), (Seq(1), Seq(0), &b"hello"[..]));
    let sender = deliver.sender.unwrap();
    assert_eq!((sender.user.as_str(), sender.device.as_str()), ("ada", "laptop"));
    assert_eq!(Some(deliver.envelope_id), result.results[0].envelope_id);
    ben.ack(1).await;
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let stored = cluster.store.cursor(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    assert_eq!(stored, Seq(1), "the cursor is written within five seconds");
}
}

every_carrier! {
async fn what_was_sent_while_away_comes_first_and_in_order() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    drop(ben);
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    for id in 0..100 {
        ada.send(&ClientFrame::Submit(submit_to(id, &["ben"], &[id]))).await;
        if id % 50 == 49 {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
    }
    let mut accepted = 0;
    while accepted < 100 {
        if let In::Frame(ServerFrame::SubmitResult(result)) = ada.next().await {
            assert_eq!(result.results[0].outcome, Outcome::Accepted);
            accepted += 1;
        }
    }
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    for seq in 1..=100_u8 {
        let deliver = ben.deliver().await;
        assert_eq!((deliver.seq, deliver.prev), (Seq(u64::from(seq)), Seq(u64::from(seq) - 1)));
        assert_eq!(deliver.payload[..], [seq - 1], "in the order of their submits");
    }
    assert_eq!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { upto: Seq(100) }));
    assert_eq!(gateway.metrics.deliver_seconds.get_sample_count(), 0, "what waited is not slow");
    assert_eq!(ada.submit(submit_to(100, &["ben"], b"now")).await.results[0].outcome, Outcome::Accepted);
    ben.deliver().await;
    let (count, sum) =
        (gateway.metrics.deliver_seconds.get_sample_count(), gateway.metrics.deliver_seconds.get_sample_sum());
    assert!(count == 1 && sum < 1.0, "what comes while it is here is timed: {count}, {sum} s");
}
}

every_carrier! {
async fn a_device_resumes_on_another_gateway_without_a_new_epoch() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    let ben = Client::connect(&cluster, &one, "ben", "phone").await;
    let hello = ben.again(&cluster, "ben", "phone", 0);
    let epoch = ben.welcome().epoch;
    drop(ben);
    let mut ben = Client::connect_with(&two, hello.clone()).await;
    assert!(ben.welcome().resumed);
    assert_eq!(ben.welcome().epoch, epoch);
    let mut ada = Client::connect(&cluster, &one, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    // Five minutes later the token is too old: a full attach.
    tokio::time::sleep(std::time::Duration::from_secs(301)).await;
    let late = Client::connect_with(&one, support::client::Client::hello(&cluster, "ben", "phone"));
    assert!(!late.await.welcome().resumed);
    let mut old = hello;
    old.token.0 = cluster.token("ben", "phone");
    assert!(!Client::connect_with(&one, old).await.welcome().resumed);
}
}

every_carrier! {
async fn the_newer_connection_takes_over_here_and_elsewhere() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    let mut first = Client::connect(&cluster, &one, "ben", "phone").await;
    let mut second = Client::connect(&cluster, &one, "ben", "phone").await;
    assert_eq!(first.closed().await, 4409, "on the same gateway");
    let before = cluster.world_now();
    let mut third = Client::connect(&cluster, &two, "ben", "phone").await;
    assert_eq!(second.closed().await, 4409, "on another gateway");
    let took = cluster.world_now() - before;
    assert!(took < 1000, "at once, by the router's bell, not after {took} ms");
    let mut fourth = Client::connect_with(&one, third.again(&cluster, "ben", "phone", 0)).await;
    assert!(fourth.welcome().resumed);
    assert_eq!(third.closed().await, 4409, "a resume takes over too");
    let mut ada = Client::connect(&cluster, &one, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(fourth.deliver().await.seq, Seq(1));
    assert_eq!(third.next().await, In::End, "nothing after the close");
}
}

every_carrier! {
async fn with_every_doorbell_lost_the_probe_delivers_and_supersedes() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    cluster.links.deaf.store(true, Ordering::Relaxed);
    let mut ben = Client::connect(&cluster, &one, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &two, "ada", "laptop").await;
    assert_eq!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { upto: Seq(0) }));
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    let sent_at = cluster.world_now();
    keep_alive(&mut ben, |frame| matches!(frame, ServerFrame::Deliver(_))).await;
    let waited = cluster.world_now() - sent_at;
    assert!((1..=65_000).contains(&waited), "by the probe, after {waited} ms");
    ben.ack(1).await;
    let _newer = Client::connect(&cluster, &two, "ben", "phone").await;
    let code = keep_alive(&mut ben, |_| false).await;
    assert_eq!(code, Some(4409));
}
}

/// Pings until a frame passes (`None`) or the connection closes.
async fn keep_alive(client: &mut Client, until: impl Fn(&ServerFrame) -> bool) -> Option<u16> {
    for nonce in 0..60 {
        client.send(&ClientFrame::Ping { nonce }).await;
        while let Some(event) = client.next_within(5000).await {
            match event {
                In::Frame(frame) if until(&frame) => return None,
                In::Frame(_) => {}
                In::Close(code) => return Some(code),
                In::End => panic!("the stream ended"),
            }
        }
    }
    panic!("nothing within five minutes")
}

every_carrier! {
async fn outcomes_are_told_per_target() {
    let cluster = Cluster::with(LogConfig { slots_max: 2, ..LogConfig::default() });
    let gateway = cluster.gateway(1);
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.store.create_user(&chappe_protocol::id::UserId::new("eve").unwrap()).await.unwrap();
    let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let result = ada.submit(submit_to(1, &["nobody", "eve", "ben"], b"x")).await;
    let outcomes: Vec<_> = result.results.into_iter().map(|r| r.outcome).collect();
    assert_eq!(outcomes, vec![Outcome::UnknownUser, Outcome::NoDevice, Outcome::Accepted]);
    assert_eq!(ada.outcome(submit_to(2, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ada.outcome(submit_to(3, &["ben"], b"x")).await, Outcome::Quota);
    let mut again = submit_to(1, &["ben"], b"x");
    (again.targets[0].number, again.attempt) = (2, 2);
    assert_eq!(ada.outcome(again).await, Outcome::Accepted, "the same id is the same slot, quota or not");
    let head = cluster.store.head(cluster.mailbox("ben").await, true).await.unwrap();
    assert_eq!(head, Seq(2));
}
}

every_carrier! {
async fn behind_an_unknown_entry_nothing_is_attempted_until_it_comes_again() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.links.hang.store(true, Ordering::Relaxed);
    for id in 1..=3 {
        ada.send(&ClientFrame::Submit(submit_to(id, &["ben"], &[id]))).await;
    }
    let mut outcomes = Vec::new();
    while outcomes.len() < 3 {
        if let In::Frame(ServerFrame::SubmitResult(result)) = ada.next().await {
            outcomes.push((result.submit_id.0[0], result.results[0].outcome.clone()));
        }
    }
    assert_eq!(outcomes, [(1, Outcome::Unknown), (2, Outcome::NotAttempted), (3, Outcome::NotAttempted)]);
    cluster.links.hang.store(false, Ordering::Relaxed);
    assert_eq!(ada.outcome(submit_to(4, &["ben"], &[4])).await, Outcome::NotAttempted, "was on its way");
    for id in 1..=4 {
        let mut again = submit_to(id, &["ben"], &[id]);
        again.attempt = 2;
        ada.send(&ClientFrame::Submit(again)).await;
    }
    for id in 1..=4 {
        assert_eq!(ben.deliver().await.payload[..], [id]);
    }
}
}

every_carrier! {
async fn an_ephemeral_reaches_who_is_attached_and_is_not_stored() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    let mut ben = Client::connect(&cluster, &two, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &one, "ada", "laptop").await;
    let mut typing = submit_to(1, &["ben"], b"typing");
    typing.ephemeral = true;
    let result = ada.submit(typing).await;
    assert_eq!((result.results[0].outcome.clone(), result.results[0].envelope_id), (Outcome::Accepted, None));
    loop {
        if let In::Frame(ServerFrame::Ephemeral { sender, payload, .. }) = ben.next().await {
            assert_eq!((sender.unwrap().user.as_str(), &payload[..]), ("ada", &b"typing"[..]));
            break;
        }
    }
    let head = cluster.store.head(cluster.mailbox("ben").await, true).await.unwrap();
    assert_eq!(head, Seq(0));
}
}

every_carrier! {
async fn a_peek_reads_and_submits_beside_the_main_session() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut main = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(main.deliver().await.seq, Seq(1));
    let mut hello = Client::hello(&cluster, "ben", "phone");
    hello.role = Role::Peek;
    let mut peek = Client::connect_with(&gateway, hello).await;
    assert_eq!(peek.deliver().await.seq, Seq(1), "the main session has not acked it");
    assert_eq!(peek.outcome(submit_to(2, &["ada"], b"from the extension")).await, Outcome::Accepted);
    assert_eq!(peek.closed().await, 3008);
    main.ack(1).await;
    main.send(&ClientFrame::Ping { nonce: 1 }).await;
    let pong = In::Frame(ServerFrame::Pong { nonce: 1, upto: Seq(1) });
    while main.next().await != pong {}
}
}

every_carrier! {
async fn a_cursor_of_another_place_is_refused_or_told() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ahead = Client::open(&gateway).await;
    ahead.send(&ClientFrame::Hello(ben.again(&cluster, "ben", "phone", 5))).await;
    assert_eq!(ahead.closed().await, 4502);
    assert_eq!(gateway.metrics.cursor_ahead_total.get(), 1);
    let mut hello = ben.again(&cluster, "ben", "phone", 0);
    hello.cursor = Some(Cursor { tag: CursorTag([9; 16]), seq: Seq(77) });
    let mut foreign = Client::connect_with(&gateway, hello).await;
    let In::Frame(ServerFrame::Truncated { why, .. }) = foreign.next().await else { panic!("not told") };
    assert_eq!(why, TruncatedReason::ForeignCursor);
}
}

every_carrier! {
async fn a_slow_reader_holds_up_nobody_and_costs_a_bounded_amount() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.session = session(|s| s.window_bytes_first = 1024 * 1024);
    });
    let mut slow = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut quick = Client::connect(&cluster, &gateway, "ben", "laptop").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    for id in 0..40 {
        let result = ada.outcome(submit_to(id, &["ben"], &vec![id; 50_000])).await;
        assert_eq!(result, Outcome::Accepted);
        assert_eq!(quick.deliver().await.payload.len(), 50_000, "the other device is served");
        quick.ack(u64::from(id) + 1).await;
    }
    // 32 KiB of pipe, 64 KiB of out buffer and one frame: nothing like the 2 MB that wait.
    let told = gateway.metrics.delivered_total.get() - 40;
    assert!((1..=5).contains(&told), "{told} of 40 were written to the slow one");
    let mut seqs = Vec::new();
    while let Some(In::Frame(frame)) = slow.next_within(1000).await {
        if let ServerFrame::Deliver(deliver) = frame {
            seqs.push(deliver.seq.0);
            slow.ack(deliver.seq.0).await;
        }
    }
    assert_eq!(seqs, (1..=40).collect::<Vec<_>>(), "and gets everything once it reads");
}
}

every_carrier! {
async fn a_retry_through_another_gateway_is_the_same_slot() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    let mut ben = Client::connect(&cluster, &one, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &one, "ada", "laptop").await;
    let first = ada.submit(submit_to(1, &["ben"], b"x")).await;
    let mut ada = Client::connect(&cluster, &two, "ada", "laptop").await;
    let mut again = submit_to(1, &["ben"], b"x");
    again.attempt = 2;
    let second = ada.submit(again).await;
    assert_eq!(first.results, second.results);
    assert_eq!(ada.outcome(submit_to(2, &["ben"], b"y")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.payload[..], *b"x");
    assert_eq!(ben.deliver().await.payload[..], *b"y");
    assert_eq!(second.submit_id, SubmitId([1; 16]));
}
}

every_carrier! {
async fn a_slow_phone_that_takes_what_is_sent_is_left_alone() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.session = session(|s| s.window_bytes_first = 1024 * 1024);
    });
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    for id in 0..2 {
        assert_eq!(ada.outcome(submit_to(id, &["ben"], &vec![id; 90_000])).await, Outcome::Accepted);
    }
    // Three kilobytes per second: a minute for both, and a ping now and then.
    let mut taken = 0;
    for second in 0..100_u64 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        if second % 8 == 0 {
            ben.send(&ClientFrame::Ping { nonce: second }).await;
        }
        for event in ben.sip(3 * 1024).await {
            match event {
                In::Frame(ServerFrame::Deliver(deliver)) => {
                    taken = deliver.seq.0;
                    ben.ack(taken).await;
                }
                In::Frame(_) => {}
                other => panic!("{other:?} in second {second}"),
            }
        }
    }
    assert_eq!(taken, 2);
}
}

every_carrier! {
async fn whispers_to_a_slow_reader_are_dropped_beyond_its_out_buffer() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    for id in 0..200 {
        let mut whisper = submit_to(id, &["ben"], &[id; 4000]);
        whisper.ephemeral = true;
        assert_eq!(ada.outcome(whisper).await, Outcome::Accepted);
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
    assert!(gateway.metrics.ephemerals_dropped_total.get() > 100, "they are best effort");
    let mut heard = 0;
    while let Some(In::Frame(frame)) = ben.next_within(1000).await {
        heard += usize::from(matches!(frame, ServerFrame::Ephemeral { .. }));
    }
    // 32 KiB of pipe, 64 KiB of out buffer.
    assert!((20..=30).contains(&heard), "{heard} of 200 waited for a reader that took none");
}
}
