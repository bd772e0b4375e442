//! Writes of cursors. **Invariant:** a bounded number is with the store at once; each session has at most one.

use crate::metrics::GatewayMetrics;
use chappe_protocol::id::{DeviceId, MailboxId, Seq};
use chappe_storage::{Result, Store, StoreError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Cursor writes with the store at once.
const WRITES_MAX: usize = 256;

/// The way of all cursor writes of a gateway. Sessions batch theirs (`advance_every`).
pub(crate) struct Cursors {
    store: Arc<dyn Store>,
    metrics: Arc<GatewayMetrics>,
    permits: Arc<Semaphore>,
}

impl Cursors {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Arc<GatewayMetrics>) -> Self {
        Self { store, metrics, permits: Arc::new(Semaphore::new(WRITES_MAX)) }
    }

    /// Raises a device's cursor in the store.
    pub(crate) fn advance(
        &self,
        mailbox: MailboxId,
        device: DeviceId,
        upto: Seq,
    ) -> BoxFuture<'static, Result<()>> {
        let (store, permits) = (Arc::clone(&self.store), Arc::clone(&self.permits));
        let metrics = Arc::clone(&self.metrics);
        async move {
            let _waiting = Waiting::new(&metrics);
            let _permit = permits
                .acquire()
                .await
                .map_err(|_| StoreError::Unavailable("the gateway ends".to_owned()))?;
            store.advance(mailbox, &device, upto).await?;
            metrics.advanced_total.inc();
            Ok(())
        }
        .boxed()
    }
}

/// Counts a write for as long as it lives.
struct Waiting<'a>(&'a GatewayMetrics);

impl<'a> Waiting<'a> {
    fn new(metrics: &'a GatewayMetrics) -> Self {
        metrics.advances_in_flight.inc();
        Self(metrics)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.advances_in_flight.dec();
    }
}
