//! Each rule of Google's, seen kept and seen broken. **Invariant:** a case differs from an accepted one in one thing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod support;

use bytes::Bytes;
use chappe_fakes::{Clock, Fcm, FcmConfig, HostConfig, Kind, Step, TokenState};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use std::time::Duration;
use support::{Client, Push, account, claims, jwt, login};

const FCM_ERROR: &str = "type.googleapis.com/google.firebase.fcm.v1.FcmError";

async fn start() -> Fcm {
    let host = HostConfig { clock: Clock::at(1_700_000_000_000), ..HostConfig::default() };
    Fcm::start(FcmConfig { host, ..FcmConfig::default() }).await.unwrap()
}

async fn access_token(fcm: &Fcm, client: &mut Client) -> String {
    let seen = client.push(&login(fcm, &claims(fcm))).await;
    assert_eq!(seen.status, 200, "{:?}", seen.body);
    assert_eq!((&seen.json()["token_type"], &seen.json()["expires_in"]), (&json!("Bearer"), &json!(3599)));
    seen.json()["access_token"].as_str().unwrap().to_owned()
}

fn wake(token: &str) -> Value {
    json!({ "message": {
        "token": token,
        "data": { "k": "sync" },
        "android": { "priority": "HIGH", "ttl": "60s", "collapse_key": "c" },
    }})
}

fn send(fcm: &Fcm, access: &str, body: &Value) -> Push {
    let url = format!("{}/v1/projects/{}/messages:send", fcm.url(), fcm.project());
    Push { method: "POST", url, headers: Vec::new(), body: Bytes::from(body.to_string()) }
        .and("authorization", &format!("Bearer {access}"))
        .and("content-type", "application/json")
}

#[tokio::test]
async fn an_account_logs_in_and_sends() {
    let fcm = start().await;
    let mut client = Client::pipe(&fcm).await;
    let access = access_token(&fcm, &mut client).await;
    let token = fcm.new_token();
    let camel = json!({ "message": {
        "token": token, "android": { "collapseKey": "c", "priority": "normal", "ttl": "3.5s" } } });
    for body in [wake(&token), camel, json!({ "message": { "token": token }, "validate_only": false })] {
        let seen = client.push(&send(&fcm, &access, &body)).await;
        assert_eq!(seen.status, 200, "{:?}", seen.body);
        assert!(seen.json()["name"].as_str().unwrap().starts_with("projects/chappe-example/messages/"));
    }
    let entries = fcm.record().entries();
    assert_eq!(entries[0].kind, Kind::Login);
    assert_eq!(entries[1].json(), wake(&token));
    assert_eq!(entries[1].target.as_deref(), Some(token.as_str()));
    assert_eq!((fcm.record().counts().logins, fcm.record().counts().accepted), (1, 3));
}

#[tokio::test]
async fn assertions_are_checked_claim_by_claim() {
    let fcm = start().await;
    let other = start().await;
    let mut client = Client::pipe(&fcm).await;
    let right = claims(&fcm);
    let now = fcm.clock().now_seconds();
    let bent = |name: &str, value: Value| {
        let mut claims = right.clone();
        claims[name] = value;
        login(&fcm, &claims)
    };
    let account = account(&fcm);
    let (kid, pem) = (account["private_key_id"].as_str().unwrap(), account["private_key"].as_str().unwrap());
    let strange = support::account(&other);
    let form = |assertion: &str| {
        login(&fcm, &right)
            .body(format!("grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion={assertion}"))
    };
    let good = jwt(Algorithm::RS256, kid, pem, &right);
    let cases = [
        (bent("iss", json!("somebody@else")), "invalid_grant"),
        (bent("sub", json!("ben@example.org")), "unauthorized_client"),
        (bent("aud", json!(fcm.url())), "invalid_grant"),
        (bent("iat", json!(now + 1)), "invalid_grant"),
        (bent("iat", Value::Null), "invalid_grant"),
        (bent("exp", json!(now + 3601)), "invalid_grant"),
        (bent("exp", json!(now)), "invalid_grant"),
        (bent("scope", json!("https://www.googleapis.com/auth/drive")), "invalid_scope"),
        (bent("scope", Value::Null), "invalid_scope"),
        (
            form(&jwt(Algorithm::RS256, kid, strange["private_key"].as_str().unwrap(), &right)),
            "invalid_grant",
        ),
        (form(&jwt(Algorithm::RS256, "other", pem, &right)), "invalid_grant"),
        (form(&format!("{good}=")), "invalid_grant"),
        (form("a.b"), "invalid_grant"),
        (login(&fcm, &right).body("grant_type=password"), "unsupported_grant_type"),
        (login(&fcm, &right).body("x"), "invalid_request"),
        (form(&format!("{good}&assertion={good}")), "invalid_request"),
        (login(&fcm, &right).with("content-type", "application/json"), "invalid_request"),
    ];
    for (number, (push, error)) in cases.into_iter().enumerate() {
        let seen = client.push(&push).await;
        assert_eq!(
            (seen.status, &seen.json()["error"]),
            (400, &json!(error)),
            "case {number}: {:?}",
            seen.body
        );
    }
    assert_eq!(client.push(&form(&good)).await.status, 200);
    let google = bent("aud", json!("https://oauth2.googleapis.com/token"));
    assert_eq!(client.push(&google).await.status, 200, "what Google's own client signs");
    let mut wide = right.clone();
    wide["scope"] = json!("https://www.googleapis.com/auth/cloud-platform x");
    assert_eq!(client.push(&login(&fcm, &wide)).await.status, 200);
    assert_eq!(fcm.record().counts().wakes, 0);
}

#[tokio::test]
async fn access_tokens_expire_and_can_be_revoked() {
    let fcm = start().await;
    let mut client = Client::pipe(&fcm).await;
    let access = access_token(&fcm, &mut client).await;
    let push = send(&fcm, &access, &wake(&fcm.new_token()));
    fcm.clock().advance(Duration::from_secs(3598));
    assert_eq!(client.push(&push).await.status, 200);
    fcm.clock().advance(Duration::from_secs(1));
    let seen = client.push(&push).await;
    assert_eq!((seen.status, &seen.json()["error"]["status"]), (401, &json!("UNAUTHENTICATED")));
    let access = access_token(&fcm, &mut client).await;
    let push = push.with("authorization", &format!("Bearer {access}"));
    assert_eq!(client.push(&push).await.status, 200);
    fcm.revoke_access_tokens();
    for refused in [push.clone(), push.clone().without("authorization"), push.with("authorization", &access)]
    {
        assert_eq!(client.push(&refused).await.status, 401);
    }
}

#[tokio::test]
async fn messages_that_googles_schema_does_not_have_are_refused() {
    let fcm = start().await;
    let mut client = Client::pipe(&fcm).await;
    let access = access_token(&fcm, &mut client).await;
    let token = fcm.new_token();
    let message = |part: Value| {
        let mut message = wake(&token);
        for (name, value) in part.as_object().unwrap() {
            message["message"][name] = value.clone();
        }
        message
    };
    let android = |part: Value| message(json!({ "android": part }));
    let cases = [
        (json!([]), ""),
        (json!({ "to": token }), "to"),
        (json!({ "validate_only": true }), "message"),
        (json!({ "message": { "data": { "k": "v" } } }), "message"),
        (message(json!({ "topic": "all" })), "message"),
        (message(json!({ "token": 7 })), "message.token"),
        (message(json!({ "time_to_live": 60 })), "message.time_to_live"),
        (message(json!({ "data": { "k": 1 } })), "message.data"),
        (message(json!({ "data": ["k"] })), "message.data"),
        (message(json!({ "data": { "from": "x" } })), "message.data"),
        (message(json!({ "data": { "google.x": "x" } })), "message.data"),
        (message(json!({ "data": { "k": "x".repeat(4096) } })), "message.data"),
        (android(json!({ "priority": "10" })), "message.android.priority"),
        (android(json!({ "ttl": 60 })), "message.android.ttl"),
        (android(json!({ "ttl": "60" })), "message.android.ttl"),
        (android(json!({ "ttl": "2419201s" })), "message.android.ttl"),
        (android(json!({ "collapse_key": 1 })), "message.android.collapse_key"),
        (android(json!({ "colapse_key": "c" })), "message.android.colapse_key"),
    ];
    for (body, field) in cases {
        let seen = client.push(&send(&fcm, &access, &body)).await;
        let error = &seen.json()["error"];
        assert_eq!(
            (seen.status, &error["code"], &error["status"]),
            (400, &json!(400), &json!("INVALID_ARGUMENT"))
        );
        assert_eq!(error["details"][0]["fieldViolations"][0]["field"], field, "{body}");
    }
    let seen = client.push(&send(&fcm, &access, &message(json!({ "token": "no token!" })))).await;
    let details = json!([{ "@type": FCM_ERROR, "errorCode": "INVALID_ARGUMENT" }]);
    assert_eq!((seen.status, &seen.json()["error"]["details"]), (400, &details), "a token that is none");
    let most = message(json!({ "data": { "k": "x".repeat(4095) } }));
    assert_eq!(client.push(&send(&fcm, &access, &most)).await.status, 200);
    let good = send(&fcm, &access, &wake(&token));
    let other = good.clone().to(format!("{}/v1/projects/other/messages:send", fcm.url()));
    for (push, status) in [
        (other, 404),
        (good.clone().method("GET"), 404),
        (good.clone().body("{"), 400),
        (good.clone().body("x".repeat(70_000)), 400),
        (good.clone().with("content-type", "text/plain"), 400),
        (good.with("content-type", "application/json; charset=utf-8"), 200),
    ] {
        assert_eq!(client.push(&push).await.status, status);
    }
}

#[tokio::test]
async fn dead_tokens_and_scripted_answers_have_googles_form() {
    let fcm = start().await;
    let mut client = Client::pipe(&fcm).await;
    let access = access_token(&fcm, &mut client).await;
    let (dead, never, live) = (fcm.new_token(), fcm.new_token(), fcm.new_token());
    fcm.set_token(&dead, TokenState::DeadSince(1));
    fcm.set_token(&never, TokenState::NeverValid);
    let seen = client.push(&send(&fcm, &access, &wake(&dead))).await;
    let error = &seen.json()["error"];
    assert_eq!((seen.status, &error["status"]), (404, &json!("NOT_FOUND")));
    assert_eq!(error["details"], json!([{ "@type": FCM_ERROR, "errorCode": "UNREGISTERED" }]));
    let seen = client.push(&send(&fcm, &access, &wake(&never))).await;
    assert_eq!(
        (seen.status, &seen.json()["error"]["details"][0]["errorCode"]),
        (400, &json!("INVALID_ARGUMENT"))
    );
    fcm.script().next(Step::answer(429, "QUOTA_EXCEEDED").retry_after_seconds(60).into());
    fcm.script().next_for(&live, Step::answer(403, "SENDER_ID_MISMATCH").into());
    let for_live = client.push(&send(&fcm, &access, &wake(&live))).await;
    assert_eq!((for_live.status, &for_live.json()["error"]["status"]), (403, &json!("PERMISSION_DENIED")));
    let next = client.push(&send(&fcm, &access, &wake(&live))).await;
    let error = &next.json()["error"];
    assert_eq!((next.status, next.header("retry-after")), (429, "60"));
    assert_eq!(
        (&error["status"], &error["details"][0]["errorCode"]),
        (&json!("RESOURCE_EXHAUSTED"), &json!("QUOTA_EXCEEDED"))
    );
    fcm.token_script().next(Step::answer(500, "internal_failure").into());
    assert_eq!(client.push(&send(&fcm, &access, &wake(&live))).await.status, 200, "not for messages");
    let seen = client.push(&login(&fcm, &claims(&fcm))).await;
    assert_eq!((seen.status, seen.json()), (500, json!({ "error": "internal_failure" })));
}
