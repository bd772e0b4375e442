//! The floors of the speed table, and the fan-out from doorbell to socket. **Invariant:** a figure of the server is CPU time of the
//! server's process alone, which is the built binary; a floor is CPU time of one thread that does nothing else.
//!
//! `cargo bench -p chappe-standalone --bench speed -- --rounds 5`; `dev/speed` measures the other rows with the load harness and
//! divides by these floors.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

mod fanout;
mod floors;
#[path = "../server/mod.rs"]
mod server;
mod sessions;
#[path = "../../../gateway/benches/support/mod.rs"]
mod support;

use clap::{Parser, ValueEnum};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Read and write of a socket, a log write, a share of a sync, a pre-built write to each of many sockets, a handshake.
    Floors,
    /// Ephemeral envelopes to all sessions, one at a time and eight at once.
    Fanout,
}

#[derive(Debug, Parser)]
struct Options {
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only this; everything by default.
    #[arg(long)]
    only: Option<Figure>,
    /// Sessions of the fan-out.
    #[arg(long, default_value_t = 5_000)]
    sessions: usize,
    /// Appends that share a sync, for the floor of the sync.
    #[arg(long, default_value_t = 16)]
    group: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A figure of several rounds, in microseconds.
#[derive(Default)]
struct Rounds(Vec<f64>);

impl Rounds {
    fn median(&mut self) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0[self.0.len() / 2]
    }

    fn told(&mut self) -> String {
        let median = self.median();
        format!("{median:.3} ({:.3} to {:.3})", self.0[0], self.0[self.0.len() - 1])
    }
}

fn main() {
    let options = Options::parse();
    chappe_node::tls::install_crypto_provider();
    let wants = |figure| options.only.is_none_or(|only| only == figure);
    let mut floors: [Rounds; floors::NAMES.len()] = Default::default();
    let (mut single, mut burst) = (Rounds::default(), Rounds::default());
    let mut site = wants(Figure::Fanout).then(|| fanout::Site::open(options.sessions));
    for _ in 0..options.rounds {
        if wants(Figure::Floors) {
            for (all, one) in floors.iter_mut().zip(floors::measure(options.sessions, options.group)) {
                all.0.push(one);
            }
        }
        if let Some(site) = &mut site {
            single.0.push(site.deliver(1));
            burst.0.push(site.deliver(8));
        }
    }
    println!("microseconds of CPU, medians of {} rounds (least to most):", options.rounds);
    if wants(Figure::Floors) {
        for (name, rounds) in floors::NAMES.iter().zip(&mut floors) {
            println!("floor {name:<14} {}", rounds.told());
        }
    }
    if site.is_some() {
        println!("delivery, single    {}", single.told());
        println!("delivery, of 8      {}", burst.told());
        println!("row 4: burst of 8 / single = {:.2} (wanted <= 0.3)", burst.median() / single.median());
        if wants(Figure::Floors) {
            let write = floors[floors::PREBUILT].median();
            println!("row 5: single / pre-built write = {:.2} (wanted <= 1.6)", single.median() / write);
            println!("row 5: burst of 8 / pre-built write = {:.2}", burst.median() / write);
        }
    }
}
