//! Sessions that are set up and closed again. **Invariant:** every user has been there before what is measured.

use super::{Plan, Tally};
use crate::speak::Hears;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

pub async fn run(plan: &Arc<Plan>) -> String {
    let (tally, next) = (Arc::new(Tally::default()), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..plan.count {
        tasks.spawn(come_and_go(Arc::clone(plan), Arc::clone(&tally), Arc::clone(&next)));
    }
    while tally.done.load(Ordering::Relaxed) < plan.users as u64 {
        assert!(tasks.try_join_next().is_none(), "a session failed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    plan.measure(&tally, tasks).await
}

async fn come_and_go(plan: Arc<Plan>, tally: Arc<Tally>, next: Arc<AtomicUsize>) {
    let hears = if plan.subscribe { Hears::Own } else { Hears::Nothing };
    while !tally.stop.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed) % plan.users;
        tally.sent.fetch_add(1, Ordering::Relaxed);
        plan.open(number, hears, 0..0).await.close().await;
        tally.done.fetch_add(1, Ordering::Relaxed);
    }
}
