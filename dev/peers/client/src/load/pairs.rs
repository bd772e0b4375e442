//! Pairs of a sender and a receiver. **Invariant:** a message is done when it was acknowledged to its sender and read by its receiver.

use super::{Plan, Tally};
use crate::link::Link;
use crate::speak::Hears;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::task::JoinSet;

pub async fn run(plan: &Arc<Plan>) -> String {
    plan.prepare().await;
    let tally = Arc::new(Tally::default());
    let mut tasks = JoinSet::new();
    for (number, receiver) in plan.listeners(0..plan.count, Hears::Own).await.into_iter().enumerate() {
        let sender = plan.open(plan.count + number, Hears::Nothing, number..number + 1).await;
        tasks.spawn(pair(sender, receiver, Arc::clone(plan), Arc::clone(&tally)));
    }
    plan.measure(&tally, tasks).await
}

async fn pair(mut sender: Link, mut receiver: Link, plan: Arc<Plan>, tally: Arc<Tally>) {
    let (mut sent, mut accepted, mut delivered, mut done) = (0, 0, 0, 0);
    loop {
        let arrived = accepted.min(delivered);
        tally.done.fetch_add(arrived - done, Ordering::Relaxed);
        done = arrived;
        if tally.stop.load(Ordering::Relaxed) {
            if done == sent {
                return;
            }
        } else {
            while sent < done + plan.in_flight {
                sender.publish(&plan.payload);
                sent += 1;
                tally.sent.fetch_add(1, Ordering::Relaxed);
            }
            sender.flush().await;
        }
        tokio::select! {
            biased;
            () = receiver.read() => {
                delivered += receiver.work().delivered;
                receiver.flush().await;
            }
            () = sender.read() => {
                accepted += sender.work().accepted;
                sender.flush().await;
            }
        }
    }
}
