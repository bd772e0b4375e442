//! How often a device and an app may be woken. **Invariant:** a quota delays a wake, it never drops one.

use chappe_protocol::envelope::Urgency;
use chappe_protocol::time::{Millis, Time};

/// The least time between two wakes of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Between calls.
    pub call: Millis,
    /// Between messages.
    pub message: Millis,
    /// Between wakes that the person does not notice; iOS lets two or three an hour through.
    pub background: Millis,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            call: Millis::from_secs(2),
            message: Millis::from_secs(10),
            background: Millis::from_secs(20 * 60),
        }
    }
}

impl Intervals {
    /// Between a wake and the next one of this urgency.
    pub fn of(&self, urgency: Urgency) -> Millis {
        match urgency {
            Urgency::Call => self.call,
            Urgency::Message => self.message,
            Urgency::Background => self.background,
        }
    }
}

/// What one app may send: a token bucket, and the pause that its provider asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    /// In thousandths of a wake.
    level: u64,
    at: Time,
    paused_until: Time,
}

impl Bucket {
    /// Full. `per_second` and `burst` in wakes, at least 1 each.
    pub fn new(per_second: u32, burst: u32, now: Time) -> Self {
        let burst = u64::from(burst.max(1));
        Self {
            per_second: u64::from(per_second.max(1)),
            burst,
            level: burst * 1000,
            at: now,
            paused_until: now,
        }
    }

    /// Takes one wake, or says how long to wait.
    pub fn take(&mut self, now: Time) -> Result<(), Millis> {
        if now < self.paused_until {
            return Err(self.paused_until - now);
        }
        let passed = (now - self.at).0;
        self.at = self.at.max(now);
        // A wake per second is a thousandth of a wake per millisecond.
        self.level = self.level.saturating_add(passed.saturating_mul(self.per_second)).min(self.burst * 1000);
        match self.level.checked_sub(1000) {
            Some(level) => {
                self.level = level;
                Ok(())
            }
            None => Err(Millis((1000 - self.level).div_ceil(self.per_second))),
        }
    }

    /// Whether the whole burst may go.
    pub fn is_full(&self, now: Time) -> bool {
        if self.is_paused(now) {
            return false;
        }
        let passed = (now - self.at).0;
        self.level.saturating_add(passed.saturating_mul(self.per_second)) >= self.burst * 1000
    }

    /// The provider says that the app sends too much: nothing goes until then. A shorter pause does not end a longer one.
    pub fn pause(&mut self, now: Time, span: Millis) {
        self.paused_until = self.paused_until.max(now + span);
    }

    /// Whether nothing goes.
    pub fn is_paused(&self, now: Time) -> bool {
        now < self.paused_until
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.paused_until = Time(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_has_its_burst_then_its_rate() {
        let mut bucket = Bucket::new(10, 3, Time(0));
        for _ in 0..3 {
            assert_eq!(bucket.take(Time(0)), Ok(()));
        }
        assert_eq!(bucket.take(Time(0)), Err(Millis(100)));
        assert_eq!(bucket.take(Time(99)), Err(Millis(1)));
        assert_eq!(bucket.take(Time(100)), Ok(()));
        let mut taken = 0;
        for now in 101..10_101 {
            taken += u32::from(bucket.take(Time(now)).is_ok());
        }
        assert_eq!(taken, 100);
        let mut rested = Bucket::new(10, 3, Time(0));
        let taken = (0..10).filter(|_| rested.take(Time(1_000_000)).is_ok()).count();
        assert_eq!(taken, 3, "rest saves up no more than the burst");
    }

    #[test]
    fn a_pause_holds_all_and_a_shorter_one_does_not_end_it() {
        let mut bucket = Bucket::new(10, 3, Time(0));
        bucket.pause(Time(0), Millis(60_000));
        bucket.pause(Time(10), Millis(1000));
        assert_eq!(bucket.take(Time(1010)), Err(Millis(58_990)));
        assert_eq!(bucket.take(Time(60_000)), Ok(()));
    }
}
