//! The speed table: what an envelope, a delivery and a session cost the server, over what the kernel and the cryptography take by
//! themselves. **Invariant:** a figure of the server is CPU time of the server's process alone, which is the built binary; a floor is
//! CPU time of one thread that does nothing else; all of them are measured in turns.
//!
//! `cargo bench -p chappe-standalone --bench speed -- --rounds 5`; `dev/speed` measures the rows about latency with the load harness.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

mod fanout;
mod floors;
mod pairs;
#[path = "../server/mod.rs"]
mod server;
mod sessions;
mod storm;
#[path = "../../../gateway/benches/support/mod.rs"]
mod support;

use clap::{Parser, ValueEnum};
use std::collections::BTreeMap;

/// Of each envelope, in all rows.
pub(crate) const PAYLOAD_BYTES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Ephemeral envelopes to all sessions, one at a time and eight at once: rows 4 and 5.
    Fanout,
    /// Durable envelopes 1:1 as fast as they go: row 6.
    Pairs,
    /// TLS sessions that begin: row 7.
    SetUps,
    /// A mailbox that holds ever more: half of row 11.
    Mailbox,
    /// All sessions are cut and come back: row 12.
    Storm,
}

#[derive(Debug, Parser)]
struct Options {
    /// Rounds in turns; medians are printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these; everything by default.
    #[arg(long)]
    only: Vec<Figure>,
    /// Sessions of the fan-out and of the storm.
    #[arg(long, default_value_t = 5_000)]
    sessions: usize,
    /// TLS sessions that begin.
    #[arg(long, default_value_t = 2_000)]
    set_ups: usize,
    /// Envelopes of the full mailbox.
    #[arg(long, default_value_t = 100_000)]
    mailbox: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Figures of several rounds by their names, in the order in which they came.
#[derive(Default)]
struct Found {
    names: Vec<String>,
    rounds: BTreeMap<String, Vec<f64>>,
}

impl Found {
    fn add(&mut self, name: &str, value: f64) {
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
        self.rounds.entry(name.to_owned()).or_default().push(value);
    }

    fn tell(&mut self) {
        for name in &self.names {
            let all = self.rounds.get_mut(name).unwrap();
            all.sort_by(f64::total_cmp);
            println!("{name:<58} {:>10.3}  ({:.3} to {:.3})", all[all.len() / 2], all[0], all[all.len() - 1]);
        }
    }
}

pub(crate) fn as_f64(count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of a measurement")]
    let count = count as f64;
    count
}

fn main() {
    let options = Options::parse();
    chappe_node::tls::install_crypto_provider();
    println!("medians of {} rounds (least to most); us: microseconds of CPU", options.rounds);
    let figures = [
        (Figure::Pairs, durable as fn(&Options, &mut Found)),
        (Figure::Fanout, fan_out),
        (Figure::SetUps, set_ups),
        (Figure::Mailbox, mailbox),
        (Figure::Storm, storm),
    ];
    for (figure, measure) in figures {
        if options.only.is_empty() || options.only.contains(&figure) {
            let mut found = Found::default();
            measure(&options, &mut found);
            found.tell();
        }
    }
}

fn durable(options: &Options, found: &mut Found) {
    let mut site = pairs::Site::open();
    for _ in 0..options.rounds {
        let durable = site.saturate();
        let floors = floors::envelope(durable.group);
        found.add("floors: 2 reads of a socket, us", 2.0 * floors.read);
        found.add("floors: 2 writes of a socket, us", 2.0 * floors.write);
        found.add("floors: write into a log, us", floors.log);
        found.add("floors: share of a sync, us", floors.sync);
        found.add("envelopes that share a sync", durable.group);
        found.add("durable envelopes 1:1 a second, both ends here", durable.rate);
        found.add("a durable envelope 1:1, us", durable.cpu_us);
        found.add("row 6: / the sum of its floors (wanted <= 2)", durable.cpu_us / floors.sum());
    }
}

fn fan_out(options: &Options, found: &mut Found) {
    let mut site = fanout::Site::open(options.sessions);
    for _ in 0..options.rounds {
        let write = floors::prebuilt(options.sessions);
        let (single, burst) = (site.deliver(1), site.deliver(8));
        found.add("floor: a pre-built write to each session, us", write);
        found.add("a delivery of a fan-out, us", single);
        found.add("a delivery of bursts of 8, us", burst);
        found.add("row 4: of bursts of 8 / single (wanted <= 0.3)", burst / single);
        found.add("row 5: single / pre-built write (wanted <= 1.6)", single / write);
        found.add("row 5: of bursts of 8 / pre-built write", burst / write);
    }
}

fn set_ups(options: &Options, found: &mut Found) {
    let mut site = storm::Site::open(options.set_ups, true);
    for _ in 0..options.rounds {
        let (bare, attached, resumed) = (floors::handshake(), site.set_up(false), site.set_up(true));
        found.add("floor: a bare handshake of rustls, us", bare);
        found.add("a TLS session attached, us", attached);
        found.add("a TLS session resumed, us", resumed);
        found.add("row 7: bare handshake / attached (wanted >= 0.5)", bare / attached);
        found.add("row 7: bare handshake / resumed (wanted >= 0.5)", bare / resumed);
    }
}

fn mailbox(options: &Options, found: &mut Found) {
    let mut site = pairs::Site::open();
    for _ in 0..options.rounds {
        let (few, many) = site.grow(options.mailbox);
        found.add("an envelope into a mailbox that holds few, us", few);
        found.add("an envelope into a mailbox that holds many, us", many);
        found.add("row 11: many / few (wanted <= 1.2)", many / few);
    }
}

fn storm(options: &Options, found: &mut Found) {
    let mut site = storm::Site::open(options.sessions, false);
    for _ in 0..options.rounds {
        let storm = site.storm();
        found.add("a session back after a storm, us", storm.cpu_us);
        found.add("row 12: sessions back a second of CPU", 1e6 / storm.cpu_us);
        found.add("row 12: the 99th percentile is back after, ms", storm.p99_ms);
        found.add("row 12: reads of the store a session (wanted <= 2)", storm.reads);
        found.add("row 12: writes to the store a session", storm.writes);
    }
}
