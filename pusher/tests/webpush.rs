//! The Web Push client against push services, good ones and hostile ones. **Invariant:** only the subscription's owner reads
//! the wake, and it says "sync".
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod support;

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::{aead, hkdf};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{PushAddress, PushTarget};
use chappe_protocol::time::Millis;
use chappe_pusher::answers::Status;
use chappe_pusher::provider::{Provider as _, Scope, Verdict, Wake};
use chappe_pusher::transport::{PublicDialer, SystemResolver};
use chappe_pusher::webpush::{BadVapid, Hosts, TABLE, Vapid, WebPush};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{Say, Server, TestWorld, WALL, answer, target, verdict, wake, wires};

const PRIVATE: [u8; 32] = [9; 32];
const AUTH: [u8; 16] = [5; 16];

fn device(endpoint: &str) -> PushTarget {
    let key = PrivateKey::from_private_key(&ECDH_P256, &PRIVATE).unwrap();
    let p256dh = key.compute_public_key().unwrap().as_ref().try_into().unwrap();
    target(PushAddress::WebPush { endpoint: endpoint.into(), p256dh, auth: AUTH })
}

/// What a browser does with a body (RFC 8188 §2, RFC 8291 §3.4).
fn decrypt(body: &[u8]) -> Vec<u8> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let derive = |salt: &[u8], secret: &[u8], info: &[&[u8]], length: usize| {
        let mut out = vec![0; length];
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret);
        prk.expand(info, Length(length)).unwrap().fill(&mut out).unwrap();
        out
    };
    let (salt, size, key, sealed) = (&body[..16], &body[16..20], &body[21..86], &body[86..]);
    assert_eq!((size, body[20]), (&4096_u32.to_be_bytes()[..], 65));
    let private = PrivateKey::from_private_key(&ECDH_P256, &PRIVATE).unwrap();
    let ours = private.compute_public_key().unwrap();
    let info = [&b"WebPush: info\0"[..], ours.as_ref(), key];
    let input = agree(&private, UnparsedPublicKey::new(&ECDH_P256, key), (), |shared| {
        Ok(derive(&AUTH, shared, &info, 32))
    });
    let input = input.unwrap();
    let content_key = derive(salt, &input, &[b"Content-Encoding: aes128gcm\0"], 16);
    let nonce: [u8; 12] = derive(salt, &input, &[b"Content-Encoding: nonce\0"], 12).try_into().unwrap();
    let opening = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_128_GCM, &content_key).unwrap());
    let mut sealed = sealed.to_vec();
    let nonce = aead::Nonce::assume_unique_for_key(nonce);
    let plain = opening.open_in_place(nonce, aead::Aad::empty(), &mut sealed).unwrap();
    assert_eq!(plain.last(), Some(&2), "the last record");
    plain[..plain.len() - 1].to_vec()
}

struct Rig {
    push: WebPush,
    server: Arc<Server>,
    world: Arc<TestWorld>,
    public_pem: String,
}

fn rig(server: Arc<Server>, services_max: usize) -> Rig {
    let (key, public_pem) = support::p256();
    let world = TestWorld::new();
    let vapid = Vapid::new(key.as_bytes(), "mailto:ops@example.org").unwrap();
    let hosts = Hosts::new(&[".example".into()], &[]).unwrap();
    let push = WebPush::new(vapid, hosts, services_max, wires(&server, world.clone()), server.clone());
    Rig { push, server, world, public_pem }
}

fn scripted(script: Vec<Say>) -> Rig {
    rig(Server::scripted(script), 8)
}

#[tokio::test(start_paused = true)]
async fn only_the_subscription_reads_it_and_it_says_sync() {
    for (urgency, word) in
        [(Urgency::Call, "high"), (Urgency::Message, "normal"), (Urgency::Background, "low")]
    {
        let rig = scripted(vec![answer(201, "")]);
        let answer = rig.push.wake(&device("https://push.example/send/abc?x=1"), &wake(urgency)).await;
        assert_eq!(verdict(&answer), (Verdict::Done, "ok"));
        let seen = &rig.server.seen()[0];
        assert_eq!((seen.authority.as_str(), seen.path.as_str()), ("push.example", "/send/abc?x=1"));
        for (name, value) in
            [("ttl", "604800"), ("urgency", word), ("topic", "c0llapse_-"), ("content-encoding", "aes128gcm")]
        {
            assert_eq!(seen.header(name), value, "{name}");
        }
        assert_eq!(seen.headers.len(), 7, "{:?}", seen.headers.keys().collect::<Vec<_>>());
        assert_eq!(decrypt(&seen.body), br#"{"sync":1}"#);
    }
}

#[tokio::test(start_paused = true)]
async fn no_two_messages_share_key_or_salt() {
    let rig = scripted(vec![answer(201, "")]);
    for _ in 0..2 {
        rig.push.wake(&device("https://push.example/"), &wake(Urgency::Message)).await;
    }
    let seen = rig.server.seen();
    assert_ne!(seen[0].body[..16], seen[1].body[..16]);
    assert_ne!(seen[0].body[21..86], seen[1].body[21..86]);
}

fn claims(rig: &Rig, nth: usize) -> serde_json::Value {
    let header = rig.server.seen()[nth].header("authorization").to_owned();
    let (token, key) = header.strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
    assert_eq!(key, rig.push_key());
    let mut rules = Validation::new(Algorithm::ES256);
    (rules.validate_exp, rules.validate_aud) = (false, false);
    let decoding = DecodingKey::from_ec_pem(rig.public_pem.as_bytes()).unwrap();
    jsonwebtoken::decode::<serde_json::Value>(token, &decoding, &rules).unwrap().claims
}

impl Rig {
    /// The last 65 bytes of a public key on P-256 in DER are its point.
    fn push_key(&self) -> String {
        let body: String = self.public_pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        URL_SAFE_NO_PAD.encode(&der[der.len() - 65..])
    }
}

#[tokio::test(start_paused = true)]
async fn the_vapid_token_verifies_names_the_origin_and_is_renewed() {
    let rig = scripted(vec![answer(201, "")]);
    let now = WALL.0 / 1000;
    rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    rig.push.wake(&device("https://other.example:8443/x"), &wake(Urgency::Message)).await;
    let wanted =
        |aud: &str| serde_json::json!({"aud": aud, "exp": now + 12 * 3600, "sub": "mailto:ops@example.org"});
    assert_eq!(claims(&rig, 0), wanted("https://push.example"));
    assert_eq!(claims(&rig, 1), wanted("https://other.example:8443"));
    tokio::time::sleep(Duration::from_hours(5)).await;
    rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    assert_eq!(claims(&rig, 2), wanted("https://push.example"), "kept");
    tokio::time::sleep(Duration::from_hours(1)).await;
    rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    assert_eq!(claims(&rig, 3)["exp"], now + 18 * 3600);
    rig.world.step.store(20 * 3_600_000, Ordering::Relaxed);
    rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    assert_eq!(claims(&rig, 4)["exp"], now + 38 * 3600, "the clock jumped");
}

#[tokio::test(start_paused = true)]
async fn every_line_of_the_table_is_what_happens() {
    for row in TABLE {
        let (Status::Is(status) | Status::Class(status)) = row.status else { continue };
        let status = if status < 10 { status * 100 + 2 } else { status };
        if status < 200 {
            continue; // no final answer
        }
        let rig = scripted(vec![answer(status, "<html>why</html>")]);
        let got = rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
        assert_eq!(got, row.answer(None, None), "{status}");
    }
    let rig = scripted(vec![Say::Answer(503, vec![("retry-after", "9".into())], String::new())]);
    let got = rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    assert_eq!(got.verdict, Verdict::Retry { after: Some(Millis::from_secs(9)), scope: Scope::Device });
}

#[tokio::test(start_paused = true)]
async fn a_redirection_is_not_followed() {
    let rig = scripted(vec![Say::Answer(
        307,
        vec![("location", "https://other.example/inside".into())],
        String::new(),
    )]);
    let got = rig.push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    assert_eq!(verdict(&got), (Verdict::Park, "http_3xx"));
    assert_eq!(*rig.server.hosts.lock().unwrap(), ["push.example"]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_nobody_allowed_is_not_dialled() {
    let rig = scripted(vec![answer(201, "")]);
    for endpoint in
        ["https://elsewhere.test/x", "https://127.0.0.1/x", "https://[::1]/x", "https://push.example.test/x"]
    {
        let got = rig.push.wake(&device(endpoint), &wake(Urgency::Message)).await;
        assert_eq!(verdict(&got), (Verdict::Park, "host_not_allowed"), "{endpoint}");
    }
    let expired = Wake { expires_at: WALL, ..wake(Urgency::Message) };
    assert_eq!(rig.push.wake(&device("https://push.example/x"), &expired).await.reason, "expired");
    assert_eq!(rig.server.dialled(), 0);
}

/// Every host is allowed; only what the configuration calls private may have an address that is not public.
#[tokio::test]
async fn an_address_inside_is_refused_unless_the_configuration_names_the_host() {
    let server = Server::scripted(vec![answer(201, "")]);
    let vapid = Vapid::new(support::p256().0.as_bytes(), "https://example.org").unwrap();
    let hosts = Hosts::new(&["*".into()], &["push.example".into()]).unwrap();
    let mut wires = wires(&server, TestWorld::new());
    wires.dialer = Arc::new(PublicDialer(SystemResolver));
    let push = WebPush::new(vapid, hosts, 8, wires, server.clone());
    for endpoint in [
        "https://127.0.0.1:9/x",
        "https://[::ffff:10.0.0.1]:9/x",
        "https://169.254.169.254/x",
        "https://localhost:9/",
    ] {
        let got = push.wake(&device(endpoint), &wake(Urgency::Message)).await;
        assert_eq!(verdict(&got), (Verdict::Park, "not_public"), "{endpoint}");
    }
    let got = push.wake(&device("https://push.example/x"), &wake(Urgency::Message)).await;
    assert_eq!(got.verdict, Verdict::Done);
}

#[tokio::test(start_paused = true)]
async fn push_services_are_bounded_in_number_and_the_longest_unused_gives_way() {
    let rig = rig(Server::scripted(vec![answer(201, "")]), 2);
    let endpoints = [
        "https://push.example/",
        "https://other.example/",
        "https://push.example/",
        "https://token.example/",
    ];
    for endpoint in endpoints.into_iter().chain(["https://push.example/", "https://other.example/"]) {
        assert_eq!(rig.push.wake(&device(endpoint), &wake(Urgency::Message)).await.verdict, Verdict::Done);
    }
    let dialled = rig.server.hosts.lock().unwrap().clone();
    assert_eq!(dialled, ["push.example", "other.example", "token.example", "other.example"]);
}

#[tokio::test(start_paused = true)]
async fn one_push_service_that_fails_stops_no_other() {
    let rig = rig(
        Server::new(None, |seen, _| answer(if seen.authority == "other.example" { 503 } else { 201 }, "")),
        8,
    );
    for _ in 0..6 {
        rig.push.wake(&device("https://other.example/"), &wake(Urgency::Message)).await;
    }
    let got = rig.push.wake(&device("https://other.example/"), &wake(Urgency::Message)).await;
    assert_eq!(got.reason, "breaker_open");
    assert!(matches!(got.verdict, Verdict::Held { scope: Scope::Device, .. }));
    let got = rig.push.wake(&device("https://push.example/"), &wake(Urgency::Message)).await;
    assert_eq!(got.verdict, Verdict::Done);
}

#[test]
fn a_vapid_key_comes_in_two_forms_and_prints_in_none() {
    let (pem, public_pem) = support::p256();
    let body: String = public_pem.lines().filter(|line| !line.starts_with('-')).collect();
    let spki = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    let vapid = Vapid::new(pem.as_bytes(), "mailto:a@example.org").unwrap();
    assert_eq!(vapid.public_key(), URL_SAFE_NO_PAD.encode(&spki[spki.len() - 65..]));
    // RFC 8291 appendix A's key of the sender.
    let scalar = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw=\n";
    let vapid = Vapid::new(scalar.as_bytes(), "https://example.org").unwrap();
    assert_eq!(
        vapid.public_key(),
        "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8"
    );
    assert_eq!(format!("{vapid:?}"), "Vapid(…)");
    assert_eq!(Vapid::new(b"kvqz", "https://example.org").err(), Some(BadVapid::Key));
    assert_eq!(Vapid::new(scalar.as_bytes(), "ops@example.org").err(), Some(BadVapid::Subject));
}
