//! Google's client against servers that answer as Google does. **Invariant:** what Google sees is "sync", and how soon.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod support;

use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{PushAddress, PushTarget};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World as _;
use chappe_pusher::answers::Status;
use chappe_pusher::fcm::{BadServiceAccount, Fcm, ServiceAccount, TABLE};
use chappe_pusher::provider::{Provider as _, Scope, Verdict};
use chappe_pusher::transport::Origin;
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::{Say, Seen, Server, TestWorld, WALL, answer, ok, target, verdict, wake, wires};

const TOKEN_URI: &str = "https://token.example/oauth/token";

fn grant(token: &str, life_s: u64) -> Say {
    let body = json!({"access_token": token, "expires_in": life_s, "token_type": "Bearer"}).to_string();
    Say::Answer(200, vec![("content-type", "application/json".into())], body)
}

struct Rig {
    fcm: Fcm,
    server: Arc<Server>,
    world: Arc<TestWorld>,
}

fn rig(server: Arc<Server>) -> Rig {
    let world = TestWorld::new();
    let account = ServiceAccount::from_json(support::service_account(TOKEN_URI).0.as_bytes(), None).unwrap();
    let origin = Origin::parse("https://provider.example").unwrap();
    let fcm = Fcm::new(account, None, origin, &wires(&server, world.clone())).unwrap();
    Rig { fcm, server, world }
}

/// One server plays both parts; tokens are `t0`, `t1`, …
fn google(messages: impl Fn(&Seen) -> Say + Send + Sync + 'static) -> Rig {
    let tokens = AtomicUsize::new(0);
    rig(Server::new(None, move |seen, _| match seen.authority.as_str() {
        "token.example" => grant(&format!("t{}", tokens.fetch_add(1, Ordering::Relaxed)), 3600),
        _ => messages(seen),
    }))
}

fn device() -> PushTarget {
    target(PushAddress::Fcm { token: "cX:APA91b_-".into() })
}

fn at(rig: &Rig, authority: &str) -> Vec<Seen> {
    rig.server.seen().into_iter().filter(|seen| seen.authority == authority).collect()
}

#[tokio::test(start_paused = true)]
async fn a_message_says_sync_and_how_soon_and_nothing_else() {
    for (urgency, priority) in
        [(Urgency::Call, "HIGH"), (Urgency::Message, "HIGH"), (Urgency::Background, "NORMAL")]
    {
        let rig = google(|_| ok());
        assert_eq!(verdict(&rig.fcm.wake(&device(), &wake(urgency)).await), (Verdict::Done, "ok"));
        let seen = &at(&rig, "provider.example")[0];
        assert_eq!(seen.path, "/v1/projects/chat-1/messages:send");
        assert_eq!(
            (seen.header("authorization"), seen.header("content-type")),
            ("Bearer t0", "application/json")
        );
        assert_eq!(seen.headers.len(), 3);
        let android = json!({"priority": priority, "ttl": "604800s", "collapse_key": "c0llapse_-"});
        assert_eq!(
            seen.json(),
            json!({"message": {"token": "cX:APA91b_-", "data": {"sync": "1"}, "android": android}})
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_assertion_is_rfc_7523s_and_verifies() {
    let (json, public) = support::service_account(TOKEN_URI);
    let server =
        Server::new(None, |seen, _| if seen.authority == "token.example" { grant("t", 3600) } else { ok() });
    let account = ServiceAccount::from_json(json.as_bytes(), None).unwrap();
    let origin = Origin::parse("https://provider.example").unwrap();
    let fcm = Fcm::new(account, Some("other-2"), origin, &wires(&server, TestWorld::new())).unwrap();
    fcm.wake(&device(), &wake(Urgency::Message)).await;
    let seen = server.seen();
    assert_eq!(seen[1].path, "/v1/projects/other-2/messages:send");
    assert_eq!(
        (seen[0].path.as_str(), seen[0].header("content-type")),
        ("/oauth/token", "application/x-www-form-urlencoded")
    );
    let body = std::str::from_utf8(&seen[0].body).unwrap();
    let jwt = body
        .strip_prefix("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=")
        .unwrap();
    let mut rules = Validation::new(Algorithm::RS256);
    rules.validate_exp = false;
    rules.set_audience(&[TOKEN_URI]);
    let read =
        jsonwebtoken::decode::<serde_json::Value>(jwt, &DecodingKey::from_rsa_der(&public), &rules).unwrap();
    assert_eq!(read.header.kid.as_deref(), Some("kid-7"));
    let now = WALL.0 / 1000;
    assert_eq!(
        read.claims,
        json!({"iss": "pusher@chat-1.example", "scope": "https://www.googleapis.com/auth/firebase.messaging",
               "aud": TOKEN_URI, "iat": now, "exp": now + 3600})
    );
}

#[tokio::test(start_paused = true)]
async fn the_configuration_may_send_the_assertion_elsewhere() {
    let json = support::service_account(TOKEN_URI).0;
    let server =
        Server::new(None, |seen, _| if seen.authority == "other.example" { grant("t", 3600) } else { ok() });
    let account = ServiceAccount::from_json(json.as_bytes(), Some("https://other.example/t")).unwrap();
    let origin = Origin::parse("https://provider.example").unwrap();
    let fcm = Fcm::new(account, None, origin, &wires(&server, TestWorld::new())).unwrap();
    assert_eq!(fcm.wake(&device(), &wake(Urgency::Message)).await.verdict, Verdict::Done);
    assert_eq!(server.seen()[0].path, "/t");
}

#[tokio::test(start_paused = true)]
async fn many_wakes_fetch_one_token_and_the_next_before_it_ends() {
    let rig = google(|_| ok());
    let (device, message) = (device(), wake(Urgency::Message));
    let answers = join_all((0..20).map(|_| rig.fcm.wake(&device, &message))).await;
    assert!(answers.iter().all(|answer| answer.verdict == Verdict::Done));
    assert_eq!(at(&rig, "token.example").len(), 1);
    tokio::time::sleep(Duration::from_mins(54)).await;
    rig.fcm.wake(&device, &message).await;
    assert_eq!(at(&rig, "token.example").len(), 1, "it holds still");
    tokio::time::sleep(Duration::from_mins(2)).await;
    let answers = join_all((0..20).map(|_| rig.fcm.wake(&device, &message))).await;
    assert!(answers.iter().all(|answer| answer.verdict == Verdict::Done));
    assert_eq!(at(&rig, "token.example").len(), 2, "one fetches, before the end");
    rig.fcm.wake(&device, &message).await;
    assert_eq!(at(&rig, "provider.example").last().unwrap().header("authorization"), "Bearer t1");
}

#[tokio::test(start_paused = true)]
async fn an_old_token_serves_until_its_end_while_no_new_one_is_to_be_had() {
    let asked = AtomicUsize::new(0);
    let rig = rig(Server::new(None, move |seen, _| match seen.authority.as_str() {
        "token.example" if asked.fetch_add(1, Ordering::Relaxed) == 0 => grant("t0", 3600),
        "token.example" => answer(503, "<html>"),
        _ => ok(),
    }));
    let (device, message) = (device(), wake(Urgency::Message));
    rig.fcm.wake(&device, &message).await;
    tokio::time::sleep(Duration::from_mins(57)).await;
    for _ in 0..5 {
        assert_eq!(rig.fcm.wake(&device, &message).await.verdict, Verdict::Done);
    }
    assert_eq!(at(&rig, "token.example").len(), 2, "a failure is not repeated at once");
    tokio::time::sleep(Duration::from_mins(3)).await;
    let answers = join_all((0..5).map(|_| rig.fcm.wake(&device, &message))).await;
    let after = Some(Millis::from_secs(10));
    let unavailable = (Verdict::Retry { after, scope: Scope::App }, "token_unavailable");
    assert!(answers.iter().all(|answer| verdict(answer) == unavailable), "{answers:?}");
    assert_eq!(at(&rig, "token.example").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_token_endpoint_that_refuses_stalls_or_talks_nonsense() {
    let after = Some(Millis::from_secs(10));
    let unavailable = (Verdict::Retry { after, scope: Scope::App }, "token_unavailable");
    let refused = (Verdict::FixConfiguration, "token_refused");
    for (say, wanted) in [
        (answer(400, r#"{"error":"invalid_grant"}"#), refused),
        (answer(401, "<html>"), refused),
        (answer(500, ""), unavailable),
        (answer(200, "<html>"), unavailable),
        (answer(200, r#"{"access_token":"a b\n"}"#), unavailable),
        (Say::Stall, unavailable),
    ] {
        let rig = rig(Server::scripted(vec![say]));
        let start = rig.world.now();
        assert_eq!(verdict(&rig.fcm.wake(&device(), &wake(Urgency::Message)).await), wanted);
        assert!(rig.world.now() - start <= Millis::from_secs(20));
        assert!(at(&rig, "provider.example").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_access_token_is_replaced_once() {
    let unauthenticated = json!({"error": {"code": 401, "status": "UNAUTHENTICATED"}}).to_string();
    let body = unauthenticated.clone();
    let rig = google(
        move |seen| if seen.header("authorization") == "Bearer t0" { answer(401, &body) } else { ok() },
    );
    assert_eq!(rig.fcm.wake(&device(), &wake(Urgency::Message)).await.verdict, Verdict::Done);
    let rig = google(move |_| answer(401, &unauthenticated));
    let got = rig.fcm.wake(&device(), &wake(Urgency::Message)).await;
    assert_eq!(verdict(&got), (Verdict::FixConfiguration, "UNAUTHENTICATED"));
    assert_eq!(at(&rig, "provider.example").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn both_halves_of_a_wake_share_twenty_seconds() {
    let rig = rig(Server::new(None, |seen, _| match seen.authority.as_str() {
        "token.example" => Say::After(Millis::from_secs(15), Box::new(grant("t0", 3600))),
        _ => Say::Stall,
    }));
    let start = rig.world.now();
    let answer = rig.fcm.wake(&device(), &wake(Urgency::Message)).await;
    assert_eq!((answer.reason, rig.world.now() - start), ("timeout", Millis::from_secs(20)));
}

#[tokio::test(start_paused = true)]
async fn every_line_of_the_table_is_what_happens() {
    for row in TABLE {
        let Status::Is(status) = row.status else { continue };
        let body = match row.reason {
            None => "<!DOCTYPE html>".to_owned(),
            Some("INVALID_ARGUMENT message.token") => json!({"error": {"status": "INVALID_ARGUMENT", "details": [
                {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": "message.token"}]},
                {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "INVALID_ARGUMENT"}]}})
            .to_string(),
            Some(code) => json!({"error": {"code": status, "status": "SOMETHING", "details": [
                {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}]}})
            .to_string(),
        };
        let said = body.clone();
        let rig = google(move |_| answer(status, &said));
        let got = rig.fcm.wake(&device(), &wake(Urgency::Message)).await;
        assert_eq!(got, row.answer(None, None), "{status} {body}");
    }
    let by_status = json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}).to_string();
    let rig = google(move |_| Say::Answer(429, vec![("retry-after", "17".into())], by_status.clone()));
    let got = rig.fcm.wake(&device(), &wake(Urgency::Message)).await;
    let after = Some(Millis::from_secs(17));
    assert_eq!(verdict(&got), (Verdict::Retry { after, scope: Scope::App }, "RESOURCE_EXHAUSTED"));
    for odd in
        [r#"{"error":7}"#, r#"{"error":{"details":7}}"#, r#"{"error":{"details":[{"errorCode":[]}]}}"#, "[]"]
    {
        let rig = google(move |_| answer(404, odd));
        assert_eq!(rig.fcm.wake(&device(), &wake(Urgency::Message)).await.verdict, Verdict::Park, "{odd}");
    }
}

#[test]
fn a_bad_key_file_is_told_without_its_content() {
    let good = support::service_account(TOKEN_URI).0;
    let read = |json: &str| ServiceAccount::from_json(json.as_bytes(), None).err().unwrap();
    let mut errors = vec![(read("kvqz"), BadServiceAccount::Form), (read("{}"), BadServiceAccount::Form)];
    errors.push((read(&good.replace("BEGIN", "kvqz")), BadServiceAccount::Key));
    errors.push((read(&good.replace("https://token", "http://kvqz")), BadServiceAccount::TokenUri));
    for (got, wanted) in errors {
        assert_eq!(got, wanted);
        assert!(!format!("{got:?}{got}").contains("kvqz"));
    }
    let account = ServiceAccount::from_json(good.replace("pusher@", "kvqz@").as_bytes(), None).unwrap();
    assert_eq!(format!("{account:?}"), "ServiceAccount(…)");
}
