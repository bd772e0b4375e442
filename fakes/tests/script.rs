//! What a script makes of requests. **Invariant:** a request that the script kept from judgement is never accepted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod support;

use chappe_fakes::{Answer, Apns, ApnsConfig, Body, HostConfig, Step, Verdict};
use h2::Reason;
use serde_json::json;
use std::time::Duration;
use support::{Client, Push, alert, provider_token, soon, whole};

/// A fake, a connection whose stream limit is up, and a request that is right. Two wakes are in the record.
async fn start() -> (Apns, Client, Push) {
    let host = HostConfig { streams_max: 20, ..HostConfig::default() };
    let apns = Apns::start(ApnsConfig { host, ..ApnsConfig::default() }).await.unwrap();
    let mut client = Client::pipe(&apns).await;
    let push = alert(&apns, &provider_token(&apns, 0), &apns.new_token());
    for _ in 0..2 {
        assert_eq!(client.push(&push).await.status, 200);
    }
    (apns, client, push)
}

fn verdicts(apns: &Apns) -> Vec<String> {
    let word = |verdict: &Verdict| match verdict {
        Verdict::Accepted { .. } => "accepted".to_owned(),
        Verdict::Refused { reason, .. } => reason.clone(),
        Verdict::Scripted { step, .. } => (*step).to_owned(),
        Verdict::Unprocessed => "unprocessed".to_owned(),
    };
    apns.record().wakes().iter().skip(2).map(|entry| word(&entry.verdict)).collect()
}

#[tokio::test]
async fn answers_come_in_order_and_those_for_a_token_first() {
    let (apns, mut client, push) = start().await;
    let script = apns.script();
    let token = push.url.rsplit_once('/').unwrap().1.to_owned();
    script.next(Step::answer(503, "ServiceUnavailable").retry_after_date(784_111_777).into());
    script.next(Step::answer(502, "x").body(Body::Html("<h1>Bad Gateway</h1>".into())).into());
    script.next(Answer::new(500, "x").body(Body::Json("{}".into())).header("x-more", "1").into());
    script.next_for(&token, Step::answer(410, "ExpiredToken").timestamp_ms(7).retry_after_seconds(3).into());
    assert_eq!(script.left(), 4);
    let gone = client.push(&push).await;
    assert_eq!((gone.status, gone.header("retry-after")), (410, "3"));
    assert_eq!(gone.json(), json!({ "reason": "ExpiredToken", "timestamp": 7 }));
    let busy = client.push(&push).await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, "Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!(busy.json(), json!({ "reason": "ServiceUnavailable" }));
    let html = client.push(&push).await;
    assert_eq!((html.status, html.header("content-type")), (502, "text/html; charset=UTF-8"));
    assert_eq!(html.body, "<h1>Bad Gateway</h1>");
    let json = client.push(&push).await;
    assert_eq!((json.status, json.header("x-more"), &json.body[..]), (500, "1", &b"{}"[..]));
    assert_eq!(client.push(&push).await.status, 200, "the script is over");
    script.always(Some(Step::answer(429, "TooManyRequests").into()));
    script.next(Step::Judge);
    assert_eq!(client.push(&push).await.status, 200);
    assert_eq!(client.push(&push).await.status, 429);
    assert_eq!(client.push(&push).await.status, 429);
    script.clear();
    assert_eq!(client.push(&push).await.status, 200);
    assert_eq!(apns.record().counts().scripted, 6);
}

#[tokio::test]
async fn a_refused_stream_leaves_the_connection_alone() {
    let (apns, mut client, push) = start().await;
    apns.script().next(Step::RefuseStream);
    let refused = client.try_push(&push).await.unwrap_err();
    assert_eq!((refused.reason(), refused.is_remote()), (Some(Reason::REFUSED_STREAM), true));
    assert_eq!(client.push(&push).await.status, 200);
    assert_eq!(verdicts(&apns), ["refuse_stream", "accepted"]);
}

#[tokio::test(start_paused = true)]
async fn stalls_hold_one_stream_and_slowness_takes_its_time() {
    let (apns, mut client, push) = start().await;
    apns.script().next(Step::StallBeforeHeaders);
    let stalled = client.start(&push).await.unwrap();
    assert_eq!(client.push(&push).await.status, 200, "another stream goes on");
    assert!(tokio::time::timeout(Duration::from_secs(500), stalled).await.is_err());
    apns.script().next(Step::StallInBody);
    let head = client.start(&push.clone().without("apns-topic")).await.unwrap().await.unwrap();
    assert_eq!(head.status().as_u16(), 400);
    let (_, mut body) = head.into_parts();
    assert_eq!(body.data().await.unwrap().unwrap(), r#"{"reason":"M"#);
    assert!(tokio::time::timeout(Duration::from_secs(500), body.data()).await.is_err());
    drop(body);
    apns.script().next(Step::Slow(Duration::from_secs(30)));
    let mut slow = client.start(&push).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(29), &mut slow).await.is_err());
    let answer = tokio::time::timeout(Duration::from_secs(2), slow).await.unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(verdicts(&apns), ["stall_before_headers", "accepted", "MissingTopic", "accepted"]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_takes_all_streams_and_after_processing_the_wake_is_counted() {
    for (step, verdict) in [(Step::CloseBefore, "close_before"), (Step::CloseAfter, "accepted")] {
        let (apns, mut client, push) = start().await;
        apns.script().next(Step::Slow(Duration::from_secs(5)));
        apns.script().next(step);
        let under_way = client.start(&push).await.unwrap();
        assert!(soon(client.try_push(&push)).await.is_err());
        assert!(soon(under_way).await.is_err());
        assert_eq!(verdicts(&apns), ["accepted", verdict]);
        assert_eq!(Client::pipe(&apns).await.push(&push).await.status, 200, "the next connection works");
        assert_eq!(apns.record().counts().connections, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_graceful_goaway_answers_what_is_under_way() {
    let (apns, mut client, push) = start().await;
    apns.script().next(Step::Slow(Duration::from_secs(12)));
    apns.script().next(Step::GoAway);
    let under_way = client.start(&push).await.unwrap();
    assert_eq!(client.push(&push).await.status, 200);
    assert_eq!(soon(under_way).await.unwrap().status().as_u16(), 200);
    let refused = soon(client.try_push(&push)).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::NO_ERROR), "{refused}");
    assert_eq!(verdicts(&apns), ["accepted", "accepted"]);
    assert_eq!(Client::pipe(&apns).await.push(&push).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_goaway_can_leave_streams_unprocessed() {
    let (apns, mut client, push) = start().await;
    apns.script().next(Step::Slow(Duration::from_secs(1)));
    apns.script().next(Step::GoAwayUnprocessed);
    let mut started = Vec::new();
    for _ in 0..4 {
        started.push(client.start(&push).await.unwrap());
    }
    let mut ends = Vec::new();
    for response in started {
        ends.push(match soon(response).await {
            Ok(response) => whole(response).await.unwrap().status.to_string(),
            Err(error) => format!("{} {:?}", error.is_go_away(), error.reason()),
        });
    }
    let left = "true Some(NO_ERROR)";
    assert_eq!(ends, ["200", left, left, left]);
    let seen = verdicts(&apns);
    assert_eq!(seen[..2], ["accepted", "unprocessed"]);
    assert!(seen[2..].iter().all(|verdict| verdict == "unprocessed"), "{seen:?}");
    assert_eq!(apns.record().counts().accepted, 3);
    assert_eq!(Client::pipe(&apns).await.push(&push).await.status, 200);
}
