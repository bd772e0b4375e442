//! Loads one of three servers and prints one JSON object: what was done, and what it cost the server.
//! **Invariant:** every server gets the same load by the same loops; only the bytes on the wire differ (`speak`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement fails by panicking")]

mod count;
mod link;
mod load;
mod speak;

use clap::{Parser, ValueEnum};
use count::Pace;
use link::Dial;
use speak::Server;
use std::path::PathBuf;
use std::sync::Arc;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Sessions that do nothing: memory.
    Idle,
    /// One sender to all others.
    Fanout,
    /// Pairs of a sender and a receiver.
    Pairs,
    /// Sessions that are set up and closed.
    Setups,
}

/// Load a server, and print what it cost.
#[derive(Debug, Parser)]
struct Options {
    figure: Figure,
    #[arg(long)]
    server: Server,
    /// On 127.0.0.1.
    #[arg(long)]
    port: u16,
    /// The server's process: its time and memory are read from /proc.
    #[arg(long)]
    pid: u32,
    /// Sessions (idle), receivers (fanout), pairs (pairs), sessions under way at once (setups).
    #[arg(long)]
    count: usize,
    /// Length of the measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Messages on their way: in all (fanout), of each pair (pairs).
    #[arg(long, default_value_t = 16)]
    in_flight: u64,
    #[arg(long, default_value_t = 512)]
    payload: usize,
    /// Sessions opened per second at most.
    #[arg(long, default_value_t = 100_000)]
    rate: u32,
    /// Sessions opened before that rate holds.
    #[arg(long, default_value_t = 0)]
    burst: u32,
    /// Users who take turns in setups.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Setups subscribe, too; with Chappe every session does.
    #[arg(long)]
    subscribe: bool,
    /// A certificate to trust: TLS 1.3.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Offer X25519MLKEM768 besides X25519.
    #[arg(long, requires = "ca")]
    hybrid: bool,
    /// A token a line, the first for user 0: for Chappe.
    #[arg(long, default_value = "/dev/null")]
    tokens: PathBuf,
}

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let tokens = std::fs::read_to_string(&options.tokens).expect("tokens");
    let plan = load::Plan {
        dial: Arc::new(Dial::new(options.port, options.ca.as_deref(), options.hybrid)),
        server: options.server,
        tokens: tokens.lines().map(Arc::from).collect(),
        pid: options.pid,
        count: options.count,
        seconds: options.seconds,
        in_flight: options.in_flight,
        payload: vec![7; options.payload].into(),
        users: options.users,
        subscribe: options.subscribe,
        pace: Arc::new(Pace::new(options.rate, options.burst)),
    };
    let plan = Arc::new(plan);
    let found = runtime.block_on(async {
        match options.figure {
            Figure::Idle => load::idle::run(&plan).await,
            Figure::Fanout => load::fanout::run(&plan).await,
            Figure::Pairs => load::pairs::run(&plan).await,
            Figure::Setups => load::setups::run(&plan).await,
        }
    });
    println!("{found}");
    // Thousands of sessions need not be taken leave of one by one.
    runtime.shutdown_background();
}
