//! Each rule of Web Push, seen kept and seen broken. **Invariant:** a case differs from an accepted one in one thing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod support;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use chappe_fakes::{Clock, HostConfig, Subscription, TokenState, WebPush, WebPushConfig};
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use support::{Client, Push, jwt};

async fn start(vapid_demanded: bool) -> WebPush {
    let host = HostConfig { clock: Clock::at(1_700_000_000_000), ..HostConfig::default() };
    WebPush::start(WebPushConfig { host, vapid_demanded }).await.unwrap()
}

struct Bytes16;
struct Bytes12;
struct Bytes32;

impl KeyType for Bytes16 {
    fn len(&self) -> usize {
        16
    }
}

impl KeyType for Bytes12 {
    fn len(&self) -> usize {
        12
    }
}

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF as the library has it: the fake does it by hand.
fn derive<L: KeyType>(salt: &[u8], secret: &[u8], info: &[u8], length: L) -> Vec<u8> {
    let mut out = vec![0; length.len()];
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    extracted.expand(&[info], length).unwrap().fill(&mut out).unwrap();
    out
}

/// Encrypts what stands before the delimiter, the delimiter, and what stands after it.
fn encrypt(subscription: &Subscription, plain: &[u8], record_bytes: u32) -> Vec<u8> {
    let read = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let (browser, auth) = (read(&subscription.p256dh), read(&subscription.auth));
    let private = PrivateKey::generate(&ECDH_P256).unwrap();
    let public = private.compute_public_key().unwrap().as_ref().to_vec();
    let secret =
        agree(&private, UnparsedPublicKey::new(&ECDH_P256, &browser), (), |secret| Ok(secret.to_vec()))
            .unwrap();
    let info = [b"WebPush: info\0".as_slice(), &browser, &public].concat();
    let input = derive(&auth, &secret, &info, Bytes32);
    let salt = [7_u8; 16];
    let key = derive(&salt, &input, b"Content-Encoding: aes128gcm\0", Bytes16);
    let nonce = derive(&salt, &input, b"Content-Encoding: nonce\0", Bytes12);
    let mut record = plain.to_vec();
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).unwrap())
        .seal_in_place_append_tag(
            Nonce::try_assume_unique_for_key(&nonce).unwrap(),
            Aad::empty(),
            &mut record,
        )
        .unwrap();
    [&salt[..], &record_bytes.to_be_bytes(), &[65], &public, &record].concat()
}

/// A VAPID key pair: PEM and public point.
fn vapid_key() -> (String, String) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let der = pair.to_pkcs8v1().unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    (pem, URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()))
}

fn vapid_claims(push: &WebPush) -> Value {
    json!({ "aud": push.url(), "exp": push.clock().now_seconds() + 24 * 3600, "sub": "mailto:push@example.org" })
}

fn vapid(key: &(String, String), claims: &Value) -> String {
    format!("vapid t={}, k={}", jwt(Algorithm::ES256, "", &key.0, claims), key.1)
}

fn message(subscription: &Subscription, authorization: &str) -> Push {
    let body = Bytes::from(encrypt(subscription, b"sync\x02\0\0", 4096));
    Push { method: "POST", url: subscription.endpoint.clone(), headers: Vec::new(), body }
        .and("ttl", "60")
        .and("urgency", "high")
        .and("topic", "collapse-key_0")
        .and("content-encoding", "aes128gcm")
        .and("authorization", authorization)
}

#[tokio::test]
async fn a_message_is_decrypted_and_gets_a_location() {
    let push = start(true).await;
    let subscription = push.subscribe().unwrap();
    let key = vapid_key();
    let mut client = Client::pipe(&push).await;
    let right = message(&subscription, &vapid(&key, &vapid_claims(&push)));
    let seen = client.push(&right).await;
    assert_eq!(seen.status, 201, "{:?}", seen.body);
    assert!(seen.header("location").starts_with(&push.url()));
    assert_eq!(seen.header("ttl"), "60");
    let entry = support::last(&push, 1).await;
    assert_eq!(entry.plain.as_deref(), Some(&b"sync"[..]), "without the padding");
    assert_eq!(entry.target.as_deref(), Some(subscription.endpoint.as_str()));
    let https =
        json!({ "aud": push.url(), "exp": push.clock().now_seconds() + 1, "sub": "https://example.org" });
    for right in [
        right.clone().without("urgency").without("topic"),
        right.clone().with("ttl", "0").with("urgency", "very-low").with("topic", &"x".repeat(32)),
        right.clone().body("").without("content-encoding"),
        right.clone().with("authorization", &vapid(&key, &https).replace(", k=", ",k=")),
        right.body(encrypt(&subscription, &[&[b'x'; 3992][..], &[2]].concat(), 4096)),
    ] {
        let seen = client.push(&right).await;
        assert_eq!(seen.status, 201, "{:?}", seen.body);
    }
    assert_eq!(push.record().wakes()[5].body.len(), 4095);
    let json: Value = serde_json::from_str(&subscription.json()).unwrap();
    assert_eq!(json["keys"]["auth"].as_str(), Some(subscription.auth.as_str()));
}

#[tokio::test]
async fn headers_and_bodies_that_the_rfcs_do_not_allow_are_refused() {
    let push = start(true).await;
    let (subscription, other) = (push.subscribe().unwrap(), push.subscribe().unwrap());
    let mut client = Client::pipe(&push).await;
    let right = message(&subscription, &vapid(&vapid_key(), &vapid_claims(&push)));
    let body = |plain: &[u8], record: u32| right.clone().body(encrypt(&subscription, plain, record));
    let cases = [
        (right.clone().method("PUT"), 405, "MethodNotAllowed"),
        (right.clone().to(format!("{}/push/nobody", push.url())), 404, "NotFound"),
        (right.clone().without("ttl"), 400, "MissingTtl"),
        (right.clone().with("ttl", "-1"), 400, "BadTtl"),
        (right.clone().with("urgency", "urgent"), 400, "BadUrgency"),
        (right.clone().with("topic", &"x".repeat(33)), 400, "BadTopic"),
        (right.clone().with("topic", "a b"), 400, "BadTopic"),
        (right.clone().with("topic", ""), 400, "BadTopic"),
        (right.clone().without("content-encoding"), 415, "BadEncoding"),
        (right.clone().with("content-encoding", "aesgcm"), 415, "BadEncoding"),
        (right.clone().body(vec![0; 4097]), 413, "PayloadTooLarge"),
        (right.clone().body(vec![0; 100_000]), 413, "PayloadTooLarge"),
        (right.clone().body("sync"), 400, "Undecryptable"),
        (right.clone().body(encrypt(&other, b"sync\x02", 4096)), 400, "Undecryptable"),
        (body(b"sync\x01", 4096), 400, "Undecryptable"),
        (body(b"\0\0", 4096), 400, "Undecryptable"),
        (body(b"sync\x02", 17), 400, "Undecryptable"),
        (body(b"synchronise\x02", 20), 400, "Undecryptable"),
    ];
    for (number, (bent, status, reason)) in cases.into_iter().enumerate() {
        let seen = client.push(&bent).await;
        assert_eq!((seen.status, &seen.json()["error"]), (status, &json!(reason)), "case {number}");
    }
    assert_eq!(push.record().counts().accepted, 0);
}

#[tokio::test]
async fn vapid_is_checked_claim_by_claim() {
    let push = start(true).await;
    let subscription = push.subscribe().unwrap();
    let mut client = Client::pipe(&push).await;
    let (key, stranger) = (vapid_key(), vapid_key());
    let right = vapid(&key, &vapid_claims(&push));
    let now = push.clock().now_seconds();
    let bent = |name: &str, value: Value| {
        let mut claims = vapid_claims(&push);
        claims[name] = value;
        vapid(&key, &claims)
    };
    let (token, k) = right.split_once(", ").unwrap();
    let cases = [
        bent("aud", json!("https://push.example.org")),
        bent("aud", json!(format!("{}/", push.url()))),
        bent("exp", json!(now)),
        bent("exp", json!(now + 24 * 3600 + 1)),
        bent("exp", Value::Null),
        bent("sub", json!("push@example.org")),
        bent("sub", json!("mailto:")),
        bent("sub", Value::Null),
        right.replace(&key.1, &stranger.1),
        right.replace("vapid", "bearer"),
        token.to_owned(),
        format!("vapid {k}"),
        format!("{right}="),
        format!("{right}, {k}"),
        format!("{token}, k=AAAA"),
        "vapid".to_owned(),
    ];
    for (number, authorization) in cases.iter().enumerate() {
        let seen = client.push(&message(&subscription, authorization)).await;
        assert_eq!((seen.status, &seen.json()["error"]), (403, &json!("BadVapid")), "case {number}");
    }
    let none = message(&subscription, &right).without("authorization");
    let seen = client.push(&none).await;
    assert_eq!((seen.status, seen.header("www-authenticate")), (401, "vapid"));
    let only = push.subscribe_for(&key.1).unwrap();
    assert_eq!(client.push(&message(&only, &vapid(&stranger, &vapid_claims(&push)))).await.status, 403);
    assert_eq!(client.push(&message(&only, &right)).await.status, 201);
    let lenient = start(false).await;
    let mut client = Client::pipe(&lenient).await;
    let none = message(&lenient.subscribe().unwrap(), &right).without("authorization");
    assert_eq!(client.push(&none).await.status, 201);
    let restricted = message(&lenient.subscribe_for(&key.1).unwrap(), &right).without("authorization");
    assert_eq!(client.push(&restricted).await.status, 401);
}

#[tokio::test]
async fn subscriptions_that_ended_are_gone() {
    let push = start(true).await;
    let (dead, never) = (push.subscribe().unwrap(), push.subscribe().unwrap());
    push.set_token(&dead.endpoint, TokenState::DeadSince(1));
    push.set_token(&never.endpoint, TokenState::NeverValid);
    let mut client = Client::pipe(&push).await;
    let authorization = vapid(&vapid_key(), &vapid_claims(&push));
    assert_eq!(client.push(&message(&dead, &authorization)).await.status, 410);
    assert_eq!(client.push(&message(&never, &authorization)).await.status, 404);
    assert!(push.private_key(&dead.endpoint).is_ok() && push.private_key("https://else").is_err());
}
