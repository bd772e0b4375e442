//! Trims mailboxes in the background. **Invariant:** it decides nothing; `Store::trim` does.

use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rounds are so far apart.
const EVERY: Duration = Duration::from_mins(5);
/// Mailboxes that were active within this are looked at: `pending` keeps them for a day.
const LOOK_BACK: Millis = Millis::from_secs(24 * 3600);
/// Between two mailboxes of a round, so that a large round never crowds out appends.
const PAUSE: Duration = Duration::from_millis(2);

/// Trims until `stop`.
pub async fn run(store: Arc<dyn Store>, world: Arc<dyn World>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = round(store.as_ref(), world.as_ref()) => {}
        }
    }
}

async fn round(store: &dyn Store, world: &dyn World) {
    let (mailboxes, _) = match store.pending_since(world.wall() - LOOK_BACK).await {
        Ok(pending) => pending,
        Err(error) => return tracing::warn!(%error, "cannot list mailboxes to trim"),
    };
    let mut buckets = 0;
    for mailbox in mailboxes {
        match store.trim(mailbox).await {
            Ok(trimmed) => buckets += trimmed.buckets,
            Err(error) => tracing::warn!(%error, "cannot trim a mailbox"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    if buckets > 0 {
        tracing::info!(buckets, "trimmed");
    }
}
