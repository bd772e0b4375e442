//! Where and when a device is woken, until the server has it, in paused time.
//! **Invariant:** each call is answered once, and the newest is what the server holds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a script names what it expects")]

mod support;

use chappe_client::{AppName, Client, ClientError, PushAddress, PushSettings, PushTarget, Quiet, UnixMillis};
use chappe_protocol::close::{ErrorCode, ErrorFrame};
use chappe_protocol::frame::{ClientFrame, Reply, Request, ServerFrame};
use chappe_protocol::world::World;
use std::pin::pin;
use std::time::Duration;
use support::{Socket, TestWorld, setup};

fn to(token: &str) -> PushSettings {
    let app = AppName::new("app").unwrap();
    let address = PushAddress::Fcm { token: token.into() };
    let targets = vec![PushTarget { app, address, registered_at: UnixMillis(0) }];
    PushSettings { targets, quiet: Quiet::default() }
}

async fn asked(socket: &mut Socket) -> (u64, PushSettings) {
    match socket.answer().await {
        Some(ClientFrame::Request { id, request: Request::SetPush(settings) }) => (id, settings),
        other => panic!("no SetPush: {other:?}"),
    }
}

async fn answer(socket: &mut Socket, id: u64, reply: Reply) {
    socket.send(&ServerFrame::Reply { id, reply }).await;
}

fn refusal(code: ErrorCode, retry_after_ms: u32) -> Reply {
    Reply::Error(ErrorFrame::request(code, retry_after_ms, "because"))
}

/// Calls, and has the driver take it.
macro_rules! call {
    ($client:expr, $settings:expr) => {{
        let client: Client = $client.clone();
        let mut call = Box::pin(async move { client.set_push($settings).await });
        let early = tokio::time::timeout(Duration::from_millis(1), &mut call).await;
        assert!(early.is_err(), "not answered yet: {early:?}");
        call
    }};
}

#[tokio::test(start_paused = true)]
async fn what_was_not_answered_is_sent_again_on_the_next_connection() {
    let (builder, mut gateway) = setup(&TestWorld::new(1));
    let client = builder.start();
    let call = call!(client, to("one"));
    let (mut first, _) = gateway.welcome(0).await;
    let (lost, settings) = asked(&mut first).await;
    assert_eq!(settings, to("one"));
    drop(first);
    let (mut second, _) = gateway.welcome(0).await;
    let (id, settings) = asked(&mut second).await;
    assert_eq!(settings, to("one"));
    assert_ne!(id, lost);
    answer(&mut second, id, Reply::PushSet).await;
    assert_eq!(call.await, Ok(()));
    drop(second);
    let (mut third, _) = gateway.welcome(0).await;
    let more = tokio::time::timeout(Duration::from_secs(100), third.answer()).await;
    assert!(more.is_err(), "nothing is sent that the server has: {more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_newer_call_takes_the_place_of_an_older_one() {
    let (builder, mut gateway) = setup(&TestWorld::new(2));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    let older = call!(client, to("one"));
    let (first, _) = asked(&mut socket).await;
    let mut newer = call!(client, to("two"));
    assert_eq!(older.await, Err(ClientError::Replaced));
    let (second, settings) = asked(&mut socket).await;
    assert_eq!(settings, to("two"));
    answer(&mut socket, first, Reply::PushSet).await;
    let early = tokio::time::timeout(Duration::from_secs(1), &mut newer).await;
    assert!(early.is_err(), "that was the answer to the older one");
    answer(&mut socket, second, Reply::PushSet).await;
    assert_eq!(newer.await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_now_is_waited_out_and_a_final_one_is_told() {
    let world = TestWorld::new(3);
    let (builder, mut gateway) = setup(&world);
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    let call = call!(client, to("one"));
    for code in [ErrorCode::Unavailable, ErrorCode::Rate] {
        let (id, _) = asked(&mut socket).await;
        let refused_at = world.now();
        answer(&mut socket, id, refusal(code, 5000)).await;
        // The next one is read where it arrives: answered in the next round.
        let (again, _) = asked(&mut socket).await;
        let waited = (world.now() - refused_at).0;
        assert!((5000..=7600).contains(&waited), "{waited} ms");
        answer(&mut socket, again, refusal(code, 2000)).await;
    }
    let (id, _) = asked(&mut socket).await;
    answer(&mut socket, id, refusal(ErrorCode::PushUnavailable, 0)).await;
    match call.await {
        Err(error @ ClientError::Refused { .. }) => {
            assert_eq!((error.code(), error.is_retryable()), ("push_unavailable", false));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_left_and_asked_again() {
    let (builder, mut gateway) = setup(&TestWorld::new(4));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    let call = call!(client, to("one"));
    let _unanswered = asked(&mut socket).await;
    while socket.answer().await.is_some() {}
    let (mut socket, _) = gateway.welcome(0).await;
    let (id, _) = asked(&mut socket).await;
    answer(&mut socket, id, Reply::PushSet).await;
    assert_eq!(call.await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_no_server_takes_is_refused_at_once_and_an_end_is_told() {
    let (builder, mut gateway) = setup(&TestWorld::new(5));
    let client = builder.start();
    let (_socket, _) = gateway.welcome(0).await;
    let five = PushSettings { targets: vec![to("t").targets.remove(0); 5], quiet: Quiet::default() };
    for bad in [five, to("a b"), to("")] {
        let mut call = pin!(client.set_push(bad));
        let refused = tokio::time::timeout(Duration::ZERO, &mut call).await.expect("at once");
        assert!(matches!(refused, Err(ClientError::Invalid(_))), "{refused:?}");
    }
    let call = call!(client, to("one"));
    client.close().await;
    assert_eq!(call.await, Err(ClientError::Closed));
}
