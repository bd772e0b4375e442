//! When to wake whom, and when again. **Invariant:** pure: time and randomness are handed in, nothing is asked.

mod quota;

pub use quota::{Bucket, Intervals};

use chappe_protocol::envelope::Urgency;
use chappe_protocol::time::{Millis, Time, UnixMillis};

/// From a wake that was given, and brought nobody, to the next. After the last of them, some 19 hours after the first, a
/// device is left alone until something new is for it.
pub const REPEATS: [Millis; 7] = [
    Millis::from_secs(30),
    Millis::from_secs(120),
    Millis::from_secs(600),
    Millis::from_secs(3600),
    Millis::from_secs(6 * 3600),
    Millis::from_secs(6 * 3600),
    Millis::from_secs(6 * 3600),
];
/// The first backoff, and the longest.
const BACKOFF_MS: (u64, u64) = (1000, 300_000);

/// How long to wait after the `failures`th failure in a row (from 1): twice as long each time, the upper half of it by
/// `random`, and never less than the provider asked for.
pub fn backoff(failures: u32, asked: Option<Millis>, random: u64) -> Millis {
    let (first, longest) = BACKOFF_MS;
    let span = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest);
    let jittered = span / 2 + random % (span / 2 + 1);
    let asked = asked.map_or(0, |asked| asked.0);
    // Those who were asked to wait do not come back in one moment either.
    if asked > jittered { Millis(asked + random % (asked / 10 + 1)) } else { Millis(jittered) }
}

/// When to give the next wake for the same slots after the one that was the `attempt`th (from 0) and given at `at`; up to a
/// tenth later by `spread`, which every pusher derives alike from whom it is for. `None`: no more.
pub fn repeat(attempt: u8, at: UnixMillis, spread: u64) -> Option<UnixMillis> {
    let span = REPEATS.get(usize::from(attempt))?.0;
    Some(at + Millis(span + spread % (span / 10 + 1)))
}

/// A wake that waits for its moment: many envelopes, one of these per device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Not before.
    pub at: Time,
    /// The highest of those that it stands for.
    pub urgency: Urgency,
    /// The latest of those that it stands for.
    pub expires_at: UnixMillis,
}

impl Due {
    /// One wake for both. What is more urgent is not held back by what is less, and what is less does not hasten what
    /// waits for a quota: the earlier moment holds only where its urgency is the higher or the same.
    #[must_use]
    pub fn collapse(self, other: Self) -> Self {
        let at = match self.urgency.cmp(&other.urgency) {
            std::cmp::Ordering::Less => other.at,
            std::cmp::Ordering::Equal => self.at.min(other.at),
            std::cmp::Ordering::Greater => self.at,
        };
        // The more urgent may wait for longer than the less (its own backoff): then the less urgent goes first, for both.
        let at = at.min(self.at.max(other.at));
        Self {
            at,
            urgency: self.urgency.max(other.urgency),
            expires_at: self.expires_at.max(other.expires_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_a_bound_is_jittered_and_never_shorter_than_asked() {
        for (failures, low, high) in
            [(1, 500, 1000), (2, 1000, 2000), (5, 8000, 16_000), (20, 150_000, 300_000)]
        {
            assert_eq!(
                (backoff(failures, None, 0).0, backoff(failures, None, high - low).0),
                (low, high),
                "{failures}"
            );
        }
        assert!(backoff(u32::MAX, None, u64::MAX).0 <= 300_000 && backoff(0, None, 0).0 == 500);
        for random in [0, 7, u64::MAX] {
            let wait = backoff(1, Some(Millis(60_000)), random).0;
            assert!((60_000..=66_000).contains(&wait), "{wait}");
            assert!(backoff(9, Some(Millis(10)), random).0 >= 128_000);
        }
    }

    #[test]
    fn repeats_grow_and_end_after_a_day() {
        let (mut last, mut attempt, mut spans) = (UnixMillis(1_000_000), 0, Vec::new());
        while let Some(at) = repeat(attempt, last, 0) {
            spans.push((at.0 - last.0) / 1000);
            (last, attempt) = (at, attempt + 1);
        }
        assert_eq!(spans, [30, 120, 600, 3600, 21_600, 21_600, 21_600]);
        assert!(last.0 - 1_000_000 <= 24 * 3_600_000);
        assert_eq!(repeat(0, last, u64::MAX).unwrap().0 - last.0, 30_000 + u64::MAX % 3001);
        assert_eq!((repeat(7, last, 0), repeat(u8::MAX, last, 0)), (None, None));
    }

    #[test]
    fn many_envelopes_make_one_wake() {
        let due = |at, urgency, expires| Due { at: Time(at), urgency, expires_at: UnixMillis(expires) };
        let (call, message, background) = (Urgency::Call, Urgency::Message, Urgency::Background);
        for (one, other, wanted) in [
            (due(10, message, 5), due(20, message, 9), due(10, message, 9)),
            (due(900, background, 5), due(20, message, 9), due(20, message, 9)),
            (due(10, call, 9), due(5, message, 5), due(10, call, 9)),
        ] {
            assert_eq!(one.collapse(other), wanted);
            assert_eq!(other.collapse(one), wanted);
        }
    }
}
