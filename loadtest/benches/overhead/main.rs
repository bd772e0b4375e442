//! What the harness costs: the same trivial server driven to saturation by it, and by a minimal loop over bare sockets.
//! **Invariant:** the server is a process of its own and the same for both; both send to one another, hear of acceptance, receive
//! and ack.
//!
//! `cargo bench -p chappe-loadtest --bench overhead -- --rounds 3`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

mod bare;
mod server;

use chappe_loadtest::agents::Workers;
use chappe_loadtest::report::Report;
use chappe_loadtest::run::{Plan, Target, run};
use chappe_loadtest::scenario::Scenario;
use chappe_loadtest::scrape::Scrape;
use chappe_loadtest::tokens::Issuer;
use chappe_loadtest::watch::{Watch, own};
use chappe_node::clock::SystemWorld;
use clap::{Parser, Subcommand};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Parser)]
struct Options {
    /// Connections of either.
    #[arg(long, default_value_t = 32)]
    users: u32,
    /// Seconds of a round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Payload, bytes.
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Part {
    /// The trivial server.
    Server,
}

/// Ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start() -> (Running, SocketAddr) {
    let mut server = Command::new(std::env::current_exe().unwrap());
    let mut server = Running(server.arg("server").stdout(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let address = said.next().unwrap().unwrap().parse().unwrap();
    (server, address)
}

/// Offered a fifth more than it managed before, until that is no more than it managed: saturation.
async fn by_the_harness(
    options: &Options,
    address: SocketAddr,
    key: &std::path::Path,
    round: usize,
) -> (f64, f64) {
    let world = Arc::new(SystemWorld::new());
    let (mut offered, mut best, mut cpu_us) = (5_000.0f64, 0.0f64, 0.0);
    for attempt in 0..12 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
        let rate = offered as u32;
        let scenario = Scenario {
            users: options.users,
            rate,
            duration: Duration::from_secs(options.seconds),
            payload: options.payload,
            ..Scenario::default()
        };
        let plan = Plan {
            scenario,
            target: Target {
                servers: vec![format!("ws://{address}")],
                carrier: None,
                roots_pem: None,
                issuer: Issuer::read(key, world.clone()).unwrap(),
                prefix: format!("r{round}a{attempt}-"),
                first: 0,
                source: None,
            },
            workers: Workers::Here,
            spawned: None,
            kills: 0,
            faults: Vec::new(),
            scripts: None,
            watch: Watch::default(),
            scrape: Scrape::default(),
            settle: Duration::from_secs(30),
            world: world.clone(),
            progress: Arc::new(|_, _| {}),
        };
        let before = own().cpu_seconds;
        let report: Report = run(plan).await.unwrap();
        assert_eq!(report.audit.lost.count + report.audit.duplicate.count, 0, "{}", report.text());
        let decided = report.timeline.iter().take(usize::try_from(options.seconds).unwrap());
        #[expect(clippy::cast_precision_loss, reason = "counts")]
        let rate = decided.map(|point| point.accepted).sum::<u64>() as f64 / options.seconds as f64;
        #[expect(clippy::cast_precision_loss, reason = "counts")]
        let each = (own().cpu_seconds - before) * 1e6 / report.audit.accepted as f64;
        if rate > best {
            (best, cpu_us) = (rate, each);
        }
        if rate < offered * 0.95 {
            break;
        }
        offered = rate * 1.4;
    }
    (best, cpu_us)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let options = Options::parse();
    chappe_node::tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let Some(Part::Server) = options.part {
        return runtime.block_on(server::serve());
    }
    let folder = std::env::temp_dir().join(format!("chappe-overhead-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let key = folder.join("secret");
    std::fs::write(&key, [7; 32]).unwrap();
    let (mut loops, mut ours) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let (_server, address) = start();
        let before = own().cpu_seconds;
        let rate = runtime.block_on(bare::drive(&options, address, round));
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let each = (own().cpu_seconds - before) * 1e6 / (rate * options.seconds as f64);
        loops.push((rate, each));
        let (_server, address) = start();
        ours.push(runtime.block_on(by_the_harness(&options, address, &key, round)));
        println!("round {round}: loop {:?}, harness {:?}", loops[round], ours[round]);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let of = |all: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| median(all.iter().map(which).collect());
    let (loop_rate, loop_cpu) = (of(&loops, |one| one.0), of(&loops, |one| one.1));
    let (our_rate, our_cpu) = (of(&ours, |one| one.0), of(&ours, |one| one.1));
    println!("minimal loop {loop_rate:.0}/s, {loop_cpu:.1} us of CPU each");
    println!("harness      {our_rate:.0}/s, {our_cpu:.1} us of CPU each (with what it writes down)");
    println!("ratio        {:.2}", our_rate / loop_rate);
}
