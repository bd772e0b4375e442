//! Wakes per second over one connection, and CPU time per wake.

use super::peer::{Peer, target};
use super::population::{Population, in_memory};
use super::{Plan, cpu_us, median};
use chappe_node::clock::SystemWorld;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World as _;
use chappe_pusher::provider::{Verdict, Wake, Waking};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Streams of the peer, and how long it takes to answer.
const PEERS: [(usize, Duration); 3] =
    [(100, Duration::from_millis(100)), (100, Duration::from_millis(50)), (1000, Duration::from_millis(400))];

fn wake(expires_at: UnixMillis) -> Wake {
    Wake { urgency: Urgency::Message, collapse: "benchmark".into(), expires_at }
}

/// Sends wakes from so many tasks until the span is over; returns how many were taken after the first quarter, which warms up, and
/// the time that they took.
async fn send(waking: &Arc<dyn Waking>, tasks: usize, span: Duration) -> (usize, Duration) {
    let (started, taken) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let expires_at = SystemWorld::new().wall() + Millis::from_secs(3600);
    let senders: Vec<_> = (0..tasks)
        .map(|number| {
            let (waking, taken) = (waking.clone(), taken.clone());
            tokio::spawn(async move {
                let target = target(number);
                while started.elapsed() < span {
                    let answer = waking.wake(&target, &wake(expires_at)).await;
                    assert_eq!(answer.verdict, Verdict::Done, "{}", answer.reason);
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(span / 4).await;
    let (from, before) = (Instant::now(), taken.load(Ordering::Relaxed));
    tokio::time::sleep(span.saturating_sub(started.elapsed())).await;
    let (counted, time) = (taken.load(Ordering::Relaxed) - before, from.elapsed());
    for sender in senders {
        sender.await.unwrap();
    }
    (counted, time)
}

pub(super) async fn throughput(plan: &Plan) {
    for (streams, delay) in PEERS {
        let peer = Peer::start(streams, delay);
        let bound = streams as f64 / delay.as_secs_f64();
        let mut ratios = Vec::new();
        for _ in 0..plan.rounds {
            // A new connection each round; half as many again as there are streams, so that none is ever idle.
            let waking: Arc<dyn Waking> = peer.providers(1);
            let (taken, time) = send(&waking, streams + streams / 2, plan.span).await;
            ratios.push(taken as f64 / time.as_secs_f64() / bound);
        }
        let (low, high) =
            (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
        println!(
            "one connection, {streams} streams, {} ms: {:.2} of {bound:.0} wakes/s (rounds {low:.2} to {high:.2})",
            delay.as_millis(),
            median(&mut ratios),
        );
    }
}

pub(super) async fn cost(plan: &Plan) {
    let peer = Peer::start(1000, Duration::ZERO);
    for flight in [1, 8, 100] {
        let waking: Arc<dyn Waking> = peer.providers(2);
        let mut costs = Vec::new();
        for _ in 0..plan.rounds {
            let used = cpu_us();
            let started = Instant::now();
            let (taken, time) = send(&waking, flight, plan.span).await;
            // The warm-up is in the CPU time too: count it alike.
            let all = taken as f64 * started.elapsed().as_secs_f64() / time.as_secs_f64();
            costs.push((cpu_us() - used) / all);
        }
        println!("APNs client, {flight} in flight: {:.0} us of CPU a wake", median(&mut costs));
    }
    let mut costs = Vec::new();
    for _ in 0..plan.rounds {
        let people = Population::fill(in_memory(), plan.wakes, plan.wakes).await;
        let running = people.start(peer.providers(2));
        let used = cpu_us();
        people.hint(&running).await;
        running.until("chappe_pusher_wakes_total", plan.wakes).await;
        costs.push((cpu_us() - used) / plan.wakes as f64);
        running.stop().await;
    }
    println!(
        "hint, look, outbox, APNs, trace in the store (memory): {:.0} us of CPU a wake, {} wakes a round",
        median(&mut costs),
        plan.wakes
    );
}
