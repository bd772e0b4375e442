//! The load harness's own audit of wakes, on a real server: it passes where all is well, and is not blind.

use crate::place::Place;
use chappe_loadtest::checker::Verdict;
use chappe_loadtest::run::Plan;
use chappe_loadtest::server::Spawned;
use chappe_loadtest::tokens::Issuer;
use chappe_loadtest::wake::{Provider, Wake, WakeReport, run};
use chappe_node::clock::SystemWorld;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn wake(settings: &Path) -> Wake {
    Wake {
        devices: 60,
        rate: 6,
        duration: Duration::from_secs(14),
        payload_bytes: 256,
        silent_percent: 5,
        bound: Duration::from_secs(30),
        quiet: Duration::from_secs(12),
        provider_fails: Duration::from_secs(4),
        provider_listen: ([127, 0, 0, 1], 0).into(),
        provider_settings: settings.into(),
        seed: 7,
    }
}

/// `asks`: the server is told of the provider.
async fn report(wake: Wake, asks: bool, kills: u32) -> WakeReport {
    chappe_node::tls::install_crypto_provider();
    let (place, world) = (Place::new(), Arc::new(SystemWorld::new()));
    let settings = wake.provider_settings.to_string_lossy().into_owned();
    let provider = Provider::start(&wake, world.as_ref()).await.unwrap();
    let asking: &[&str] = if asks { &["--config", &settings] } else { &[] };
    let plan = Plan {
        scenario: wake,
        servers: vec![format!("wss://{}", place.clients)],
        carrier: None,
        faults: Vec::new(),
        scripts: "dev".into(),
        spawned: Some(Spawned::start(place.serve_command(asking), place.clients).await.unwrap()),
        roots_pem: Some(std::fs::read(place.data().certificate()).unwrap()),
        issuer: Issuer::read(&place.data().token_private(), world.clone()).unwrap(),
        prefix: "wake-".to_owned(),
        kills,
        settle: Duration::from_secs(if asks { 60 } else { 1 }),
        world,
        progress: Arc::new(|_, _| {}),
    };
    let report = run(plan, provider).await.unwrap();
    println!("{}", report.text());
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_devices_are_woken_in_time_and_as_often_as_needed_over_a_kill_and_a_failing_provider() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(wake(&folder.path().join("push.toml")), true, 1).await;
    assert_eq!(report.verdict, Verdict::Passed, "{}", report.text());
    assert_eq!(report.faults.len(), 1);
    assert!(report.wakes.asleep > 20 && report.wakes.attempts > report.wakes.taken, "{}", report.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wakes_nobody_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let short = Wake {
        devices: 10,
        duration: Duration::from_secs(2),
        silent_percent: 0,
        bound: Duration::from_secs(2),
        quiet: Duration::from_secs(2),
        provider_fails: Duration::ZERO,
        ..wake(&folder.path().join("push.toml"))
    };
    let report = report(short, false, 0).await;
    assert_eq!(report.verdict, Verdict::Failed, "{}", report.text());
    assert!(report.wakes.never.count > 5 && report.audit.lost.count > 5, "{}", report.text());
    assert!(report.text().contains("  never         device "), "{}", report.text());
}
