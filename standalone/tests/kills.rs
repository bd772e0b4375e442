//! The main job on real input: a server process is killed with SIGKILL again and again under load, and nothing that was
//! accepted is lost, repeated, reordered or delivered to anybody else.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;

use chappe_loadtest::agents::Workers;
use chappe_loadtest::audit::Verdict;
use chappe_loadtest::carriers::Choice;
use chappe_loadtest::run::{Plan, Target, run};
use chappe_loadtest::scenario::Scenario;
use chappe_loadtest::scrape::Scrape;
use chappe_loadtest::server::Spawned;
use chappe_loadtest::tokens::Issuer;
use chappe_loadtest::watch::Watch;
use chappe_node::clock::SystemWorld;
use place::Place;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_over_five_kills() {
    chappe_node::tls::install_crypto_provider();
    let place = Place::new();
    let spawned = Spawned::start(place.serve_command(&[]), place.clients).await.unwrap();
    let world = Arc::new(SystemWorld::new());
    let plan = Plan {
        scenario: Scenario {
            users: 60,
            rate: 150,
            duration: Duration::from_secs(24),
            seed: 7,
            ..Scenario::find("chat").unwrap()
        },
        target: Target {
            servers: vec![format!("wss://{}", place.clients)],
            carrier: Some(Choice::Mix),
            roots_pem: Some(std::fs::read(place.data().certificate()).unwrap()),
            issuer: Issuer::read(&place.data().token_private(), world.clone()).unwrap(),
            prefix: "load-".to_owned(),
            first: 0,
            source: None,
        },
        workers: Workers::Here,
        watch: Watch::new(Vec::new(), Some(&spawned)),
        scrape: Scrape::default(),
        faults: Vec::new(),
        scripts: None,
        spawned: Some(spawned),
        kills: 5,
        settle: Duration::from_mins(1),
        world,
        progress: Arc::new(|_, _| {}),
    };
    let report = run(plan).await.unwrap();
    println!("{}", report.text());
    assert_eq!(report.verdict, Verdict::Passed, "{}", report.text());
    assert_eq!(report.faults.len(), 5);
    assert!(report.audit.accepted > 3000, "{}", report.text());
    assert!(report.resume.all.count > 200, "nearly everybody came back from each kill: {}", report.text());
    let server = report.server.expect("it was looked at");
    assert_eq!(server.cpu_seconds, None, "a server that was started anew counts anew");
    assert!(report.disconnects > 0, "nobody lost a connection on purpose");
}
