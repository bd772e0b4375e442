//! All three clients, configured from files, against fakes that somebody else wrote from the providers' documents.
//! **Invariant:** what the clients send, strict servers take; sockets of the loopback, one wake each.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_fakes::{Kit, KitConfig};
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushTarget};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_pusher::config::{Parts, Providers, ProvidersConfig};
use chappe_pusher::provider::{Verdict, Wake, Waking as _};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::SystemTime;
use tokio_util::task::TaskTracker;

/// The fakes check times by the real clock.
struct Real(tokio::time::Instant);

impl World for Real {
    fn now(&self) -> Time {
        Time(u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }
    #[allow(clippy::disallowed_methods, reason = "this is where the test's time comes from")]
    fn wall(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        UnixMillis(u64::try_from(since.as_millis()).unwrap())
    }
    fn fill_random(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).unwrap();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn apns(token: &Value) -> PushAddress {
    let hex = text(token);
    let token =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    PushAddress::Apns { token, kind: ApnsKind::Alert }
}

fn web(subscription: &Value) -> PushAddress {
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(&subscription["keys"][name])).unwrap();
    PushAddress::WebPush {
        endpoint: text(&subscription["endpoint"]),
        p256dh: bytes("p256dh").try_into().unwrap(),
        auth: bytes("auth").try_into().unwrap(),
    }
}

fn config(kit: &Value, vapid: &std::path::Path) -> ProvidersConfig {
    let roots = &kit["certificate"];
    let (apns, fcm) = (&kit["apns"], &kit["fcm"]);
    let config = json!({
        "apns": {"chat": {"key_file": apns["key"], "key_id": apns["key_id"], "team_id": apns["team_id"],
                          "topic": apns["topics"][0], "base_url": apns["url"], "roots_file": roots}},
        "fcm": {"chat": {"service_account_file": fcm["service_account"], "base_url": fcm["url"], "roots_file": roots}},
        "webpush": {"chat": {"vapid_key_file": vapid, "subject": "mailto:ops@example.org",
                             "private_hosts": ["127.0.0.1", "localhost"], "roots_file": roots}},
    });
    serde_json::from_value(config).unwrap()
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "this is where the test's time comes from")]
async fn strict_providers_take_every_wake_and_name_the_dead() {
    let kit = Kit::start(KitConfig::default()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = kit.write(folder.path()).unwrap();
    let vapid = folder.path().join("vapid.pem");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    std::fs::write(&vapid, key.serialize_pem()).unwrap();
    let world = Arc::new(Real(tokio::time::Instant::now()));
    let parts = Parts::system(world.clone(), TaskTracker::new());
    let providers = Providers::open(&config(&files, &vapid), parts).unwrap();

    let subscriptions = std::fs::read(text(&files["webpush"]["subscriptions"])).unwrap();
    let subscriptions: Value = serde_json::from_slice(&subscriptions).unwrap();
    let fcm = |token: &Value| PushAddress::Fcm { token: text(token) };
    let live =
        [apns(&files["apns"]["tokens"][0]), fcm(&files["fcm"]["tokens"][0]), web(&subscriptions["live"][0])];
    let dead =
        [apns(&files["apns"]["dead_token"]), fcm(&files["fcm"]["dead_token"]), web(&subscriptions["dead"])];
    let wake = |urgency| Wake {
        urgency,
        collapse: "c0llapse_-".into(),
        expires_at: world.wall() + Millis::from_secs(3600),
    };
    let target = |address: &PushAddress| PushTarget {
        app: AppName::new("chat").unwrap(),
        address: address.clone(),
        registered_at: UnixMillis(0),
    };
    for urgency in [Urgency::Call, Urgency::Message, Urgency::Background] {
        for address in &live {
            let answer = providers.wake(&target(address), &wake(urgency)).await;
            assert_eq!((answer.verdict, answer.reason), (Verdict::Done, "ok"), "{address:?} {urgency:?}");
        }
    }
    for address in &dead {
        let answer = providers.wake(&target(address), &wake(Urgency::Message)).await;
        assert!(matches!(answer.verdict, Verdict::Drop { .. }), "{address:?} {answer:?}");
    }
    kit.close().await;
}
