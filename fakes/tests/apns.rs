//! Each rule of Apple's, seen kept and seen broken. **Invariant:** a case differs from an accepted one in one thing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod support;

use chappe_fakes::{Apns, ApnsConfig, Clock, HostConfig, Step, TokenState, Verdict};
use jsonwebtoken::Algorithm;
use serde_json::json;
use std::time::Duration;
use support::{Client, Push, alert, jwt, provider_token};

const NOW_MS: u64 = 1_700_000_000_000;

async fn start() -> Apns {
    let host = HostConfig { clock: Clock::at(NOW_MS), streams_max: 50, ..HostConfig::default() };
    Apns::start(ApnsConfig { host, ..ApnsConfig::default() }).await.unwrap()
}

/// Sends on a fresh connection; gives status and reason (empty if accepted), and checks the record against them.
async fn judged(apns: &Apns, push: &Push) -> (u16, String) {
    let seen = Client::pipe(apns).await.push(push).await;
    let reason = seen.json()["reason"].as_str().unwrap_or_default().to_owned();
    let entry = apns.record().wakes().pop().unwrap();
    match &entry.verdict {
        Verdict::Accepted { id } => assert_eq!((seen.status, seen.header("apns-id")), (200, id.as_str())),
        Verdict::Refused { status, reason: recorded, why } => {
            assert_eq!((seen.status, &reason), (*status, recorded), "{why}");
            assert!(!why.is_empty());
        }
        other @ (Verdict::Scripted { .. } | Verdict::Unprocessed) => panic!("{other:?}"),
    }
    (seen.status, reason)
}

#[tokio::test]
async fn what_apple_allows_is_accepted() {
    let apns = start().await;
    let bearer = provider_token(&apns, 3600);
    let push = alert(&apns, &bearer, &apns.new_token());
    let topic = apns.topics()[0].clone();
    let background = push.clone().with("apns-push-type", "background").with("apns-priority", "5");
    let cases = [
        push.clone(),
        push.clone().without("apns-priority").without("apns-expiration"),
        push.clone().with("apns-priority", "1"),
        push.clone().with("apns-collapse-id", &"x".repeat(64)),
        push.clone().with("apns-id", "123e4567-e89b-12d3-a456-42665544000a"),
        push.clone().with("authorization", &format!("Bearer {bearer}")),
        push.clone().json(&json!({ "aps": { "alert": "x", "mutable-content": 1 }, "more": 1 })),
        push.clone().body(format!(r#"{{"aps":{{"alert":"{}"}}}}"#, "x".repeat(4096 - 20))),
        background.json(&json!({ "aps": { "content-available": 1 } })),
        push.clone()
            .with("apns-push-type", "voip")
            .with("apns-topic", &format!("{topic}.voip"))
            .body(format!(r#"{{"aps":{{"alert":"{}"}}}}"#, "x".repeat(5120 - 20))),
    ];
    for push in cases {
        assert_eq!(judged(&apns, &push).await, (200, String::new()), "{:?}", push.headers);
    }
    let entries = apns.record().wakes();
    assert_eq!(entries[4].header("apns-id"), Some("123e4567-e89b-12d3-a456-42665544000a"));
    assert_eq!(entries[7].body.len(), 4096);
    assert_eq!(apns.record().counts().accepted, 10);
}

#[tokio::test]
async fn headers_that_apple_does_not_allow_are_refused() {
    let apns = start().await;
    let push = alert(&apns, &provider_token(&apns, 0), &apns.new_token());
    let topic = apns.topics()[0].clone();
    let voip = push.clone().with("apns-push-type", "voip");
    let cases: Vec<(Push, u16, &str)> = vec![
        (push.clone().method("PUT"), 405, "MethodNotAllowed"),
        (push.clone().to(format!("{}/4/device/00", apns.url())), 404, "BadPath"),
        (push.clone().to(format!("{}/3/device/", apns.url())), 400, "MissingDeviceToken"),
        (push.clone().to(format!("{}/3/device/{}", apns.url(), "AB".repeat(32))), 400, "BadDeviceToken"),
        (push.clone().to(format!("{}/3/device/{}", apns.url(), "ab".repeat(31))), 400, "BadDeviceToken"),
        (push.clone().to(format!("{}/3/device/{}a", apns.url(), "ab".repeat(32))), 400, "BadDeviceToken"),
        (push.clone().without("apns-topic"), 400, "MissingTopic"),
        (push.clone().with("apns-topic", "org.other"), 400, "TopicDisallowed"),
        (push.clone().with("apns-topic", &format!("{topic}.voip")), 400, "BadTopic"),
        (push.clone().and("apns-topic", &topic), 400, "BadTopic"),
        (voip.clone(), 400, "BadTopic"),
        (push.clone().without("apns-push-type"), 400, "InvalidPushType"),
        (push.clone().with("apns-push-type", "Alert"), 400, "InvalidPushType"),
        (push.clone().with("apns-priority", "7"), 400, "BadPriority"),
        (push.clone().with("apns-priority", "+5"), 400, "BadPriority"),
        (push.clone().with("apns-expiration", "soon"), 400, "BadExpirationDate"),
        (push.clone().with("apns-expiration", "-1"), 400, "BadExpirationDate"),
        (push.clone().with("apns-expiration", "1.5"), 400, "BadExpirationDate"),
        (push.clone().with("apns-collapse-id", &"x".repeat(65)), 400, "BadCollapseId"),
        (push.clone().with("apns-id", "123E4567-E89B-12D3-A456-42665544000A"), 400, "BadMessageId"),
        (push.clone().with("apns-id", "1"), 400, "BadMessageId"),
    ];
    for (push, status, reason) in cases {
        assert_eq!(
            judged(&apns, &push).await,
            (status, reason.to_owned()),
            "{} {:?}",
            push.url,
            push.headers
        );
    }
    assert_eq!(apns.record().counts().accepted, 0);
}

#[tokio::test]
async fn payloads_that_apple_does_not_allow_are_refused() {
    let apns = start().await;
    let push = alert(&apns, &provider_token(&apns, 0), &apns.new_token());
    let long = |bytes: usize| format!(r#"{{"aps":{{"alert":"{}"}}}}"#, "x".repeat(bytes - 20));
    let topic = format!("{}.voip", apns.topics()[0]);
    let voip = push.clone().with("apns-push-type", "voip").with("apns-topic", &topic);
    let background = push.clone().with("apns-push-type", "background").with("apns-priority", "5");
    let silent = json!({ "aps": { "content-available": 1 } });
    let cases: Vec<(Push, u16, &str)> = vec![
        (push.clone().body(""), 400, "PayloadEmpty"),
        (push.clone().body("sync"), 400, "PayloadEmpty"),
        (push.clone().body("[]"), 400, "PayloadEmpty"),
        (push.clone().json(&json!({ "alert": "x" })), 400, "PayloadEmpty"),
        (push.clone().json(&json!({ "aps": "x" })), 400, "PayloadEmpty"),
        (push.clone().body(long(4097)), 413, "PayloadTooLarge"),
        (push.clone().body(long(100_000)), 413, "PayloadTooLarge"),
        (voip.body(long(5121)), 413, "PayloadTooLarge"),
        (push.clone().json(&silent), 400, "InvalidPushType"),
        (push.json(&json!({ "aps": { "badge": 1, "mutable-content": 1 } })), 400, "InvalidPushType"),
        (background.clone(), 400, "InvalidPushType"),
        (background.clone().json(&json!({ "aps": {} })), 400, "InvalidPushType"),
        (
            background.clone().json(&json!({ "aps": { "content-available": 1, "alert": "x" } })),
            400,
            "InvalidPushType",
        ),
        (background.clone().json(&silent).with("apns-priority", "10"), 400, "BadPriority"),
        (background.json(&silent).without("apns-priority"), 400, "BadPriority"),
    ];
    for (number, (push, status, reason)) in cases.into_iter().enumerate() {
        assert_eq!(judged(&apns, &push).await, (status, reason.to_owned()), "case {number}");
    }
}

#[tokio::test]
async fn provider_tokens_are_checked_to_the_bit() {
    let apns = start().await;
    let other = start().await;
    let device = apns.new_token();
    let (key, now) = (apns.key().clone(), apns.clock().now_seconds());
    let right = json!({ "iss": key.team_id, "iat": now });
    let signed = |kid: &str, pem: &str, claims: &serde_json::Value| jwt(Algorithm::ES256, kid, pem, claims);
    let good = signed(&key.key_id, &key.private_key_pem, &right);
    assert_eq!(judged(&apns, &alert(&apns, &good, &device)).await.0, 200);
    let parts: Vec<&str> = good.split('.').collect();
    let padded = format!("{}.{}.{}==", parts[0], parts[1], parts[2]);
    // The same signature as DER would be longer than 64 bytes.
    let der = format!("{}.{}.{}AAAAAAAA", parts[0], parts[1], parts[2]);
    let swapped = format!(
        "{}.{}.{}",
        parts[0],
        signed(&key.key_id, &key.private_key_pem, &json!({ "iss": key.team_id, "iat": now - 1 }))
            .split('.')
            .nth(1)
            .unwrap(),
        parts[2]
    );
    let cases = [
        (padded, "InvalidProviderToken"),
        (der, "InvalidProviderToken"),
        (swapped, "InvalidProviderToken"),
        ("a.b".to_owned(), "InvalidProviderToken"),
        ("x".repeat(5000), "InvalidProviderToken"),
        (signed("OTHERKEY00", &key.private_key_pem, &right), "InvalidProviderToken"),
        (signed(&key.key_id, &other.key().private_key_pem, &right), "InvalidProviderToken"),
        (
            signed(&key.key_id, &key.private_key_pem, &json!({ "iss": "OTHERTEAM0", "iat": now })),
            "InvalidProviderToken",
        ),
        (signed(&key.key_id, &key.private_key_pem, &json!({ "iss": key.team_id })), "InvalidProviderToken"),
        (
            signed(&key.key_id, &key.private_key_pem, &json!({ "iss": key.team_id, "iat": now + 1 })),
            "InvalidProviderToken",
        ),
        (provider_token(&apns, 3601), "ExpiredProviderToken"),
    ];
    for (number, (token, reason)) in cases.into_iter().enumerate() {
        let seen = judged(&apns, &alert(&apns, &token, &device)).await;
        assert_eq!(seen, (403, reason.to_owned()), "case {number}");
    }
    let long = apns.record().wakes().into_iter().nth(2).map(|entry| entry.verdict);
    assert!(matches!(long, Some(Verdict::Refused { why, .. }) if why.contains("of ES256 has 64")));
    let none = alert(&apns, &good, &device).without("authorization");
    assert_eq!(judged(&apns, &none).await, (403, "MissingProviderToken".to_owned()));
    let basic = none.with("authorization", &format!("basic {good}"));
    assert_eq!(judged(&apns, &basic).await, (403, "InvalidProviderToken".to_owned()));
}

#[tokio::test]
async fn a_token_ages_with_the_clock_and_is_renewed_at_most_every_twenty_minutes() {
    let apns = start().await;
    let device = apns.new_token();
    let mut client = Client::pipe(&apns).await;
    let first = provider_token(&apns, 0);
    assert_eq!(client.push(&alert(&apns, &first, &device)).await.status, 200);
    apns.clock().advance(Duration::from_secs(20 * 60 - 1));
    let hasty = client.push(&alert(&apns, &provider_token(&apns, 0), &device)).await;
    assert_eq!((hasty.status, &hasty.json()["reason"]), (429, &json!("TooManyProviderTokenUpdates")));
    assert_eq!(client.push(&alert(&apns, &first, &device)).await.status, 200, "the old one still holds");
    apns.clock().advance(Duration::from_secs(1));
    assert_eq!(client.push(&alert(&apns, &provider_token(&apns, 0), &device)).await.status, 200);
    apns.clock().advance(Duration::from_secs(60 * 60 - 20 * 60 + 1));
    let stale = Client::pipe(&apns).await.push(&alert(&apns, &first, &device)).await;
    assert_eq!((stale.status, &stale.json()["reason"]), (403, &json!("ExpiredProviderToken")));
}

#[tokio::test]
async fn dead_and_never_valid_tokens_are_told_with_apples_words() {
    let apns = start().await;
    let bearer = provider_token(&apns, 0);
    let (dead, never, live) = (apns.new_token(), apns.new_token(), apns.new_token());
    apns.set_token(&dead, TokenState::DeadSince(1_699_999_999_123));
    apns.set_token(&never, TokenState::NeverValid);
    let mut client = Client::pipe(&apns).await;
    let seen = client.push(&alert(&apns, &bearer, &dead)).await;
    assert_eq!(seen.status, 410);
    assert_eq!(seen.json(), json!({ "reason": "Unregistered", "timestamp": 1_699_999_999_123_u64 }));
    let seen = client.push(&alert(&apns, &bearer, &never)).await;
    assert_eq!((seen.status, seen.json()), (400, json!({ "reason": "BadDeviceToken" })));
    assert_eq!(client.push(&alert(&apns, &bearer, &live)).await.status, 200);
    apns.set_token(&dead, TokenState::Live);
    assert_eq!(client.push(&alert(&apns, &bearer, &dead)).await.status, 200);
}

#[tokio::test]
async fn one_stream_until_the_first_success_and_after_a_refused_token() {
    let apns = start().await;
    let (bearer, device) = (provider_token(&apns, 0), apns.new_token());
    let mut client = Client::pipe(&apns).await;
    let refused = alert(&apns, "a.b.c", &device);
    assert_eq!(client.push(&refused).await.status, 403);
    assert_eq!(client.send.current_max_send_streams(), 1, "before any success");
    let good = alert(&apns, &bearer, &device);
    assert_eq!(client.push(&good).await.status, 200);
    // What SETTINGS say arrives with or right after the answer; the next answer is surely after it.
    assert_eq!(client.push(&good).await.status, 200);
    assert_eq!(client.send.current_max_send_streams(), 50);
    let bad_topic = good.clone().without("apns-topic");
    assert_eq!(client.push(&bad_topic).await.status, 400);
    assert_eq!(client.push(&bad_topic).await.status, 400);
    assert_eq!(client.send.current_max_send_streams(), 50, "other mistakes cost nothing");
    assert_eq!(client.push(&refused).await.status, 403);
    assert_eq!(client.push(&refused).await.status, 403);
    assert_eq!(client.send.current_max_send_streams(), 1, "a refused token does");
    assert_eq!(client.push(&good).await.status, 200);
    assert_eq!(client.push(&good).await.status, 200);
    assert_eq!(client.send.current_max_send_streams(), 50);
    apns.script().next(Step::answer(403, "ExpiredProviderToken").into());
    assert_eq!(client.push(&good).await.status, 403);
    assert_eq!(client.push(&bad_topic).await.status, 400);
    assert_eq!(client.send.current_max_send_streams(), 1, "so does a scripted one");
    assert_eq!(apns.record().counts().over_limit, 0);
}
