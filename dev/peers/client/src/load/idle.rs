//! Sessions that do nothing. **Invariant:** memory is read when everything that opening them left to do is done.

use super::Plan;
use crate::count::resident_bytes;
use crate::speak::Hears;
use std::sync::Arc;
use std::time::Duration;

/// Sessions before the first look: what the first ones cost is not theirs.
const FIRST: usize = 50;
/// Freed memory is given back, after the last one first cursors are written.
const SETTLED: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(5_500)];

pub async fn run(plan: &Arc<Plan>) -> String {
    let _first = plan.listeners(0..FIRST, Hears::Own).await;
    tokio::time::sleep(SETTLED[0]).await;
    let before = resident_bytes(plan.pid);
    let _others = plan.listeners(FIRST..FIRST + plan.count, Hears::Own).await;
    tokio::time::sleep(SETTLED[1]).await;
    let grown = resident_bytes(plan.pid).saturating_sub(before);
    let each = grown / plan.count as u64;
    format!("{{\"bytes\":{each},\"sessions\":{},\"over\":\"{}\"}}", plan.count, plan.dial.agreed())
}
