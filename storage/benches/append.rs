//! Appends to the embedded store: what a sync costs, alone and shared. `cargo bench -p chappe-storage --bench append`.
//!
//! Prints, from interleaved rounds on one disk: (a) acknowledged appends per second with 1,024 in flight, synced and with
//! the sync left out, and their ratio; (b) the median of one append in flight, beside the median of an `fdatasync` after
//! 512 bytes were appended to a growing file; CPU time per append; and what reads cost.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a benchmark measures real time and stops at any error"
)]
#![allow(clippy::cast_precision_loss, clippy::print_stdout, reason = "figures for people")]

#[path = "../tests/support/mod.rs"]
mod support;

use chappe_protocol::id::{Bucket, MailboxId, Seq};
use chappe_protocol::time::UnixMillis;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::rows::{Applied, Batch, Head, Partition, Rows};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Clock, START, entry};

const ROUNDS: usize = 5;
const FLIGHT: usize = 1024;
const PAYLOAD: usize = 256;

fn main() {
    // `cargo test` runs benchmarks too, in a moment.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let span = if quick { Duration::from_millis(50) } else { Duration::from_secs(3) };
    let rounds = if quick { 1 } else { ROUNDS };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let directory =
        tempfile::tempdir_in(std::env::args().skip_while(|a| a != "--dir").nth(1).unwrap_or(".".into()))
            .unwrap();
    let synced = open(&directory.path().join("synced"), true);
    let unsynced = open(&directory.path().join("unsynced"), false);
    let (mut ratios, mut firsts, mut factors) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let (with, with_cpu) = runtime.block_on(many(&synced, round, span));
        let (without, without_cpu) = runtime.block_on(many(&unsynced, round, span));
        let bare = growing_fdatasync(&directory.path().join("plain"), span / 4);
        let one = runtime.block_on(alone(&synced, round, span / 4));
        println!(
            "round {round}: {with:.0}/s synced ({with_cpu:.1} us CPU), {without:.0}/s unsynced ({without_cpu:.1} us CPU), ratio {:.2}; \
             one in flight {one:.0} us, growing fdatasync {bare:.0} us, factor {:.2}",
            with / without,
            one / bare
        );
        ratios.push(with / without);
        firsts.push(with);
        factors.push(one / bare);
    }
    println!(
        "median: {:.0} acknowledged appends/s with {FLIGHT} in flight, ratio {:.2}, factor {:.2}",
        median(&mut firsts),
        median(&mut ratios),
        median(&mut factors)
    );
    runtime.block_on(reads(&synced));
}

fn open(path: &Path, sync: bool) -> Arc<EmbeddedRows> {
    let mut config = EmbeddedConfig::default();
    config.sync = sync;
    Arc::new(EmbeddedRows::open(path, Clock::new(1), config).unwrap())
}

fn mailbox(round: usize, number: usize) -> MailboxId {
    let mut id = [0; 16];
    // Spread like random ids.
    let mixed = ((round << 20) + number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    id[..8].copy_from_slice(&mixed.to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    MailboxId(id)
}

/// Appends to one mailbox, one after the other, until the time is over; returns the durations.
async fn sender(rows: Arc<EmbeddedRows>, of: MailboxId, until: Instant, count: Arc<AtomicU64>) -> Vec<f64> {
    let mut seq = 0;
    let mut took = Vec::new();
    while Instant::now() < until {
        seq += 1;
        let mut entry = entry(1, seq, PAYLOAD);
        entry.envelope_id.0[..8].copy_from_slice(
            &(seq ^ u64::from_be_bytes(of.0[..8].try_into().unwrap()))
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .to_be_bytes(),
        );
        let bucket = Bucket(seq >> 8);
        let expected = (bucket.0 << 8 != seq && seq > 1).then_some(Seq(seq - 1));
        let to = Head { seq: Seq(seq), opened_at: UnixMillis(START), bytes_total: 0 };
        let begin = Instant::now();
        let batch = Batch { expected, to, slots: vec![(Seq(seq), &entry)] };
        let applied = rows.compare_and_append(Partition { mailbox: of, bucket }, batch).await.unwrap();
        assert_eq!(applied, Applied::Yes);
        took.push(begin.elapsed().as_secs_f64() * 1e6);
        count.fetch_add(1, Ordering::Relaxed);
    }
    took
}

/// Appends per second and CPU microseconds per append with many in flight.
async fn many(rows: &Arc<EmbeddedRows>, round: usize, span: Duration) -> (f64, f64) {
    let count = Arc::new(AtomicU64::new(0));
    let (begin, cpu) = (Instant::now(), cpu_us());
    let tasks: Vec<_> = (0..FLIGHT)
        .map(|number| {
            tokio::spawn(sender(Arc::clone(rows), mailbox(round, number), begin + span, Arc::clone(&count)))
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let done = count.load(Ordering::Relaxed) as f64;
    (done / begin.elapsed().as_secs_f64(), (cpu_us() - cpu) / done)
}

/// The median of one append in flight, in microseconds.
async fn alone(rows: &Arc<EmbeddedRows>, round: usize, span: Duration) -> f64 {
    let mut took =
        sender(Arc::clone(rows), mailbox(round, FLIGHT), Instant::now() + span, Arc::default()).await;
    median(&mut took)
}

/// The median of an `fdatasync` behind 512 appended bytes, in microseconds.
fn growing_fdatasync(path: &Path, span: Duration) -> f64 {
    let mut file = File::create(path).unwrap();
    let begin = Instant::now();
    let mut took = Vec::new();
    while begin.elapsed() < span {
        let one = Instant::now();
        file.write_all(&[7; 512]).unwrap();
        file.sync_data().unwrap();
        took.push(one.elapsed().as_secs_f64() * 1e6);
    }
    median(&mut took)
}

async fn reads(rows: &Arc<EmbeddedRows>) {
    let mut took = Vec::new();
    let mut pages = Vec::new();
    for number in 0..FLIGHT {
        let of = Partition { mailbox: mailbox(0, number), bucket: Bucket(0) };
        let begin = Instant::now();
        rows.head(of).await.unwrap().unwrap();
        took.push(begin.elapsed().as_secs_f64() * 1e6);
        let begin = Instant::now();
        rows.slots(of, Seq::ZERO, 64, 1 << 20, false).await.unwrap();
        pages.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    println!(
        "reads: a head {:.1} us, up to 64 slots beside the async threads {:.1} us (medians)",
        median(&mut took),
        median(&mut pages)
    );
}

/// CPU time of the process so far, in microseconds: user and system time in ticks of 10 ms (proc(5)).
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) * 10_000.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
