//! Counters of the database's use. **Invariant:** they only grow.

use super::errors::Kind;
use crate::error::StoreError;
use chappe_protocol::time::Millis;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What a `ScyllaRows` has sent and met since it was made.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct ScyllaStats { $($(#[$doc])* pub $name: u64,)+ }

        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)+ }

        impl Counters {
            pub(super) fn snapshot(&self) -> ScyllaStats {
                ScyllaStats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Plain reads, at LOCAL_QUORUM.
    reads,
    /// Reads at LOCAL_SERIAL: each a round of Paxos.
    serial_reads,
    /// Plain writes: max-registers, pending rows, deletions.
    writes,
    /// Lightweight transactions beside appends.
    conditionals,
    /// Appends: conditional batches.
    appends,
    /// Of these, slots in them.
    append_slots,
    /// Of the appends, refused ones.
    appends_refused,
    /// Milliseconds that plain reads took, together.
    reads_ms,
    /// The same, reads at LOCAL_SERIAL.
    serial_reads_ms,
    /// The same, plain writes.
    writes_ms,
    /// The same, lightweight transactions.
    conditionals_ms,
    /// The same, appends.
    appends_ms,
    /// Statements that certainly wrote nothing.
    unavailable,
    /// Statements that perhaps wrote.
    unknown,
    /// Statements refused as wrong. Alarm when this grows.
    invalid,
    /// Answers that nobody could read. Alarm when this grows.
    misshapen,
    /// Statements that found too many under way and were not sent.
    refused_full,
    /// Reads that joined an equal one.
    coalesced,
    /// Samples taken of the database's clock.
    clock_samples,
}

impl Counters {
    /// One statement is done.
    pub(super) fn done(&self, kind: Kind, took: Millis) {
        let (count, sum) = match kind {
            Kind::Read => (&self.reads, &self.reads_ms),
            Kind::SerialRead => (&self.serial_reads, &self.serial_reads_ms),
            Kind::Write => (&self.writes, &self.writes_ms),
            Kind::Conditional => (&self.conditionals, &self.conditionals_ms),
            Kind::Append => (&self.appends, &self.appends_ms),
        };
        add(count, 1);
        add(sum, took.0);
    }

    /// One has failed.
    pub(super) fn failed(&self, error: &StoreError) {
        match error {
            StoreError::Unavailable(_) => add(&self.unavailable, 1),
            StoreError::Unknown(_) => add(&self.unknown, 1),
            StoreError::Invalid(_)
            | StoreError::Quota
            | StoreError::Erased
            | StoreError::Revoked
            | StoreError::CursorAhead { .. } => add(&self.invalid, 1),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
