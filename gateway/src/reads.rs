//! Pages of the log. **Invariant:** equal reads of one mailbox that are out at the same time are one read.

use crate::metrics::GatewayMetrics;
use chappe_protocol::envelope::Page;
use chappe_protocol::id::{MailboxId, Seq};
use chappe_storage::{Result, Store};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is read: behind which slot, at most how many rows and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) mailbox: MailboxId,
    pub(crate) after: Seq,
    pub(crate) rows_max: usize,
    pub(crate) bytes_max: usize,
}

type Reading = Shared<BoxFuture<'static, Result<Page>>>;
type Readings = Mutex<BTreeMap<Span, WeakShared<BoxFuture<'static, Result<Page>>>>>;

/// Reads that are out; at most one per session.
pub(crate) struct Reads {
    store: Arc<dyn Store>,
    metrics: Arc<GatewayMetrics>,
    out: Arc<Readings>,
}

impl Reads {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Arc<GatewayMetrics>) -> Self {
        Self { store, metrics, out: Arc::default() }
    }

    /// Reads a page; `shared`: other sessions may want the same.
    pub(crate) fn page(&self, span: Span, shared: bool) -> BoxFuture<'static, Result<Page>> {
        if !shared {
            return self.read(span);
        }
        let mut out = lock(&self.out);
        if let Some(reading) = out.get(&span).and_then(WeakShared::upgrade) {
            self.metrics.pages_shared_total.inc();
            return reading.boxed();
        }
        let (reading, entries) = (self.read(span), Arc::clone(&self.out));
        let done = Done { span, entries };
        let reading: Reading = async move {
            let _done = done;
            reading.await
        }
        .boxed()
        .shared();
        if let Some(weak) = reading.downgrade() {
            out.insert(span, weak);
        }
        reading.boxed()
    }

    fn read(&self, span: Span) -> BoxFuture<'static, Result<Page>> {
        self.metrics.pages_read_total.inc();
        let store = Arc::clone(&self.store);
        async move { store.read(span.mailbox, span.after, span.rows_max, span.bytes_max).await }.boxed()
    }
}

/// Takes a read out of the map when it ends or nobody waits for it any more.
struct Done {
    span: Span,
    entries: Arc<Readings>,
}

impl Drop for Done {
    fn drop(&mut self) {
        lock(&self.entries).remove(&self.span);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
