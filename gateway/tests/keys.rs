//! The published keys of a sign-in service: fetched, rotated, withdrawn, away, in paused time.
//! **Invariant:** strangers cannot make the gateway fetch more than once in ten seconds, and no service that is away makes a client
//! throw its token away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_gateway::SetAlgorithm;
use chappe_protocol::frame::{ClientFrame, Hello, Secret, ServerFrame};
use futures_util::future::join_all;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::client::{Client, In, code, device};
use support::issuer::{DISCOVERY, ISSUER, Key, Service};
use support::{Cluster, Gateway};

fn hello(cluster: &Cluster, key: &Key, user: &str) -> Hello {
    let token = Secret(key.good(&cluster.world, user, "phone"));
    Hello { token, ..Client::hello(cluster, user, "phone") }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Longer than any pause between two renewals.
const RENEWED: u64 = 410;

fn fetches(gateway: &Gateway, outcome: &str) -> u64 {
    gateway.metrics.token_key_fetches_total.with_label_values(&[outcome]).get()
}

#[tokio::test(start_paused = true)]
async fn keys_come_and_go_as_they_are_published() {
    let (one, two, three) = (Key::es256("one"), Key::es256("two"), Key::es256("three"));
    let service = Service::new(&[&one, &two]);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect_with(&gateway, hello(&cluster, &one, "ben")).await;
    assert_eq!(code(&gateway, hello(&cluster, &two, "ada")).await, 0);
    assert_eq!(gateway.metrics.token_keys.get(), 2);

    // A token of a new key comes before anybody has looked.
    service.publish(&[&two, &three]);
    seconds(15).await;
    let before = cluster.world_now();
    assert_eq!(code(&gateway, hello(&cluster, &three, "cleo")).await, 0);
    assert!(cluster.world_now() - before < 1000, "fetched at once");
    seconds(15).await;
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 4500, "withdrawn");

    // An open session lives on until its token ends.
    service.publish(&[&three]);
    seconds(1).await;
    let told = loop {
        // Nobody hears it any more once the close is on its way.
        let _sent = ben.try_send_bytes(&ClientFrame::Ping { nonce: 1 }.encode()).await;
        match ben.next_within(20_000).await {
            Some(In::Close(code)) => break code,
            Some(In::End) => panic!("no close"),
            Some(In::Frame(_)) => seconds(10).await,
            None => {}
        }
    };
    assert_eq!(told, 4401, "and not a moment longer");
    let lived = cluster.world_now() / 1000;
    assert!((3600..3700).contains(&lived), "{lived} s");
    assert_eq!(code(&gateway, hello(&cluster, &two, "ada")).await, 4500, "withdrawn, and nobody asked");
    assert_eq!(code(&gateway, hello(&cluster, &three, "ada")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_strangers_cause_one_fetch_and_delay_nobody() {
    let (one, strange) = (Key::es256("one"), Key::es256("strange"));
    let service = Service::new(&[&one]);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
    seconds(15).await;
    assert_eq!(service.requests(), 1);
    let strangers = (0..100).map(|_| code(&gateway, hello(&cluster, &strange, "eve")));
    let known = async {
        let before = cluster.world_now();
        assert_eq!(code(&gateway, hello(&cluster, &one, "ada")).await, 0);
        cluster.world_now() - before
    };
    let (codes, waited) = tokio::join!(join_all(strangers), known);
    assert_eq!(waited, 0);
    assert_eq!(service.requests(), 2, "one fetch for all");
    // Whoever came after it began cannot be judged by it, and may come again.
    assert!(codes.contains(&4500) && codes.iter().all(|code| [4500, 3009].contains(code)), "{codes:?}");

    // Whatever they send in the next seconds, the next fetch waits.
    seconds(15).await;
    assert_eq!(service.requests(), 3, "as those had asked");
    assert_eq!(code(&gateway, hello(&cluster, &strange, "eve")).await, 4500);
    assert_eq!(service.requests(), 4);
    let more = (0..100).map(|_| code(&gateway, hello(&cluster, &strange, "eve")));
    assert_eq!(join_all(more).await, vec![3009; 100]);
    assert_eq!(service.requests(), 4);
    seconds(9).await;
    assert_eq!(service.requests(), 5, "as they had asked");
    seconds(60).await;
    assert_eq!(service.requests(), 5, "nobody asks any more");
}

#[tokio::test(start_paused = true)]
async fn without_keys_nobody_is_sent_away_for_good_and_it_recovers_by_itself() {
    let one = Key::es256("one");
    let service = Service::new(&[&one]);
    service.away.store(true, Ordering::Relaxed);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    let before = cluster.world_now();
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 3009);
    assert!(cluster.world_now() - before <= 6_100, "a bounded wait");
    seconds(60).await;
    let ready = tokio::time::timeout(Duration::from_secs(1), cluster.verifier.has_keys());
    assert!(ready.await.is_err(), "not ready");
    assert!((5..20).contains(&service.requests()), "{} tries in a minute", service.requests());
    assert_eq!(fetches(&gateway, "unreachable"), service.requests());

    service.away.store(false, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(11), cluster.verifier.has_keys())
        .await
        .expect("ready by itself");
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);

    // Away again: what is known stays, and readiness with it.
    service.away.store(true, Ordering::Relaxed);
    seconds(3000).await;
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
    assert_eq!(code(&gateway, hello(&cluster, &Key::es256("new"), "ben")).await, 3009, "perhaps a good one");
    cluster.verifier.has_keys().await;
    assert_eq!(gateway.metrics.token_keys.get(), 1);
    assert!(gateway.metrics.token_keys_age_seconds.get() > 2900);
    service.away.store(false, Ordering::Relaxed);
    seconds(RENEWED).await;
    assert!(gateway.metrics.token_keys_age_seconds.get() < 410);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_holds_a_bounded_number_of_handshakes() {
    let (one, strange) = (Key::es256("one"), Key::es256("strange"));
    let service = Service::new(&[&one]);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
    seconds(15).await;
    service.hangs.store(true, Ordering::Relaxed);
    let token = strange.good(&cluster.world, "eve", "phone");
    let checks = (0..1100).map(async |_| {
        let refused =
            cluster.verifier.check(&token, &device("phone"), None, &*cluster.world).await.unwrap_err();
        (refused.close_code().code(), cluster.world_now())
    });
    let before = cluster.world_now();
    let refused = join_all(checks).await;
    assert!(refused.iter().all(|(code, _)| *code == 3009));
    let at_once = refused.iter().filter(|(_, at)| *at == before).count();
    assert_eq!(at_once, 1100 - 1024, "the others wait");
    assert!(refused.iter().all(|(_, at)| at - before <= 6_000));
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0, "known keys go on");
}

#[tokio::test(start_paused = true)]
async fn an_openid_providers_configuration_leads_to_its_keys() {
    let one = Key::rs256("one");
    let service = Service::new(&[&one]);
    let configuration = |issuer: &str, keys: &str| json!({ "issuer": issuer, "jwks_uri": keys }).to_string();
    service.answer(DISCOVERY, &configuration(ISSUER, "http://localhost/keys"));
    let cluster = service.cluster(DISCOVERY, SetAlgorithm::Rs256);
    let gateway = cluster.gateway(1);
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);

    let refused = [
        configuration("https://evil.example", "http://localhost/keys"),
        configuration("https://id.example/", "http://localhost/keys"),
        configuration(ISSUER, "http://id.example/keys"),
        configuration(ISSUER, "http://localhost/elsewhere"),
        json!({ "issuer": ISSUER }).to_string(),
        json!({ "keys": [one.jwk()] }).to_string(),
    ];
    for answer in refused {
        let other = Service::new(&[&one]);
        other.answer(DISCOVERY, &answer);
        let cluster = other.cluster(DISCOVERY, SetAlgorithm::Rs256);
        let gateway = cluster.gateway(1);
        assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 3009, "{answer}");
        assert_eq!(fetches(&gateway, "ok") + fetches(&gateway, "empty"), 0, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_set_changes_nothing_and_an_empty_set_means_it() {
    let one = Key::es256("one");
    let service = Service::new(&[&one]);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
    let many: Vec<_> = (0..65).map(|_| one.jwk()).collect();
    let raw = |kind: &str, body: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let useless = [
        raw("application/json", &json!({ "keys": many }).to_string()),
        raw("application/json", &json!({ "keys": "none" }).to_string()),
        raw("application/json", "[]"),
        raw("application/json", ""),
        raw("application/json", &"x".repeat(300 * 1024)),
        raw("text/html", "<html><body>sign in first</body></html>"),
        "HTTP/1.1 302 Found\r\nlocation: http://localhost/keys2\r\ncontent-length: 0\r\n\r\n".into(),
        "HTTP/1.1 500 Oh No\r\ncontent-length: 0\r\n\r\n".into(),
    ];
    for answer in &useless {
        service.answer_raw("/keys", answer);
        seconds(RENEWED).await;
        assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0, "{answer:.80}");
    }
    assert!(fetches(&gateway, "unusable") >= 4 && fetches(&gateway, "unreachable") >= 4);

    service.publish(&[]);
    seconds(RENEWED).await;
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 3009, "all are withdrawn");
    assert_eq!(gateway.metrics.token_keys.get(), 0);
    service.publish(&[&one]);
    seconds(15).await;
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_with_a_new_key_is_asked_for_again_and_costs_no_session() {
    let (one, two) = (Key::eddsa("one"), Key::eddsa("two"));
    let service = Service::new(&[&one]);
    let cluster = service.cluster("/keys", SetAlgorithm::EdDsa);
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect_with(&gateway, hello(&cluster, &one, "ben")).await;
    service.publish(&[&one, &two]);
    seconds(15).await;
    let refresh = || ClientFrame::Refresh { token: Secret(two.good(&cluster.world, "ben", "phone")) };
    ben.send(&refresh()).await;
    let refused = loop {
        if let In::Frame(ServerFrame::Error(error)) = ben.next().await {
            break error;
        }
    };
    assert_eq!((&refused.code[..], refused.retryable), ("refresh_refused", true));
    seconds(1).await;
    ben.send(&refresh()).await;
    ben.send(&ClientFrame::Ping { nonce: 9 }).await;
    loop {
        match ben.next().await {
            In::Frame(ServerFrame::Pong { nonce: 9, .. }) => break,
            In::Frame(ServerFrame::Error(error)) => panic!("{error:?}"),
            In::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(service.requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hangup_fetches_the_keys_anew() {
    let (one, two) = (Key::es256("one"), Key::es256("two"));
    let service = Service::new(&[&one, &two]);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
    seconds(15).await;
    service.publish(&[&two]);
    let reloads = tokio::sync::watch::Sender::new(0_u64);
    let verifier = Arc::clone(&cluster.verifier);
    let hangup = async {
        reloads.send_modify(|count| *count += 1);
        seconds(1).await;
        assert_eq!(gateway.metrics.token_keys.get(), 1);
        seconds(15).await;
        assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 4500);
    };
    tokio::select! {
        biased;
        () = verifier.renew_on(reloads.subscribe()) => panic!("hangups may come at any time"),
        () = hangup => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_set_without_a_usable_key_makes_nobody_ready() {
    let (one, other) = (Key::es256("one"), Key::eddsa("other"));
    let service = Service::new(&[&other]);
    let cluster = service.cluster("/keys", SetAlgorithm::Es256);
    let gateway = cluster.gateway(1);
    seconds(60).await;
    assert!(tokio::time::timeout(Duration::from_secs(1), cluster.verifier.has_keys()).await.is_err());
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 3009);
    assert_eq!(fetches(&gateway, "empty"), service.requests());
    assert!((5..20).contains(&service.requests()), "{} tries", service.requests());
    service.publish(&[&one, &other]);
    seconds(11).await;
    assert_eq!(code(&gateway, hello(&cluster, &one, "ben")).await, 0);
}
