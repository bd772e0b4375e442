//! The one read that may be out. **Invariant:** never two at once; after a failure none before its delay is over.

use crate::time::{Millis, Time};

/// A failed read is tried again after `read_retry` times at most 2 to this power.
const DOUBLINGS_MAX: u8 = 4;

/// Whether a read is out, or when the next one may go.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    out: bool,
    failures: u8,
    not_before: Option<Time>,
}

impl Reading {
    pub(super) fn is_out(&self) -> bool {
        self.out
    }

    pub(super) fn may_start(&self, now: Time) -> bool {
        !self.out && self.not_before.is_none_or(|at| at <= now)
    }

    pub(super) fn start(&mut self) {
        self.out = true;
        self.not_before = None;
    }

    pub(super) fn done(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self, now: Time, retry: Millis) {
        let delay = Millis(retry.0.saturating_mul(1 << self.failures));
        self.out = false;
        self.failures = (self.failures + 1).min(DOUBLINGS_MAX);
        self.not_before = Some(now + delay);
    }

    /// Forgets a delay that is over, so that it is not waited for again.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        if self.not_before.is_some_and(|at| at <= now) {
            self.not_before = None;
        }
    }

    /// When the delay is over.
    pub(super) fn timeout(&self) -> Option<Time> {
        self.not_before
    }
}
