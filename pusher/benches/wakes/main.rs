//! What wakes cost. `cargo bench -p chappe-pusher --bench wakes`.
//!
//! Prints (a) wakes per second over one HTTP/2 connection beside what the peer's streams and its delay allow; (b) CPU time of the
//! pusher per wake: its APNs client alone, and the whole way from the hint to the trace in the store; (c) bytes of memory per wake that
//! waits; (d) sweeps of many noted mailboxes on the memory store, or with `-- --cql cql://host:port/keyspace` on a database. The
//! provider is the strict fake in a process of its own. `-- --only connection|cost|memory|sweep`, `-- --mailboxes N`.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures real time and stops at any error"
)]
#![allow(clippy::cast_precision_loss, clippy::print_stdout, reason = "figures for people")]

mod connection;
mod memory;
mod peer;
mod population;
mod sweep;

use std::time::Duration;

/// What is run, and how long.
struct Plan {
    rounds: usize,
    /// Of one measurement.
    span: Duration,
    /// Wakes whose cost is measured.
    wakes: usize,
    mailboxes: usize,
    cql: Option<String>,
}

fn main() {
    if std::env::args().nth(1).is_some_and(|first| first == peer::MODE) {
        return peer::serve();
    }
    let said = |name: &str| std::env::args().skip_while(|argument| argument != name).nth(1);
    // `cargo test` runs benchmarks too, in a moment.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let mailboxes = said("--mailboxes").map(|number| number.parse().unwrap());
    let plan = Plan {
        rounds: if quick { 1 } else { 3 },
        span: if quick { Duration::from_millis(300) } else { Duration::from_secs(5) },
        wakes: if quick { 200 } else { 40_000 },
        mailboxes: mailboxes.unwrap_or(if quick { 2000 } else { 1_000_000 }),
        cql: said("--cql"),
    };
    let only = said("--only");
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("memory") {
        // First: what others have freed would be taken again.
        memory::per_waiting_wake();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let parts = async {
        if wanted("connection") {
            connection::throughput(&plan).await;
        }
        if wanted("cost") {
            connection::cost(&plan).await;
        }
        if wanted("sweep") {
            sweep::run(&plan).await;
        }
    };
    runtime.block_on(parts);
}

/// CPU time of this process up to now, all threads, user and system, in microseconds; counted in ticks of 10 ms.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 * 10_000.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
