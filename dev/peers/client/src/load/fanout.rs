//! One sender, everybody else listens. **Invariant:** a message counts once for each receiver, when it has been read.

use super::{Plan, Tally};
use crate::link::Link;
use crate::speak::Hears;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub async fn run(plan: &Arc<Plan>) -> String {
    let (tally, turn) = (Arc::new(Tally::default()), Arc::new(Notify::new()));
    let receivers = plan.listeners(0..plan.count, Hears::All).await;
    let sender = plan.open(plan.count, Hears::Nothing, 0..plan.count).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(send(sender, Arc::clone(plan), Arc::clone(&tally), Arc::clone(&turn)));
    // They end with the runtime: only the sender knows when everything has arrived.
    let mut listening = JoinSet::new();
    for receiver in receivers {
        listening.spawn(receive(receiver, plan.count as u64, Arc::clone(&tally), Arc::clone(&turn)));
    }
    let found = plan.measure(&tally, tasks).await;
    assert!(listening.try_join_next().is_none(), "a receiver failed");
    found
}

async fn send(mut link: Link, plan: Arc<Plan>, tally: Arc<Tally>, turn: Arc<Notify>) {
    let receivers = plan.count as u64;
    loop {
        let (sent, done) = (tally.sent.load(Ordering::Relaxed), tally.done.load(Ordering::Relaxed));
        let stop = tally.stop.load(Ordering::Relaxed);
        if !stop && link.may_publish() && sent < done + plan.in_flight * receivers {
            link.publish(&plan.payload);
            tally.sent.fetch_add(receivers, Ordering::Relaxed);
            link.flush().await;
        } else if stop && sent == done {
            return;
        } else {
            tokio::select! {
                biased;
                () = link.read() => {
                    link.work();
                    link.flush().await;
                }
                () = turn.notified() => {}
            }
        }
    }
}

async fn receive(mut link: Link, receivers: u64, tally: Arc<Tally>, turn: Arc<Notify>) {
    loop {
        link.read().await;
        let delivered = link.work().delivered;
        let before = tally.done.fetch_add(delivered, Ordering::Relaxed);
        if before / receivers != (before + delivered) / receivers {
            turn.notify_one();
        }
        link.flush().await;
    }
}
