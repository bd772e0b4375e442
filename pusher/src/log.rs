//! A provider that only tells the log, so that a newcomer sees wakes. **Invariant:** it tells how urgent and how many, and
//! not whom.

use crate::answers::LOGGED;
use crate::provider::{Answer, Provider, Wake};
use async_trait::async_trait;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::PushTarget;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts, by urgency.
#[derive(Debug, Default)]
pub struct Log {
    call: AtomicU64,
    message: AtomicU64,
    background: AtomicU64,
}

impl Log {
    /// Wakes of this urgency so far.
    pub fn count(&self, urgency: Urgency) -> u64 {
        self.counter(urgency).0.load(Ordering::Relaxed)
    }

    fn counter(&self, urgency: Urgency) -> (&AtomicU64, &'static str) {
        match urgency {
            Urgency::Call => (&self.call, "call"),
            Urgency::Message => (&self.message, "message"),
            Urgency::Background => (&self.background, "background"),
        }
    }
}

#[async_trait]
impl Provider for Log {
    async fn wake(&self, _: &PushTarget, wake: &Wake) -> Answer {
        let (counter, urgency) = self.counter(wake.urgency);
        let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::info!(urgency, count, "a device would be woken");
        LOGGED.answer(None, None)
    }
}
