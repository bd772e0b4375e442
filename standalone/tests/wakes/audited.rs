//! The load harness's own audit of wakes, on a real server: it passes where all is well, and is not blind.

use crate::place::Place;
use chappe_loadtest::agents::Workers;
use chappe_loadtest::audit::Verdict;
use chappe_loadtest::report::Report;
use chappe_loadtest::run::{Plan, Target};
use chappe_loadtest::scenario::{Scenario, Sleep};
use chappe_loadtest::scrape::Scrape;
use chappe_loadtest::server::Spawned;
use chappe_loadtest::tokens::Issuer;
use chappe_loadtest::wake::{Provider, Wake, WakeAudit, run};
use chappe_loadtest::watch::Watch;
use chappe_node::clock::SystemWorld;
use std::sync::Arc;
use std::time::Duration;

fn sleep() -> Sleep {
    Sleep {
        silent_percent: 5,
        bound: Duration::from_secs(30),
        quiet: Duration::from_secs(12),
        provider_fails: Duration::from_secs(4),
    }
}

fn scenario() -> Scenario {
    let duration = Duration::from_secs(14);
    Scenario { users: 60, rate: 6, duration, seed: 7, wake: Some(sleep()), ..Scenario::default() }
}

/// `asks`: the server is told of the provider.
async fn report(scenario: Scenario, asks: bool, kills: u32) -> Report {
    chappe_node::tls::install_crypto_provider();
    let (place, world, folder) = (Place::new(), Arc::new(SystemWorld::new()), tempfile::tempdir().unwrap());
    let file = folder.path().join("push.toml");
    let settings = file.to_string_lossy().into_owned();
    let wake = Wake::new(&scenario, ([127, 0, 0, 1], 0).into(), file);
    let provider = Provider::start(&wake, world.as_ref()).await.unwrap();
    let asking: &[&str] = if asks { &["--config", &settings] } else { &[] };
    let spawned = Spawned::start(place.serve_command(asking), place.clients).await.unwrap();
    let plan = Plan {
        scenario: wake,
        target: Target {
            servers: vec![format!("wss://{}", place.clients)],
            carrier: None,
            roots_pem: Some(std::fs::read(place.data().certificate()).unwrap()),
            issuer: Issuer::read(&place.data().token_private(), world.clone()).unwrap(),
            prefix: "wake-".to_owned(),
            first: 0,
            source: None,
        },
        workers: Workers::Here,
        watch: Watch::default(),
        scrape: Scrape::default(),
        faults: Vec::new(),
        scripts: None,
        spawned: Some(spawned),
        kills,
        settle: Duration::from_secs(if asks { 60 } else { 1 }),
        world,
        progress: Arc::new(|_, _| {}),
    };
    let report = run(plan, provider).await.unwrap();
    println!("{}", report.text());
    report
}

fn wakes(report: &Report) -> &WakeAudit {
    report.wakes.as_ref().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_devices_are_woken_in_time_and_as_often_as_needed_over_a_kill_and_a_failing_provider() {
    let report = report(scenario(), true, 1).await;
    assert_eq!(report.verdict, Verdict::Passed, "{}", report.text());
    assert_eq!(report.faults.len(), 1);
    let wakes = wakes(&report);
    assert!(wakes.asleep > 20 && wakes.attempts > wakes.taken, "{}", report.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wakes_nobody_is_found_out() {
    let two = Duration::from_secs(2);
    let short = Sleep { silent_percent: 0, bound: two, quiet: two, provider_fails: Duration::ZERO };
    let short = Scenario { users: 10, duration: two, wake: Some(short), ..scenario() };
    let report = report(short, false, 0).await;
    assert_eq!(report.verdict, Verdict::Failed, "{}", report.text());
    assert!(wakes(&report).never.count > 5 && report.audit.lost.count > 5, "{}", report.text());
    assert!(report.text().contains("  never         device "), "{}", report.text());
}
