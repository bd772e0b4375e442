//! Sweeps of many noted mailboxes: the first, after a start with nothing known, and those that follow.

use super::memory::resident;
use super::peer::Peer;
use super::population::{Population, in_memory};
use super::{Plan, cpu_us};
use chappe_node::clock::SystemWorld;
use chappe_storage::Store;
use chappe_storage::scylla::{ScyllaConfig, ScyllaRows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One mailbox in so many has a device that sleeps; the others' have acked.
const SLEEPS: usize = 100;
/// Sweeps behind the first that are measured.
const FURTHER: usize = 4;

async fn store(plan: &Plan) -> Arc<dyn Store> {
    let Some(url) = &plan.cql else { return in_memory() };
    let world = Arc::new(SystemWorld::new());
    let rows = ScyllaRows::connect(ScyllaConfig::from_url(url).unwrap(), world.clone()).await.unwrap();
    Arc::new(SlotLog::new(Arc::new(rows), world, LogConfig::default()))
}

pub(super) async fn run(plan: &Plan) {
    let (mailboxes, sleepers) = (plan.mailboxes, plan.mailboxes / SLEEPS);
    let filling = Instant::now();
    let people = Population::fill(store(plan).await, mailboxes, sleepers).await;
    println!(
        "{mailboxes} noted mailboxes, {sleepers} with a device that sleeps; filled in {:.0} s",
        filling.elapsed().as_secs_f64()
    );
    let peer = Peer::start(1000, Duration::ZERO);
    let providers = peer.providers(2);
    let (held, used, started) = (resident(), cpu_us(), Instant::now());
    let running = people.start(providers);
    let mut held_most = 0;
    while running.figure("chappe_pusher_sweep_seconds") < 1.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        held_most = held_most.max(resident().saturating_sub(held));
    }
    println!(
        "first sweep: {:.1} s, {:.1} us of CPU a mailbox, {} MiB at most beside the store",
        started.elapsed().as_secs_f64(),
        (cpu_us() - used) / mailboxes as f64,
        held_most >> 20,
    );
    running.until("chappe_pusher_wakes_total", sleepers).await;
    println!("everybody who sleeps was woken after {:.1} s", started.elapsed().as_secs_f64());
    let (used, notes) = (cpu_us(), running.figure("chappe_pusher_notes_total"));
    let started = Instant::now();
    let sweeps = running.figure("chappe_pusher_sweep_seconds");
    while running.figure("chappe_pusher_sweep_seconds") < sweeps + FURTHER as f64 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let notes = running.figure("chappe_pusher_notes_total") - notes;
    println!(
        "further sweeps: one in {:.1} s, {:.0} notes each, {:.2} us of CPU a note",
        started.elapsed().as_secs_f64() / FURTHER as f64,
        notes / FURTHER as f64,
        (cpu_us() - used) / notes.max(1.0),
    );
    running.stop().await;
}
