//! Counters of a slot log. **Invariant:** they only grow.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What a `SlotLog` has met since it was made. Counts, not bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct LogStats { $($(#[$doc])* pub $name: u64,)+ }

        impl LogStats {
            /// Both together.
            #[must_use]
            pub fn plus(self, other: Self) -> Self {
                Self { $($name: self.$name + other.$name,)+ }
            }
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters { $(pub(super) $name: AtomicU64,)+ }

        impl Counters {
            pub(super) fn snapshot(&self) -> LogStats {
                LogStats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters! {
    /// Slots committed.
    committed,
    /// Entries answered as duplicates.
    duplicates,
    /// Compare-and-sets that were refused, whatever for.
    refused,
    /// Compare-and-sets whose outcome stayed open at first.
    undecided,
    /// Buckets opened beyond the first.
    crossings,
    /// Buckets read for ids before an append.
    look_back_reads,
    /// Entries found there.
    look_back_hits,
    /// Head registers read to find a cold or moved head.
    head_reads,
    /// Heads found beyond the bucket where the search began.
    galloped,
    /// Appends refused for quota.
    quota_refused,
    /// Rows or payloads that were missing at first sight.
    holes,
    /// Of these: there at SERIAL.
    holes_healed,
    /// Of these: lost for good, told to the device. Alarm when this grows.
    lost,
    /// Reads that met the floor.
    truncated,
    /// Buckets trimmed.
    trimmed,
    /// Clients whose cursor lay beyond the head. Alarm when this grows.
    cursors_ahead,
    /// Head registers that went back: the database lost a write. Alarm when this grows.
    heads_back,
}

pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}
