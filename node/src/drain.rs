//! The end of a process: told, awaited, bounded. **Invariant:** a drain ends within its budget, whatever hangs.

use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Waits until `stop` is cancelled, then until every task of the tracker has ended or `budget` is over.
/// Returns whether all ended in time.
pub async fn wait(stop: &CancellationToken, tasks: &TaskTracker, budget: Duration) -> bool {
    stop.cancelled().await;
    tasks.close();
    let in_time = tokio::time::timeout(budget, tasks.wait()).await.is_ok();
    if !in_time {
        tracing::warn!(tasks = tasks.len(), "the drain's budget is over, ending with tasks still running");
    }
    in_time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hanging_task_does_not_stretch_the_budget() {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(std::future::pending::<()>());
        stop.cancel();
        assert!(!wait(&stop, &tasks, Duration::from_secs(5)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_obey_are_awaited() {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let obeyed = stop.clone();
        tasks.spawn(async move {
            obeyed.cancelled().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        stop.cancel();
        assert!(wait(&stop, &tasks, Duration::from_secs(5)).await);
    }
}
