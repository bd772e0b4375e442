//! What the application sees of its mailbox, against a scripted gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a script names what it expects")]

mod support;

use chappe_client::{ClientError, Envelope, Event, Millis, Seq, State, TokenReason, Tuning, World as _};
use chappe_protocol::frame::{Cursor, GoAway, GoAwayClass, ServerFrame};
use chappe_protocol::id::CursorTag;
use fastwebsockets::OpCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{TestWorld, setup, tuning};

async fn envelope(client: &chappe_client::Client) -> Envelope {
    match client.next_event().await {
        Some(Event::Envelope(envelope)) => envelope,
        other => panic!("no envelope: {other:?}"),
    }
}

fn cursor(seq: u64) -> Cursor {
    Cursor { tag: CursorTag([7; 16]), seq: Seq(seq) }
}

#[tokio::test(start_paused = true)]
async fn acks_are_contiguous_and_duplicates_are_dropped() {
    let (builder, mut gateway) = setup(&TestWorld::new(1));
    let client = builder.start();
    let (mut socket, hello) = gateway.welcome(0).await;
    assert_eq!(hello.cursor, None);
    socket.deliver(0, 1).await;
    socket.deliver(1, 2).await;
    socket.deliver(1, 2).await;
    socket.deliver(2, 5).await;
    let first = envelope(&client).await;
    envelope(&client).await.ack();
    envelope(&client).await.ack();
    let nothing = tokio::time::timeout(Duration::from_secs(1), socket.answer()).await;
    assert!(nothing.is_err(), "2 and 5 are acked, 1 is not: {nothing:?}");
    first.ack();
    assert_eq!(socket.ack().await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_broken_chain_reconnects_and_takes_nothing() {
    let (builder, mut gateway) = setup(&TestWorld::new(2));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    socket.deliver(0, 1).await;
    envelope(&client).await.ack();
    assert_eq!(socket.ack().await, 1);
    socket.deliver(2, 3).await;
    let (mut socket, hello) = gateway.welcome(1).await;
    assert_eq!(hello.cursor.unwrap(), cursor(1));
    assert_eq!(hello.resume_token, b"resume"[..]);
    socket.deliver(1, 2).await;
    assert_eq!(envelope(&client).await.seq, Seq(2));
}

#[tokio::test(start_paused = true)]
async fn after_a_reconnect_only_what_was_dropped_comes_again() {
    let (builder, mut gateway) = setup(&TestWorld::new(3));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    for seq in 1..=3 {
        socket.deliver(seq - 1, seq).await;
    }
    let (held, dropped, acked) = (envelope(&client).await, envelope(&client).await, envelope(&client).await);
    drop(dropped);
    acked.ack();
    client.disconnect_now();
    let (mut socket, hello) = gateway.welcome(0).await;
    assert_eq!(hello.cursor.unwrap(), cursor(0));
    for seq in 1..=4 {
        socket.deliver(seq - 1, seq).await;
    }
    let again = envelope(&client).await;
    assert_eq!(again.seq, Seq(2));
    assert_eq!(envelope(&client).await.seq, Seq(4), "1 is still held, 3 was acked");
    held.ack();
    again.ack();
    assert_eq!(socket.ack().await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_application_holds_the_socket_back_and_loses_nothing() {
    let tuning = Tuning { inbox_items_max: 4, ..tuning() };
    let (builder, mut gateway) = setup(&TestWorld::new(4));
    let client = builder.tuning(tuning).start();
    let (mut socket, _) = gateway.welcome(0).await;
    for seq in 1..=40 {
        socket.deliver(seq - 1, seq).await;
    }
    // Long enough for every timer, while nobody reads: the connection stays.
    for _ in 0..6 {
        let _ = tokio::time::timeout(Duration::from_secs(30), socket.answer()).await;
    }
    assert!(matches!(client.state(), State::Connected { .. }));
    for seq in 1..=40 {
        let envelope = envelope(&client).await;
        assert_eq!(envelope.seq, Seq(seq));
        envelope.ack();
    }
    assert!(!gateway.is_dialled());
}

#[tokio::test(start_paused = true)]
async fn a_half_open_server_is_noticed() {
    let (builder, mut gateway) = setup(&TestWorld::new(5));
    let client = builder.start();
    let (_deaf, _) = gateway.welcome(0).await;
    client.connected().await.unwrap();
    let begin = TestWorld::new(0);
    let _second = gateway.accept().await;
    let waited = chappe_client::World::now(&*begin).0;
    assert!((50_000..80_000).contains(&waited), "two pings of at most 25 s and the backoff: {waited}");
}

#[tokio::test(start_paused = true)]
async fn an_unacked_envelope_keeps_the_client_audible() {
    let (builder, mut gateway) = setup(&TestWorld::new(6));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    socket.deliver(0, 1).await;
    let _held = envelope(&client).await;
    for _ in 0..10 {
        let frame =
            tokio::time::timeout(Duration::from_secs(9), socket.frame()).await.expect("a ping within 8 s");
        let Some(chappe_protocol::frame::ClientFrame::Ping { nonce }) = frame else { panic!("{frame:?}") };
        socket.send(&ServerFrame::Pong { nonce, upto: Seq(1) }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn superseded_waits_for_the_application() {
    let (builder, mut gateway) = setup(&TestWorld::new(7));
    let client = builder.start();
    let (socket, _) = gateway.welcome(0).await;
    client.connected().await.unwrap();
    socket.close(4409).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(client.state(), State::Superseded);
    client.network_changed();
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(client.state(), State::Superseded, "another network gives nobody the session back");
    assert!(!gateway.is_dialled());
    client.reconnect();
    let (_socket, hello) = gateway.welcome(0).await;
    assert!(hello.resume_token.is_empty(), "taking over needs a new epoch");
    client.connected().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_network_ends_waiting_and_moves_a_websocket_at_once() {
    let world = TestWorld::new(17);
    let (builder, mut gateway) = setup(&world);
    let client = builder.start();
    let (socket, _) = gateway.welcome(0).await;
    client.connected().await.unwrap();
    let before = world.now();
    client.network_changed();
    let (moved, hello) = gateway.welcome(0).await;
    assert_eq!((world.now(), &hello.resume_token[..]), (before, &b"resume"[..]), "at once, and resumed");
    drop((socket, moved));
    // Now it is lost again and again, and the backoff grows.
    for _ in 0..5 {
        drop(gateway.dialled().await);
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = world.now();
    assert!(matches!(client.state(), State::Waiting { .. }) && !gateway.is_dialled());
    client.network_changed();
    let (_socket, _) = gateway.welcome(0).await;
    assert_eq!(world.now(), before);
}

#[tokio::test(start_paused = true)]
async fn terminal_codes_end_the_client() {
    for code in [3500, 4500, 4501, 4502] {
        let (builder, mut gateway) = setup(&TestWorld::new(8));
        let client = builder.start();
        let (socket, _) = gateway.accept().await;
        socket.close(code).await;
        let error = client.connected().await.unwrap_err();
        assert_eq!(error, ClientError::Ended { code, reason: "scripted".to_owned() });
        assert_eq!(client.state(), State::Failed(error));
        assert!(client.next_event().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_asked_for_anew() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let (builder, mut gateway) = setup(&TestWorld::new(9));
    let client = builder
        .token(move |why: TokenReason| {
            log.lock().unwrap().push(why);
            async move { Ok(format!("{why:?}")) }
        })
        .start();
    let (socket, hello) = gateway.accept().await;
    assert_eq!(hello.token.0, "Connect");
    socket.close(4401).await;
    let (_socket, hello) = gateway.welcome(0).await;
    assert_eq!(hello.token.0, "Expired");
    client.connected().await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [TokenReason::Connect, TokenReason::Expired]);
}

#[tokio::test(start_paused = true)]
async fn go_away_is_obeyed_within_its_jitter() {
    for seed in 0..20 {
        let world = TestWorld::new(seed);
        let (builder, mut gateway) = setup(&world);
        let client = builder.start();
        let (mut socket, _) = gateway.welcome(0).await;
        client.connected().await.unwrap();
        let begin = chappe_client::World::now(&*world).0;
        let go_away = GoAway {
            class: GoAwayClass::Drain,
            retry_after: Millis(2000),
            jitter: Millis(3000),
            endpoints: Vec::new(),
        };
        socket.send(&ServerFrame::GoAway(go_away)).await;
        let _next = gateway.accept().await;
        let waited = chappe_client::World::now(&*world).0 - begin;
        assert!((2000..=5010).contains(&waited), "seed {seed}: {waited}");
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_messages_end_the_connection() {
    let tuning = Tuning { message_bytes_max: 10_000, ..tuning() };
    let (builder, mut gateway) = setup(&TestWorld::new(10));
    let client = builder.tuning(tuning).start();
    for case in 0..7 {
        let (mut socket, _) = gateway.welcome(0).await;
        client.connected().await.unwrap();
        match case {
            0 => socket.raw(true, OpCode::Binary, vec![0; 10_001]).await,
            1 => {
                socket.raw(false, OpCode::Binary, vec![0; 9000]).await;
                socket.raw(false, OpCode::Continuation, vec![0; 9000]).await;
            }
            2 => socket.raw(true, OpCode::Continuation, vec![1]).await,
            3 => socket.raw(true, OpCode::Text, b"hello".to_vec()).await,
            4 => socket.raw(true, OpCode::Pong, vec![0; 126]).await,
            5 => socket.raw(true, OpCode::Binary, vec![0xff; 30]).await,
            _ => socket.send(&ServerFrame::Welcome(support::welcome(0))).await,
        }
        let ended =
            tokio::time::timeout(Duration::from_secs(10), async { while socket.answer().await.is_some() {} });
        ended.await.unwrap_or_else(|_| panic!("case {case} went on"));
    }
    assert!(!client.state().is_final());
}

#[tokio::test(start_paused = true)]
async fn fragments_within_the_bound_make_a_message() {
    let (builder, mut gateway) = setup(&TestWorld::new(11));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    let bytes = ServerFrame::Deliver(support::deliver(0, 1)).encode();
    let (head, tail) = bytes.split_at(5);
    socket.raw(false, OpCode::Binary, head.to_vec()).await;
    socket.raw(true, OpCode::Ping, b"between".to_vec()).await;
    socket.raw(true, OpCode::Continuation, tail.to_vec()).await;
    assert_eq!(envelope(&client).await.payload, "1");
}

#[tokio::test(start_paused = true)]
async fn close_sends_the_last_acks() {
    let (builder, mut gateway) = setup(&TestWorld::new(12));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    socket.deliver(0, 1).await;
    envelope(&client).await.ack();
    let (ack, ()) = tokio::join!(
        async {
            let ack = socket.ack().await;
            assert!(socket.answer().await.is_none(), "then goodbye");
            drop(socket);
            ack
        },
        client.close()
    );
    assert_eq!(ack, 1);
    assert_eq!(client.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_new_client_goes_on_where_the_old_one_persisted() {
    let dir = tempfile::tempdir().unwrap();
    let (builder, mut gateway) = setup(&TestWorld::new(13));
    let client = builder.state_dir(dir.path()).start();
    let (mut socket, _) = gateway.welcome(0).await;
    socket.deliver(0, 1).await;
    envelope(&client).await.ack();
    // Once the ack is on the wire the cursor is on disk, whatever happens to the process.
    assert_eq!(socket.ack().await, 1);
    drop(client);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (builder, mut gateway) = setup(&TestWorld::new(14));
    let client = builder.state_dir(dir.path()).start();
    let (mut socket, hello) = gateway.welcome(1).await;
    assert_eq!(hello.cursor.unwrap(), cursor(1));
    // The same envelope in another slot, as a repaired log may have it.
    let mut again = support::deliver(1, 2);
    again.envelope_id = support::id(1);
    socket.send(&ServerFrame::Deliver(again)).await;
    socket.deliver(2, 3).await;
    assert_eq!(envelope(&client).await.seq, Seq(3));
}

/// What a process finds that starts after a crash at this moment.
async fn cursor_after_a_crash(dir: &std::path::Path) -> Option<Cursor> {
    let copy = tempfile::tempdir().unwrap();
    for name in ["outbox", "positions"] {
        std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
    }
    let (builder, mut gateway) = setup(&TestWorld::new(15));
    let _client = builder.state_dir(copy.path()).start();
    gateway.welcome(0).await.1.cursor
}

#[tokio::test(start_paused = true)]
async fn what_is_acked_without_a_connection_is_as_durable_as_with_one() {
    let dir = tempfile::tempdir().unwrap();
    let (builder, mut gateway) = setup(&TestWorld::new(16));
    let client = builder.state_dir(dir.path()).start();
    let (mut socket, _) = gateway.welcome(0).await;
    for seq in 1..=3 {
        socket.deliver(seq - 1, seq).await;
    }
    let (first, second) = (envelope(&client).await, envelope(&client).await);
    socket.close(4409).await;
    first.ack();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(client.state(), State::Superseded);
    assert_eq!(cursor_after_a_crash(dir.path()).await, Some(cursor(1)));
    // A Hello's cursor counts as an ack: it is on disk before it is sent.
    client.reconnect();
    second.ack();
    let (_socket, hello) = gateway.accept().await;
    assert_eq!(hello.cursor, Some(cursor(2)));
    assert_eq!(cursor_after_a_crash(dir.path()).await, hello.cursor);
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_after_its_ack_is_acked_again() {
    let (builder, mut gateway) = setup(&TestWorld::new(17));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    socket.deliver(0, 1).await;
    let first = envelope(&client).await;
    client.disconnect_now();
    let (mut socket, hello) = gateway.accept().await;
    assert_eq!(hello.cursor, Some(cursor(0)));
    // Between Hello and Welcome: the server does not know of it, delivers again and waits.
    first.ack();
    tokio::time::sleep(Duration::from_secs(1)).await;
    socket.send(&ServerFrame::Welcome(support::welcome(0))).await;
    socket.deliver(0, 1).await;
    let ack = tokio::time::timeout(Duration::from_secs(5), socket.ack()).await;
    assert_eq!(ack.expect("an ack, long before the server gives up"), 1);
}
