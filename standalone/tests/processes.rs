//! The main job on real parts: gateways and routers as processes on a real NATS, Redis and CQL database (`dev/cluster`), killed and
//! paused under load with NATS and Redis, and nothing that was accepted is lost, repeated, reordered or misrouted.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

use chappe_loadtest::agents::Workers;
use chappe_loadtest::audit::Verdict;
use chappe_loadtest::carriers::Choice;
use chappe_loadtest::faults::{Fault, Parts, schedule};
use chappe_loadtest::run::{Plan, Target, run};
use chappe_loadtest::scenario::Scenario;
use chappe_loadtest::scrape::Scrape;
use chappe_loadtest::tokens::Issuer;
use chappe_loadtest::watch::Watch;
use chappe_node::clock::SystemWorld;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

const DURATION: Duration = Duration::from_secs(75);

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev")
}

fn cluster(words: &[&str]) -> Output {
    Command::new(scripts().join("cluster")).args(words).output().unwrap()
}

/// Ends the processes, also when the test fails; the parts belong to `./test`.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        cluster(&["stop"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_when_any_process_dies() {
    chappe_node::tls::install_crypto_provider();
    let binaries = Path::new(env!("CARGO_BIN_EXE_chappe")).parent().unwrap().to_string_lossy().into_owned();
    let _ended = Ended;
    let up = cluster(&["up", "one", "--bin", &binaries]);
    let text = String::from_utf8_lossy(&up.stdout).into_owned();
    assert!(up.status.success(), "{text}{}", String::from_utf8_lossy(&up.stderr));
    let keys = text.split("--data ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let keys = PathBuf::from(keys.expect("the summary names the keys"));
    let servers: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with("gateway-"))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("wss://")))
        .map(|url| url.trim_end_matches("/v1/connect").to_owned())
        .collect();
    assert_eq!(servers.len(), 3, "{text}");

    let doctor = cluster(&["doctor"]);
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success(), "{told}{}", String::from_utf8_lossy(&doctor.stderr));
    for part in ["redis ", "cql ", "nats ", "clock ", "nats sync ", "token keys ", "tls.certificate "] {
        assert!(told.lines().any(|line| line.starts_with(&format!("good  {part}"))), "{part}: {told}");
    }

    let world = Arc::new(SystemWorld::new());
    let breaks_all = |faults: &[Fault]| {
        let breaks = |what| faults.iter().any(|fault: &Fault| fault.what.contains(what));
        ["gateway", "router", "pause redis", "reset nats1 redis"].into_iter().all(breaks)
    };
    let seed = (1..10_000).find(|seed| breaks_all(&schedule(*seed, DURATION, Parts::One)));
    let seed = seed.expect("a schedule that breaks a gateway, a router, NATS and Redis");
    let faults = schedule(seed, DURATION, Parts::One);
    let plan = Plan {
        scenario: Scenario {
            users: 30,
            rate: 40,
            duration: DURATION,
            seed,
            ..Scenario::find("chat").unwrap()
        },
        target: Target {
            servers,
            carrier: Some(Choice::Mix),
            roots_pem: Some(std::fs::read(keys.join("development/certificate.pem")).unwrap()),
            issuer: Issuer::read(&keys.join("development/token-private.pem"), world.clone()).unwrap(),
            prefix: format!("load-{}-", std::process::id()),
            first: 0,
            source: None,
        },
        workers: Workers::Here,
        spawned: None,
        watch: Watch::default(),
        scrape: Scrape::default(),
        kills: 0,
        faults,
        scripts: Some(scripts()),
        settle: Duration::from_secs(100),
        world,
        progress: Arc::new(|_, _| {}),
    };
    let report = run(plan).await.unwrap();
    println!("{}", report.text());
    assert_eq!(report.verdict, Verdict::Passed, "{}", report.text());
    assert!(
        report.deliver.all.max_us < 90_000_000,
        "delivered within 90 s, whatever broke: {}",
        report.text()
    );
    assert!(report.audit.accepted > 2500, "{}", report.text());
}
