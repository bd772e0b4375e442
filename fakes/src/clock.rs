//! The provider's clock, which tests may turn. **Invariant:** every age and expiry of a fake is reckoned by this clock alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall time of a provider, in milliseconds since 1970. Clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock {
    /// Fixed start; `None`: the machine's time.
    start_ms: Option<u64>,
    ahead_ms: Arc<AtomicU64>,
}

impl Clock {
    /// The machine's time, plus what [`Clock::advance`] added.
    pub fn system() -> Self {
        Self { start_ms: None, ahead_ms: Arc::default() }
    }

    /// Stands still at this time until it is advanced.
    pub fn at(unix_ms: u64) -> Self {
        Self { start_ms: Some(unix_ms), ahead_ms: Arc::default() }
    }

    /// Turns the clock ahead.
    pub fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub fn now_ms(&self) -> u64 {
        let base = self.start_ms.unwrap_or_else(machine_ms);
        base.saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Whole seconds since 1970-01-01 UTC, as JWTs count them.
    pub fn now_seconds(&self) -> u64 {
        self.now_ms() / 1000
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place of this crate that reads the machine's clock")]
fn machine_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
