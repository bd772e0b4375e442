//! Devices that sleep are woken by real processes through a strict provider, whatever dies on the way: `chappe serve` alone, and
//! gateways, routers and pushers on a real NATS, Redis and CQL database. **Invariant:** each wake comes within 30 s of the
//! acceptance, the device finds its envelope, and nothing wakes it after its ack.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

#[path = "../place/mod.rs"]
mod place;

mod audited;
mod sleeper;
mod troubles;

use chappe_fakes::{Step, TokenState};
use place::Place;
use sleeper::{Home, Provider, Sleeper, Watched};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The bound of P6.
const BOUND: Duration = Duration::from_secs(30);

fn scripts(name: &str, words: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev").join(name);
    let output = Command::new(script).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{name} {words:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Ends the processes, also when the test fails; the parts belong to `./test`.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        scripts("cluster", &["stop"]);
    }
}

/// Asks a server; its exit code, and what it said.
fn ask(place: &Place, words: &[&str]) -> (Option<i32>, String) {
    let (admin, data) = (place.admin.to_string(), place.path().to_string_lossy().into_owned());
    let output = place.chappe(&[words, &["--admin", &admin, "--data", &data]].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn cluster(words: &[&str]) {
    scripts("cluster", words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_wakes_who_sleeps_and_after_a_crash_too() {
    chappe_node::tls::install_crypto_provider();
    let provider = Provider::start().await;
    let place = Place::new();
    let settings = provider.settings(place.path().parent().unwrap());
    let settings = settings.to_string_lossy().into_owned();
    let served = place.serve(&["--config", &settings]);
    let home = Home { server: format!("wss://{}", place.clients), keys: place.path() };
    let mut ben = Sleeper::register(&home, &provider, "ben").await;

    let sent = ben.is_sent().await;
    let woken = provider.fcm.wait_for(&ben.token, 1, sent, BOUND).await;
    println!("woken {} ms after the acceptance", woken.as_millis());
    ben.fetch(1).await;

    // Killed the moment the sender has its word.
    let sent = ben.is_sent().await;
    drop(served);
    let _served = place.serve(&["--config", &settings]);
    provider.fcm.wait_for(&ben.token, 2, sent, BOUND).await;
    ben.fetch(1).await;

    // Explained step by step, and a dead token is found out and removed.
    let test = ["push", "test", "--user", "ben", "--device", "phone"];
    let ask = || ask(&place, &test);
    let (code, text) = ask();
    assert!(code == Some(0) && text.contains("taken"), "{text}");
    provider.fcm.set_token(&ben.token, TokenState::DeadSince(0));
    let (code, text) = ask();
    assert!(code == Some(1) && text.contains("dead") && !text.contains(&ben.token), "{text}");
    let sent = ben.is_sent().await;
    provider.fcm.wait_for(&ben.token, 5, sent, BOUND).await;
    let (code, text) = ask();
    assert!(code == Some(1) && text.contains("nothing is registered"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sleeps_is_woken_in_time_whatever_dies() {
    chappe_node::tls::install_crypto_provider();
    let provider = Provider::start().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = provider.settings(folder.path()).to_string_lossy().into_owned();
    let binaries = Path::new(env!("CARGO_BIN_EXE_chappe")).parent().unwrap().to_string_lossy().into_owned();
    let _ended = Ended;
    let up = scripts("cluster", &["up", "one", "--bin", &binaries, "--push", &settings]);
    let text = String::from_utf8_lossy(&up.stdout).into_owned();
    let keys = text.split("--data ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let server = text.split_whitespace().find(|word| word.starts_with("wss://")).unwrap();
    let server = server.trim_end_matches("/v1/connect").to_owned();
    let home = Home { server, keys: PathBuf::from(keys.expect("the summary names the keys")) };
    let mut all = Vec::new();

    // Healthy.
    let mut one = Sleeper::register(&home, &provider, "healthy").await;
    let sent = one.is_sent().await;
    let woken = provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    println!("healthy: woken {} ms after the acceptance", woken.as_millis());
    one.fetch(1).await;
    all.push((one, 1));

    // The stream of hints and all leases are gone.
    let mut one = Sleeper::register(&home, &provider, "wiped").await;
    scripts("deps", &["reset", "nats", "redis"]);
    scripts("deps", &["start", "one"]);
    let sent = one.is_sent().await;
    let woken = provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    println!("NATS and Redis wiped: woken {} ms after the acceptance", woken.as_millis());
    one.fetch(1).await;
    all.push((one, 1));

    // Every router dies between the commit and the hint, as far as that can be hit from outside.
    let mut one = Sleeper::register(&home, &provider, "routers").await;
    let sent = one.is_sent().await;
    cluster(&["kill", "router-1"]);
    cluster(&["kill", "router-2"]);
    let woken = provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    println!("routers killed: woken {} ms after the acceptance", woken.as_millis());
    cluster(&["start"]);
    one.fetch(1).await;
    all.push((one, 1));

    // Both pushers die while the provider thinks; it never answers that wake.
    let mut one = Sleeper::register(&home, &provider, "pushers").await;
    assert!(provider.fcm.script().next_for(&one.token, Step::StallBeforeHeaders));
    let sent = one.is_sent().await;
    provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    cluster(&["kill", "pusher-1"]);
    cluster(&["kill", "pusher-2"]);
    cluster(&["start"]);
    let woken = provider.fcm.wait_for(&one.token, 2, sent, BOUND).await;
    println!("pushers killed before the answer: woken {} ms after the acceptance", woken.as_millis());
    one.fetch(1).await;
    all.push((one, 2));

    // One pusher of two dies for good for a while: its shards are the other's.
    cluster(&["kill", "pusher-1"]);
    let mut one = Sleeper::register(&home, &provider, "half").await;
    let sent = one.is_sent().await;
    let woken = provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    println!("one pusher of two: woken {} ms after the acceptance", woken.as_millis());
    cluster(&["start"]);
    one.fetch(1).await;
    all.push((one, 1));

    // The provider fails for a while: it is asked in time, and takes the wake when it is back.
    let mut one = Sleeper::register(&home, &provider, "failing").await;
    provider.fcm.script().always(Some(Step::answer(503, "UNAVAILABLE").into()));
    let sent = one.is_sent().await;
    provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    provider.fcm.script().always(None);
    provider.fcm.wait_until_taken(&one.token, Duration::from_secs(45)).await;
    one.fetch(1).await;
    let asked = provider.fcm.count(&one.token);
    assert!(asked <= 8, "backs off: {asked}");
    all.push((one, asked));

    // Attached, and silent: its process stands still with the socket open.
    let mut one = Sleeper::register(&home, &provider, "silent").await;
    let listening = one.listen().await;
    listening.pause();
    let sent = one.is_sent().await;
    let woken = provider.fcm.wait_for(&one.token, 1, sent, BOUND).await;
    println!("silent: woken {} ms after the acceptance", woken.as_millis());
    drop(listening);
    one.fetch(1).await;
    all.push((one, 1));

    // Nobody is woken after the ack: the first repeat would have come by now.
    tokio::time::sleep(Duration::from_secs(40)).await;
    for (one, wakes) in &all {
        let extra = provider.fcm.count(&one.token) - wakes;
        assert!(extra <= 1, "{}: {extra} more wakes than faults explain", one.user);
        assert_eq!(
            provider.fcm.after(&one.token, one.acked.unwrap()),
            0,
            "{}: woken after the ack",
            one.user
        );
    }
}
