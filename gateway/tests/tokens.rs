//! Tokens that nobody should believe, against the published keys of a sign-in service, in paused time.
//! **Invariant:** each is refused with its close code, none makes a panic, and the good one beside it still gets in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_gateway::{GatewayMetrics, SetAlgorithm, TokenVerifier};
use chappe_protocol::world::World;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use support::client::device;
use support::issuer::{AUDIENCE, ISSUER, Key, Service, b64, claims, signed};
use support::{Cluster, TokioWorld};

/// The code of the close that a token from ben's phone meets; 0: it is good. Every fetch that it asks for may begin at once.
async fn code(verifier: &TokenVerifier, world: &TokioWorld, token: &str) -> u16 {
    tokio::time::sleep(Duration::from_secs(11)).await;
    verifier
        .check(token, &device("phone"), None, world)
        .await
        .map_or_else(|error| error.close_code().code(), |_| 0)
}

/// Runs the verifier's fetches beside a test.
async fn with<T>(verifier: &TokenVerifier, world: &TokioWorld, test: impl Future<Output = T>) -> T {
    let metrics = GatewayMetrics::new(&prometheus::Registry::new()).unwrap();
    tokio::select! {
        biased;
        () = verifier.run(world, &metrics) => panic!("it runs for ever"),
        done = test => done,
    }
}

/// What a service publishes beside its two good keys.
struct Others {
    shared: Vec<u8>,
    encrypting: Key,
    leaked: Key,
    eddsa: Key,
    rsa: Key,
    foreign: Key,
}

impl Others {
    fn new() -> Self {
        Self {
            shared: b"a secret that somebody has published".to_vec(),
            encrypting: Key::es256("encrypting"),
            leaked: Key::es256("leaked"),
            eddsa: Key::eddsa("eddsa"),
            rsa: Key::rs256("rsa"),
            foreign: Key::es256("foreign"),
        }
    }

    fn jwks(&self) -> Vec<Value> {
        let with = |key: &Key, name: &str, value: Value| {
            let mut jwk = key.jwk();
            jwk[name] = value;
            jwk
        };
        vec![
            json!({ "kty": "oct", "kid": "shared", "alg": "HS256", "use": "sig", "k": b64(&self.shared) }),
            with(&self.encrypting, "use", "enc".into()),
            with(&self.leaked, "d", b64([7; 32]).into()),
            self.eddsa.jwk(),
            self.rsa.jwk(),
            with(&self.foreign, "crv", "P-384".into()),
            with(&self.foreign, "alg", "ES384".into()),
            with(&self.foreign, "x", b64([1; 31]).into()),
            with(&self.foreign, "kid", 7.into()),
            with(&self.foreign, "kid", "".into()),
            with(&self.foreign, "key_ops", json!(["sign"])),
            json!("no key at all"),
        ]
    }
}

fn hmac(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
}

/// Headers, each signed by the key that it names if that can be.
fn headers(one: &Key, others: &Others, good: &str) -> Vec<(String, u16)> {
    let long = |bytes: usize| format!(r#"{{"alg":"ES256","kid":"{}"}}"#, "k".repeat(bytes));
    let own = json!({ "alg": "ES256", "kid": "one", "jwk": others.foreign.jwk() }).to_string();
    let by_one = [
        r#"{"alg":"none","kid":"one"}"#,
        r#"{"alg":"None","kid":"one"}"#,
        r#"{"alg":"es256","kid":"one"}"#,
        r#"{"alg":"ES384","kid":"one"}"#,
        r#"{"alg":"PS256","kid":"rsa"}"#,
        r#"{"alg":["ES256"],"kid":"one"}"#,
        r#"{"kid":"one"}"#,
        r#"{"alg":"ES256","alg":"none","kid":"one"}"#,
        r#"{"alg":"ES256","kid":"one","kid":"two"}"#,
        r#"{"alg":"ES256","kid":7}"#,
        r#"{"alg":"ES256","kid":["one"]}"#,
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"ES256","kid":""}"#,
        r#"{"alg":"ES256","kid":"ONE"}"#,
        r#"{"alg":"ES256","kid":"one "}"#,
        r#"{"alg":"ES256","kid":"one\u0000"}"#,
        r#"{"alg":"ES256","kid":"one\n[error] all is well"}"#,
        r#"{"alg":"ES256","kid":"../../../../dev/null"}"#,
        r#"{"alg":"ES256","kid":"one' OR '1'='1"}"#,
        r#"{"alg":"ES256","kid":"https://evil.example/keys#one"}"#,
        r#"{"alg":"ES256","kid":"two"}"#,
        r#"{"alg":"ES256","kid":"eddsa"}"#,
        r#"{"alg":"ES256","kid":"rsa"}"#,
        r#"{"alg":"ES256","kid":"one","crit":["exp"]}"#,
        r#"{"alg":"ES256","kid":"one","crit":[]}"#,
        r#"{"alg":"ES256","kid":"one","b64":false,"crit":["b64"]}"#,
        r#"{"alg":"ES256","kid":"one","jku":"https://evil.example/keys"}"#,
        r#"{"alg":"ES256","kid":"one","x5u":"https://evil.example/cert"}"#,
        r#"{"alg":"ES256","kid":"one","x5c":["AAAA"]}"#,
        r#"{"alg":"ES256","kid":"one","cty":"JWT"}"#,
        r#"{"alg":"ES256","kid":"one","enc":"A256GCM"}"#,
        r#"["ES256","one"]"#,
        "ES256",
        "",
        &long(257),
        &long(5000),
    ];
    let mut tokens: Vec<String> = by_one.iter().map(|header| one.token(header, good)).collect();
    let (hs, public) = (r#"{"alg":"HS256","kid":"one"}"#, one.public());
    tokens.extend([
        signed(hs, good, |message| hmac(&public, message)),
        signed(hs, good, |message| hmac(one.jwk().to_string().as_bytes(), message)),
        signed(r#"{"alg":"HS256","kid":"shared"}"#, good, |message| hmac(&others.shared, message)),
        signed(r#"{"alg":"ES256","kid":"shared"}"#, good, |message| hmac(&others.shared, message)),
        others.encrypting.token(&others.encrypting.header(), good),
        others.leaked.token(&others.leaked.header(), good),
        others.eddsa.token(&others.eddsa.header(), good),
        others.rsa.token(&others.rsa.header(), good),
        others.foreign.token(&others.foreign.header(), good),
        others.foreign.token(&one.header(), good),
        others.foreign.token(&own, good),
        others.foreign.token(r#"{"alg":"ES256","kid":"7"}"#, good),
    ]);
    tokens.into_iter().map(|token| (token, 4500)).collect()
}

/// Claims, all signed well.
fn payloads(one: &Key, world: &TokioWorld) -> Vec<(String, u16)> {
    let (good, now) = (claims(world, "ben", "phone"), world.wall().0 / 1000);
    let with = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed[name] = value;
        (changed.to_string(), 4500)
    };
    let without = |name: &str| {
        let mut changed = good.clone();
        changed.as_object_mut().unwrap().remove(name);
        (changed.to_string(), 4500)
    };
    let twice = |more: &str| (good.to_string().replacen('{', &format!("{{{more},"), 1), 4500);
    let payloads = vec![
        without("iss"),
        without("aud"),
        without("sub"),
        without("device"),
        without("exp"),
        with("iss", "https://evil.example".into()),
        with("iss", "https://id.example/".into()),
        with("iss", "HTTPS://ID.EXAMPLE".into()),
        with("iss", json!([ISSUER])),
        with("iss", json!([ISSUER, "https://evil.example"])),
        with("iss", Value::Null),
        with("aud", "another".into()),
        with("aud", "chappe ".into()),
        with("aud", json!(["another", "third"])),
        with("aud", json!([])),
        with("aud", json!([[AUDIENCE]])),
        with("aud", json!({ "0": AUDIENCE })),
        with("aud", 7.into()),
        with("sub", "".into()),
        with("sub", json!(["ben"])),
        with("sub", "b\u{0}en".into()),
        with("device", "laptop".into()),
        with("device", "../phone".into()),
        with("exp", now.to_string().into()),
        with("exp", json!(1e300)),
        (with("exp", (now - 61).into()).0, 4401),
        (with("exp", 0.into()).0, 4401),
        with("nbf", (now + 3000).into()),
        with("nbf", "now".into()),
        twice(r#""iss":"https://evil.example""#),
        twice(r#""aud":"another""#),
        twice(r#""sub":"ada""#),
        twice(r#""exp":1"#),
        (json!([good]).to_string(), 4500),
        (json!(one.good(world, "ben", "phone")).to_string(), 4500),
        (one.good(world, "ben", "phone"), 4500),
        ("{".into(), 4500),
        (String::new(), 4500),
        ("[".repeat(4000), 4500),
    ];
    payloads.into_iter().map(|(payload, code)| (one.token(&one.header(), &payload), code)).collect()
}

/// What is wrong with the letters.
fn shapes(one: &Key, world: &TokioWorld) -> Vec<(String, u16)> {
    let good = one.good(world, "ben", "phone");
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("three parts") };
    let said = format!("{header}.{payload}");
    let for_ada = b64(claims(world, "ada", "phone").to_string());
    // 64 bytes leave four bits over, which are zero.
    let (kept, last) = signature.split_at(signature.len() - 1);
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.find(last).map(|at| &alphabet[at + 1..at + 2]).unwrap();
    let raw = one.sign(said.as_bytes());
    let der = [&[0x30, 68, 2, 32], &raw[..32], &[2, 32], &raw[32..]].concat();
    let more = json!({ "x": "a".repeat(9 * 1024) });
    let tokens = [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        said.clone(),
        format!("{said}."),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.{signature}"),
        format!("{header}..{payload}.{signature}"),
        format!("{said}.{kept}"),
        format!("{said}.{kept}{next}"),
        format!("{good}=="),
        format!("{header}=.{payload}.{signature}"),
        format!("{said}.{}", b64(der)),
        format!("{said}.{}", b64([0; 64])),
        format!("{said}.{}", b64([raw.as_slice(), &[0]].concat())),
        format!("{header}.{for_ada}.{signature}"),
        format!("{good}\n"),
        format!(" {good}"),
        good.replace('.', "\u{3002}"),
        good.to_uppercase(),
        json!({ "protected": header, "payload": payload, "signature": signature }).to_string(),
        format!("Bearer {good}"),
        one.token(&one.header(), &more.to_string()),
        "a".repeat(1 << 20),
    ];
    tokens.into_iter().map(|token| (token, 4500)).collect()
}

#[tokio::test(start_paused = true)]
async fn hostile_tokens_are_refused_with_their_close_codes() {
    let (one, two, others) = (Key::es256("one"), Key::es256("two"), Others::new());
    let service = Service::new(&[]);
    let jwks: Vec<Value> = others.jwks().into_iter().chain([one.jwk(), two.jwk()]).collect();
    service.publish_set(&jwks);
    let (verifier, world) = (service.verifier("/keys", SetAlgorithm::Es256), Cluster::new().world);
    let test = async {
        let good = claims(&world, "ben", "phone").to_string();
        let mut cases = headers(&one, &others, &good);
        cases.extend(payloads(&one, &world));
        cases.extend(shapes(&one, &world));
        assert!(cases.len() > 100, "{} of them", cases.len());
        for (number, (token, wanted)) in cases.iter().enumerate() {
            let begin: String = token.chars().take(200).collect();
            assert_eq!(code(&verifier, &world, token).await, *wanted, "{number}: {begin}");
        }
        for key in [&one, &two] {
            assert_eq!(code(&verifier, &world, &key.good(&world, "ben", "phone")).await, 0);
        }
        let several = json!({ "iss": ISSUER, "aud": ["other", AUDIENCE], "sub": "ben", "device": "phone",
            "exp": world.wall().0 / 1000, "nbf": world.wall().0 / 1000 + 50, "azp": "app" });
        let typed = r#"{"alg":"ES256","typ":"at+jwt","kid":"two"}"#;
        assert_eq!(code(&verifier, &world, &two.token(typed, &several.to_string())).await, 0);
    };
    with(&verifier, &world, test).await;
}

#[tokio::test(start_paused = true)]
async fn each_algorithm_uses_its_own_keys_and_no_others() {
    let keys = [Key::es256("one"), Key::eddsa("two"), Key::rs256("three")];
    let service = Service::new(&[&keys[0], &keys[1], &keys[2]]);
    let world = Cluster::new().world;
    let algorithms = [SetAlgorithm::Es256, SetAlgorithm::EdDsa, SetAlgorithm::Rs256];
    for (mine, algorithm) in algorithms.into_iter().enumerate() {
        let verifier = service.verifier("/keys", algorithm);
        let test = async {
            for (number, key) in keys.iter().enumerate() {
                let wanted = if number == mine { 0 } else { 4500 };
                assert_eq!(code(&verifier, &world, &key.good(&world, "ben", "phone")).await, wanted);
            }
        };
        with(&verifier, &world, test).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_without_a_key_id_is_for_a_set_of_one_key() {
    let (one, two) = (Key::es256("one"), Key::es256("two"));
    let service = Service::new(&[&one]);
    let (verifier, world) = (service.verifier("/keys", SetAlgorithm::Es256), Cluster::new().world);
    let plain = r#"{"alg":"ES256"}"#;
    let nameless = |key: &Key| {
        let mut jwk = key.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let renewed = async || tokio::time::sleep(Duration::from_secs(401)).await;
    let test = async {
        let token = || one.token(plain, &claims(&world, "ben", "phone").to_string());
        assert_eq!(code(&verifier, &world, &token()).await, 0);
        service.publish_set(&[nameless(&one)]);
        renewed().await;
        assert_eq!(code(&verifier, &world, &token()).await, 0, "nor has the key one");
        assert_eq!(
            code(&verifier, &world, &one.good(&world, "ben", "phone")).await,
            4500,
            "a name for nobody"
        );
        service.publish_set(&[nameless(&one), two.jwk()]);
        renewed().await;
        assert_eq!(code(&verifier, &world, &token()).await, 4500, "one of two is named");
        assert_eq!(code(&verifier, &world, &two.good(&world, "ben", "phone")).await, 0);
    };
    with(&verifier, &world, test).await;
}

#[tokio::test(start_paused = true)]
async fn ids_that_no_key_can_have_ask_for_nothing() {
    let one = Key::es256("one");
    let service = Service::new(&[&one]);
    let (verifier, world) = (Arc::new(service.verifier("/keys", SetAlgorithm::Es256)), Cluster::new().world);
    let test = async {
        verifier.has_keys().await;
        let good = claims(&world, "ben", "phone").to_string();
        for header in [
            r#"{"alg":"ES256","kid":"a\u0007b"}"#,
            r#"{"alg":"ES256","kid":""}"#,
            r#"{"alg":"none","kid":"x"}"#,
        ] {
            let token = one.token(header, &good);
            assert_eq!(code(&verifier, &world, &token).await, 4500, "{header}");
        }
        assert_eq!(service.requests(), 1);
    };
    with(&verifier, &world, test).await;
}
