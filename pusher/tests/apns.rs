//! Apple's client against servers that answer as Apple does. **Invariant:** what Apple sees is "sync", and how soon.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod support;

use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{ApnsKind, PushAddress, PushTarget};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_pusher::apns::{Apns, ApnsApp, ApnsSigner, BadKey, MessageWake, TABLE};
use chappe_pusher::provider::{Provider as _, Scope, Verdict};
use chappe_pusher::transport::Origin;
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Say, Server, TestWorld, WALL, answer, ok, target, verdict, wake, wires};

struct Rig {
    apns: Apns,
    server: Arc<Server>,
    world: Arc<TestWorld>,
    public_pem: String,
}

fn rig(server: Arc<Server>, message: MessageWake) -> Rig {
    let (key, public_pem) = support::p256();
    let world = TestWorld::new();
    let signer =
        Arc::new(ApnsSigner::new(key.as_bytes(), "KEYKEY1234", "TEAMTEAM12", world.clone()).unwrap());
    let app = ApnsApp { topic: "org.example.chat".into(), message, alert_key: "sync".into() };
    let origin = Origin::parse("https://provider.example").unwrap();
    let apns = Apns::new(&app, signer, &origin, &wires(&server, world.clone())).unwrap();
    Rig { apns, server, world, public_pem }
}

fn scripted(script: Vec<Say>) -> Rig {
    rig(Server::scripted(script), MessageWake::Alert)
}

fn token(token: &[u8], kind: ApnsKind) -> PushTarget {
    target(PushAddress::Apns { token: token.to_vec(), kind })
}

fn alert() -> PushTarget {
    token(&[0xab; 32], ApnsKind::Alert)
}

fn jwt(seen: &support::Seen) -> String {
    seen.header("authorization").strip_prefix("bearer ").unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn each_urgency_and_kind_has_its_headers_and_says_nothing_but_sync() {
    let table = [
        (
            ApnsKind::Alert,
            Urgency::Message,
            MessageWake::Alert,
            "alert",
            "org.example.chat",
            "10",
            r#"{"aps":{"alert":{"loc-key":"sync"},"mutable-content":1},"sync":1}"#,
        ),
        (
            ApnsKind::Alert,
            Urgency::Call,
            MessageWake::Background,
            "alert",
            "org.example.chat",
            "10",
            r#"{"aps":{"alert":{"loc-key":"sync"},"mutable-content":1},"sync":1}"#,
        ),
        (
            ApnsKind::Alert,
            Urgency::Message,
            MessageWake::Background,
            "background",
            "org.example.chat",
            "5",
            r#"{"aps":{"content-available":1},"sync":1}"#,
        ),
        (
            ApnsKind::Alert,
            Urgency::Background,
            MessageWake::Alert,
            "background",
            "org.example.chat",
            "5",
            r#"{"aps":{"content-available":1},"sync":1}"#,
        ),
        (
            ApnsKind::Voip,
            Urgency::Call,
            MessageWake::Alert,
            "voip",
            "org.example.chat.voip",
            "10",
            r#"{"aps":{},"sync":1}"#,
        ),
    ];
    for (kind, urgency, message, push_type, topic, priority, body) in table {
        let rig = rig(Server::scripted(vec![ok()]), message);
        let answer = rig.apns.wake(&token(&[0xab; 32], kind), &wake(urgency)).await;
        assert_eq!(verdict(&answer), (Verdict::Done, "ok"));
        let seen = &rig.server.seen()[0];
        assert_eq!(seen.path, format!("/3/device/{}", "ab".repeat(32)));
        let wanted: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(seen.json(), wanted);
        for (name, value) in [
            ("apns-push-type", push_type),
            ("apns-topic", topic),
            ("apns-priority", priority),
            ("apns-collapse-id", "c0llapse_-"),
            ("apns-expiration", "1800604800"),
        ] {
            assert_eq!(seen.header(name), value, "{name}");
        }
        let id = seen.header("apns-id");
        assert_eq!((id.len(), &id[14..15], id.matches('-').count()), (36, "4", 4), "{id}");
        let names: BTreeSet<&str> = seen.headers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names.len(), 8, "and no other header: {names:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_verifies_and_says_who_and_when() {
    let rig = scripted(vec![ok()]);
    rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
    let jwt = jwt(&rig.server.seen()[0]);
    assert!(
        jwt.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
        "base64url without padding"
    );
    assert_eq!(jwt.rsplit('.').next().unwrap().len(), 86, "r and s, raw");
    let mut rules = Validation::new(Algorithm::ES256);
    rules.required_spec_claims.clear();
    rules.validate_exp = false;
    let key = DecodingKey::from_ec_pem(rig.public_pem.as_bytes()).unwrap();
    let read = jsonwebtoken::decode::<serde_json::Value>(&jwt, &key, &rules).unwrap();
    assert_eq!(read.header.kid.as_deref(), Some("KEYKEY1234"));
    assert_eq!(read.claims, serde_json::json!({"iss": "TEAMTEAM12", "iat": WALL.0 / 1000}));
}

#[tokio::test(start_paused = true)]
async fn the_token_is_kept_for_forty_minutes_and_renewed_then() {
    let rig = scripted(vec![ok()]);
    for _ in 0..13 {
        rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
        tokio::time::sleep(Duration::from_mins(10)).await;
    }
    let tokens: Vec<String> = rig.server.seen().iter().map(jwt).collect();
    let changes: Vec<usize> = (1..13).filter(|index| tokens[*index] != tokens[index - 1]).collect();
    assert_eq!(changes, [4, 8, 12], "at minutes 40, 80, 120");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_renews_the_token_but_not_within_twenty_minutes() {
    let rig = scripted(vec![ok()]);
    rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
    rig.world.step.store(3_600_000, Ordering::Relaxed);
    rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
    tokio::time::sleep(Duration::from_mins(20)).await;
    rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
    let tokens: Vec<String> = rig.server.seen().iter().map(jwt).collect();
    assert!(tokens[0] == tokens[1] && tokens[1] != tokens[2]);
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_renewed_at_once_and_only_once() {
    let expired = answer(403, r#"{"reason":"ExpiredProviderToken"}"#);
    let rig = scripted(vec![expired.clone(), ok(), expired]);
    rig.world.step.store(0, Ordering::Relaxed);
    assert_eq!(rig.apns.wake(&alert(), &wake(Urgency::Message)).await.verdict, Verdict::Done);
    let seen = rig.server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].header("apns-id"), seen[1].header("apns-id"), "the same wake");
    assert_ne!(jwt(&seen[0]), jwt(&seen[1]));
    for _ in 0..3 {
        let answer = rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
        let after = Some(Millis::from_secs(60));
        assert_eq!(verdict(&answer), (Verdict::Retry { after, scope: Scope::App }, "ExpiredProviderToken"));
    }
    assert_eq!(rig.server.seen().len(), 5, "Apple wants no more than one token in 20 minutes");
}

#[tokio::test(start_paused = true)]
async fn every_line_of_the_table_is_what_happens() {
    for row in TABLE {
        let chappe_pusher::answers::Status::Is(status) = row.status else { continue };
        let body =
            row.reason.map_or("<html>".into(), |reason| format!(r#"{{"reason":"{reason}","new":[1]}}"#));
        let rig = scripted(vec![answer(status, &body)]);
        let got = rig.apns.wake(&alert(), &wake(Urgency::Message)).await;
        assert_eq!(got, row.answer(None, None), "{status} {body}");
    }
    for (status, label) in [(418, "http_4xx"), (502, "http_5xx"), (301, "http_3xx"), (204, "ok")] {
        let rig = scripted(vec![answer(status, "<html><body>Bad gateway</body>")]);
        assert_eq!(rig.apns.wake(&alert(), &wake(Urgency::Message)).await.reason, label);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_dropped_with_apples_time_and_waiting_is_as_apple_asks() {
    let rig = scripted(vec![
        answer(410, r#"{"reason":"Unregistered","timestamp":1700000000123}"#),
        Say::Answer(429, vec![("retry-after", "30".into())], r#"{"reason":"TooManyRequests"}"#.into()),
        Say::Answer(503, vec![("retry-after", "99999".into())], String::new()),
    ]);
    let mut verdicts = Vec::new();
    for _ in 0..3 {
        verdicts.push(rig.apns.wake(&alert(), &wake(Urgency::Message)).await.verdict);
    }
    assert_eq!(
        verdicts,
        [
            Verdict::Drop { since: Some(UnixMillis(1_700_000_000_123)) },
            Verdict::Retry { after: Some(Millis::from_secs(30)), scope: Scope::Device },
            Verdict::Retry { after: Some(Millis::from_secs(3600)), scope: Scope::Provider },
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn refused_and_new_tokens_do_not_share_a_connection_with_proven_ones() {
    let server = Server::new(None, |seen, _| {
        if seen.path.ends_with("dead") { answer(400, r#"{"reason":"BadDeviceToken"}"#) } else { ok() }
    });
    let rig = rig(server, MessageWake::Alert);
    let fresh = |bytes: &[u8]| PushTarget { registered_at: WALL, ..token(bytes, ApnsKind::Alert) };
    let (old, new, dead) =
        (token(&[1, 1], ApnsKind::Alert), fresh(&[2, 2]), token(&[0xde, 0xad], ApnsKind::Alert));
    for target in [&old, &dead, &new, &new, &dead, &fresh(&[3, 3]), &old] {
        rig.apns.wake(target, &wake(Urgency::Message)).await;
    }
    let seen: Vec<(String, usize)> =
        rig.server.seen().iter().map(|seen| (seen.path[10..].to_owned(), seen.connection)).collect();
    let connection = |nth: usize| seen[nth].1;
    let proven = connection(0);
    assert_eq!(connection(1), proven, "nobody knew yet");
    let probation = connection(2);
    assert_ne!(probation, proven, "registered just now");
    assert_eq!(connection(3), proven, "taken once");
    assert_eq!((connection(4), connection(5), connection(6)), (probation, probation, proven), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn what_apple_would_refuse_is_not_sent() {
    let rig = scripted(vec![ok()]);
    let old = chappe_pusher::provider::Wake { expires_at: WALL, ..wake(Urgency::Message) };
    let long = chappe_pusher::provider::Wake { collapse: "c".repeat(33), ..wake(Urgency::Message) };
    for (target, wake, reason) in [
        (token(&[1], ApnsKind::Voip), wake(Urgency::Message), "calls_only"),
        (token(&[], ApnsKind::Alert), wake(Urgency::Message), "bad_target"),
        (alert(), old, "expired"),
        (alert(), long, "bad_wake"),
    ] {
        assert_eq!(verdict(&rig.apns.wake(&target, &wake).await), (Verdict::Park, reason));
    }
    assert_eq!(rig.server.dialled(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_is_left_alone_and_tried_by_one() {
    let rig =
        rig(Server::new(None, |_, nth| if nth < 5 { answer(503, "") } else { ok() }), MessageWake::Alert);
    let (alert, message) = (alert(), wake(Urgency::Message));
    for _ in 0..5 {
        rig.apns.wake(&alert, &message).await;
    }
    let answers = join_all((0..10).map(|_| rig.apns.wake(&alert, &message))).await;
    assert!(answers.iter().all(|answer| answer.reason == "breaker_open"), "{answers:?}");
    assert_eq!(rig.server.seen().len(), 5);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let answers = join_all((0..10).map(|_| rig.apns.wake(&alert, &message))).await;
    assert_eq!(answers.iter().filter(|answer| answer.verdict == Verdict::Done).count(), 1, "one probe");
    assert_eq!(rig.apns.wake(&alert, &message).await.verdict, Verdict::Done);
}

#[tokio::test(start_paused = true)]
async fn neither_keys_nor_tokens_print_themselves() {
    let (key, _) = support::p256();
    let signer = ApnsSigner::new(key.as_bytes(), "KVQZKEY", "KVQZTEAM", TestWorld::new()).unwrap();
    assert_eq!(format!("{signer:?}"), "ApnsSigner(…)");
    assert_eq!(ApnsSigner::new(b"kvqz", "k", "t", TestWorld::new()).err(), Some(BadKey));
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    assert_eq!(ApnsSigner::new(p384.as_bytes(), "k", "t", TestWorld::new()).err(), Some(BadKey));
    assert!(!format!("{:?}", support::post("/3/device/kvqz")).contains("kvqz"));
}
