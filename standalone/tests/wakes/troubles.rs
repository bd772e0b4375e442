//! One pusher, six apps, and a provider in trouble behind each but one: all at the same time.

use crate::BOUND;
use crate::place::Place;
use crate::sleeper::{Home, Provider, Sleeper, Watched, now};
use crate::{ask, place};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_fakes::{Apns, ApnsConfig, Door, Step, TokenState, WebPush, WebPushConfig};
use chappe_protocol::push::{ApnsKind, PushAddress};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The settings of an app at Apple.
fn at_apple(apns: &Apns, folder: &Path) -> String {
    let (key, roots) = (
        file(folder, "apns.p8", &apns.key().private_key_pem),
        file(folder, "apns.pem", apns.certificate_pem()),
    );
    let (url, id, team, topic) = (apns.url(), &apns.key().key_id, &apns.key().team_id, &apns.topics()[0]);
    format!(
        "[providers.apns.apple]\nkey_file = \"{key}\"\nkey_id = \"{id}\"\nteam_id = \"{team}\"\ntopic = \"{topic}\"\n\
         base_url = \"{url}\"\nroots_file = \"{roots}\"\n"
    )
}

/// The settings of an app at push services.
fn on_the_web(web: &WebPush, folder: &Path) -> String {
    // Any scalar of the curve is a VAPID key; a browser that nobody uses has one.
    let scalar = web.private_key(&web.subscribe().unwrap().endpoint).unwrap();
    let (key, roots) = (file(folder, "vapid", &scalar), file(folder, "web.pem", web.certificate_pem()));
    format!(
        "[providers.webpush.web]\nvapid_key_file = \"{key}\"\nsubject = \"mailto:ops@example.org\"\n\
         allowed_hosts = [\"127.0.0.1\"]\nprivate_hosts = [\"127.0.0.1\"]\nroots_file = \"{roots}\"\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trouble_of_one_provider_holds_no_other_up_and_ends_with_its_cause() {
    chappe_node::tls::install_crypto_provider();
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let [calm, minute, hole, busy] =
        [Provider::start().await, Provider::start().await, Provider::start().await, Provider::start().await];
    let apns = Apns::start(ApnsConfig::default()).await.unwrap();
    let web = WebPush::start(WebPushConfig::default()).await.unwrap();
    let fcm = [("calm", &calm), ("minute", &minute), ("hole", &hole), ("busy", &busy)];
    let sections: String = fcm.map(|(app, provider)| provider.section(app, folder.path())).concat();
    let settings = sections + &at_apple(&apns, folder.path()) + &on_the_web(&web, folder.path());
    let settings = file(folder.path(), "push.toml", &settings);
    let _served = place.serve(&["--config", &settings]);
    let home = Home { server: format!("wss://{}", place.clients), keys: place.path() };
    tokio::join!(
        fails_for_a_minute(&home, &minute),
        says_nothing(&home, &hole),
        has_enough_of_one_app(&home, &busy, &calm),
        calls_tokens_dead(&home, &apns, &place),
        is_read_by_a_browser(&home, &web),
    );
}

async fn at(home: &Home, provider: &Provider, user: &str, app: &str) -> Sleeper {
    let token = provider.fcm.new_token();
    Sleeper::register_at(home, user, app, PushAddress::Fcm { token: token.clone() }, token).await
}

/// 503 for a minute: asked at once, then ever more rarely, and the wake is taken soon after the end.
async fn fails_for_a_minute(home: &Home, provider: &Provider) {
    let mut one = at(home, provider, "minute", "minute").await;
    provider.fcm.script().always(Some(Step::answer(503, "UNAVAILABLE").into()));
    let sent = one.is_sent().await;
    provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    provider.fcm.script().always(None);
    let healed = now();
    provider.fcm.wait_until_taken(&one.token, BOUND).await;
    println!("503 for a minute: taken {} ms after its end", now() - healed);
    one.fetch(1).await;
    let asked = provider.fcm.count(&one.token);
    assert!((3..=14).contains(&asked), "asked {asked} times");
}

/// A connection that swallows all, then one that is never answered: given up in time, and tried anew.
async fn says_nothing(home: &Home, provider: &Provider) {
    let mut one = at(home, provider, "hole", "hole").await;
    provider.fcm.script().always(Some(Step::StallBeforeHeaders));
    let sent = one.is_sent().await;
    provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    provider.fcm.script().always(None);
    provider.fcm.wait_until_taken(&one.token, BOUND).await;
    println!("no answer: taken {} ms after the acceptance", now() - sent);
    assert!(now() - sent <= 30_000);
    one.fetch(1).await;

    provider.fcm.set_door(Door::BlackHole);
    provider.fcm.cut();
    let before = provider.fcm.count(&one.token);
    let sent = one.is_sent().await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    provider.fcm.set_door(Door::Open);
    provider.fcm.wait_for(&one.token, before + 1, sent, BOUND).await;
    one.fetch(1).await;
}

/// 429 with a long pause for one app: all of it waits, and the app beside it does not notice.
async fn has_enough_of_one_app(home: &Home, busy: &Provider, calm: &Provider) {
    let mut beside = at(home, calm, "calm", "calm").await;
    let one = at(home, busy, "busy", "busy").await;
    busy.fcm.script().always(Some(Step::answer(429, "QUOTA_EXCEEDED").retry_after_seconds(40).into()));
    let sent = one.is_sent().await;
    busy.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    for _ in 0..5 {
        let before = calm.fcm.count(&beside.token);
        let sent = beside.is_sent().await;
        let woken = calm.fcm.wait_for(&beside.token, before + 1, sent, Duration::from_secs(5)).await;
        println!("beside a throttled app: woken {} ms after the acceptance", woken.as_millis());
        beside.fetch(1).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    assert_eq!(busy.fcm.count(&one.token), 1, "the pause is kept");
}

/// 410: of an earlier life of the token, which wakes on; and of this one, which ends.
async fn calls_tokens_dead(home: &Home, apns: &Apns, place: &place::Place) {
    let register = async |user: &str| {
        let token = apns.new_token();
        let bytes = (0..32).map(|at| u8::from_str_radix(&token[2 * at..2 * at + 2], 16).unwrap()).collect();
        let address = PushAddress::Apns { token: bytes, kind: ApnsKind::Alert };
        Sleeper::register_at(home, user, "apple", address, token).await
    };
    let (mut reborn, gone) = (register("reborn").await, register("gone").await);
    apns.set_token(&reborn.token, TokenState::DeadSince(now() - 3_600_000));
    apns.set_token(&gone.token, TokenState::DeadSince(now() + 1));
    let sent = reborn.is_sent().await;
    apns.wait_for(&reborn.token, 1, sent, BOUND).await;
    apns.set_token(&reborn.token, TokenState::Live);
    let sent = gone.is_sent().await;
    apns.wait_for(&gone.token, 1, sent, BOUND).await;
    // The one that was registered after its death is tried again by the schedule.
    apns.wait_until_taken(&reborn.token, Duration::from_secs(45)).await;
    reborn.fetch(1).await;
    assert_eq!(apns.count(&gone.token), 1);
    let (code, text) = ask(place, &["push", "test", "--user", "gone", "--device", "phone"]);
    assert!(code == Some(1) && text.contains("nothing is registered"), "{text}");
}

/// A message of Web Push is read by somebody else's library, with the browser's key.
async fn is_read_by_a_browser(home: &Home, web: &WebPush) {
    let subscription = web.subscribe().unwrap();
    let key = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let address = PushAddress::WebPush {
        endpoint: subscription.endpoint.clone(),
        p256dh: key(&subscription.p256dh).try_into().unwrap(),
        auth: key(&subscription.auth).try_into().unwrap(),
    };
    let mut one = Sleeper::register_at(home, "web", "web", address, subscription.endpoint.clone()).await;
    let sent = one.is_sent().await;
    web.wait_for(&one.token, 1, sent, BOUND).await;
    one.fetch(1).await;
    let entry = web.attempts(&one.token).remove(0);
    assert!(entry.accepted());
    let message = json!({
        "private_key": web.private_key(&subscription.endpoint).unwrap(),
        "auth": subscription.auth,
        "body": URL_SAFE_NO_PAD.encode(&entry.body),
        "authorization": entry.header("authorization").unwrap(),
        "audience": web.url(),
    });
    let read = tokio::task::spawn_blocking(move || decrypt(&message)).await.unwrap();
    assert_eq!(key(read["plain"].as_str().unwrap()), br#"{"sync":1}"#);
    assert_eq!(read["claims"]["sub"], "mailto:ops@example.org");
}

/// By http-ece and py-vapid.
fn decrypt(message: &Value) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/push-interop");
    assert!(Command::new(&script).arg("install").status().unwrap().success());
    let mut child =
        Command::new(&script).arg("decrypt").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(message.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}
