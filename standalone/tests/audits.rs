//! The load harness finds out a wrong server: one with a deliberate fault each (`examples/faulty-server.rs`), and it passes the
//! same server without one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;

use chappe_loadtest::agents::Workers;
use chappe_loadtest::report::Report;
use chappe_loadtest::run::{Plan, Target, run};
use chappe_loadtest::scenario::{Scenario, Traffic};
use chappe_loadtest::scrape::Scrape;
use chappe_loadtest::server::Spawned;
use chappe_loadtest::tokens::Issuer;
use chappe_loadtest::watch::Watch;
use chappe_node::clock::SystemWorld;
use place::Place;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Twenty people, ten submits a second each, and nobody loses a connection: what is lost then is the server's doing.
fn twenty() -> Scenario {
    Scenario { users: 20, rate: 200, duration: Duration::from_secs(4), ..Scenario::default() }
}

async fn report(fault: &str, scenario: Scenario, kills: u32) -> Report {
    chappe_node::tls::install_crypto_provider();
    let (place, world) = (Place::new(), Arc::new(SystemWorld::new()));
    let server = Path::new(env!("CARGO_BIN_EXE_chappe")).with_file_name("examples/faulty-server");
    assert!(server.exists(), "build it first: cargo build -p chappe-standalone --example faulty-server");
    let (listen, data) = (place.clients.to_string(), place.path());
    let words = ["--fault", fault, "--listen", &listen, "--data", &data.to_string_lossy()].map(String::from);
    let command = [server.to_string_lossy().into_owned()].into_iter().chain(words).collect();
    let spawned = Spawned::start(command, place.clients).await.unwrap();
    let plan = Plan {
        scenario,
        target: Target {
            servers: vec![format!("ws://{listen}")],
            carrier: None,
            roots_pem: None,
            issuer: Issuer::read(&place.data().token_private(), world.clone()).unwrap(),
            prefix: "load-".to_owned(),
            first: 0,
            source: None,
        },
        workers: Workers::Here,
        watch: Watch::default(),
        scrape: Scrape::default(),
        spawned: Some(spawned),
        kills,
        faults: Vec::new(),
        scripts: None,
        settle: Duration::from_secs(4),
        world,
        progress: Arc::new(|_, _| {}),
    };
    run(plan).await.unwrap()
}

/// Exit code 1, and each of these lines begins like this.
async fn found_out(fault: &str, scenario: Scenario, kills: u32, told: &[&str]) {
    let report = report(fault, scenario, kills).await;
    let text = report.text();
    assert_eq!(report.exit_code(), 1, "{text}");
    assert!(text.starts_with("FAILED"), "{text}");
    for told in told {
        assert!(
            text.contains(&format!("\n  {told}: submit "))
                || text.contains(&format!("\n  {told}: bytes of no")),
            "{told}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_server_without_a_fault_passes() {
    let report = report("none", twenty(), 0).await;
    assert_eq!(report.exit_code(), 0, "{}", report.text());
    assert!(report.audit.accepted >= 800);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_before_it_is_written_is_lost_by_a_kill() {
    found_out("ack-before-commit", twenty(), 1, &["lost"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_doorbell_that_no_probe_makes_good_is_lost() {
    found_out("dropped-doorbell", twenty(), 0, &["lost"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_pair_is_reordered() {
    let traffic = Traffic { senders: 1, ..Traffic::default() };
    let pair = Scenario { users: 2, rate: 40, traffic, ..twenty() };
    found_out("swapped-pair", pair, 0, &["reordered"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_somebody_else_is_misrouted_and_lost() {
    found_out("wrong-mailbox", twenty(), 0, &["misrouted", "lost"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_twice_is_a_duplicate() {
    found_out("twice", twenty(), 0, &["duplicate"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_on_the_way_is_a_phantom() {
    found_out("changed-bytes", twenty(), 0, &["phantom", "lost"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_anothers_name_is_a_phantom() {
    found_out("wrong-sender", twenty(), 0, &["phantom"]).await;
}
