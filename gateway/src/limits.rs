//! What a client may ask for. **Invariant:** every refusal names its limit and says when to come back.

use chappe_protocol::close::ErrorFrame;
use chappe_protocol::frame::{Limits, Submit};
use chappe_protocol::id::SubmitId;
use chappe_protocol::time::Time;

/// One token of a bucket: what a rate of one a minute gains in milliseconds.
const TOKEN: u64 = 60_000;

/// Tokens that come back at a steady rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    /// Sixty-thousandths of a token.
    tokens: u64,
    at: Time,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn full(now: Time, burst: u32) -> Self {
        Self { tokens: u64::from(burst) * TOKEN, at: now }
    }

    /// Takes one token; otherwise says in how many milliseconds there will be one.
    pub(crate) fn take(&mut self, now: Time, per_second: u32, burst: u32) -> Result<(), u32> {
        self.take_at(now, u64::from(per_second) * 60, burst)
    }

    /// As [`Bucket::take`], for what comes slower.
    pub(crate) fn take_by_minute(&mut self, now: Time, per_minute: u32, burst: u32) -> Result<(), u32> {
        self.take_at(now, u64::from(per_minute), burst)
    }

    /// How many tokens there are.
    pub(crate) fn level(&mut self, now: Time, per_second: u32, burst: u32) -> u32 {
        self.gain(now, u64::from(per_second) * 60, burst);
        u32::try_from(self.tokens / TOKEN).unwrap_or(u32::MAX)
    }

    fn gain(&mut self, now: Time, per_minute: u64, burst: u32) {
        let gained = (now - self.at).0.saturating_mul(per_minute);
        self.tokens = self.tokens.saturating_add(gained).min(u64::from(burst) * TOKEN);
        self.at = self.at.max(now);
    }

    fn take_at(&mut self, now: Time, per_minute: u64, burst: u32) -> Result<(), u32> {
        self.gain(now, per_minute, burst);
        if self.tokens >= TOKEN {
            self.tokens -= TOKEN;
            return Ok(());
        }
        let wait = (TOKEN - self.tokens).div_ceil(per_minute.max(1));
        Err(u32::try_from(wait).unwrap_or(u32::MAX))
    }
}

/// What to do about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Go on.
    Within,
    /// Too fast: tell the client, once.
    Warn {
        /// Wait so long.
        retry_after_ms: u32,
    },
    /// Too fast already, and told so.
    Beyond {
        /// Wait so long.
        retry_after_ms: u32,
    },
    /// It goes on for too long: close.
    Close,
}

/// Frames of one connection: `frames_per_second_max` sustained, `frames_burst_max` at once. What exceeds them has no
/// effect, but for signs of life; an excess of one more burst closes.
#[derive(Debug)]
pub(crate) struct FrameRate {
    bucket: Bucket,
    excess: u32,
}

impl FrameRate {
    pub(crate) fn new(now: Time, limits: &Limits) -> Self {
        Self { bucket: Bucket::full(now, limits.frames_burst_max), excess: 0 }
    }

    pub(crate) fn on_frame(&mut self, now: Time, limits: &Limits) -> Verdict {
        match self.bucket.take(now, limits.frames_per_second_max, limits.frames_burst_max) {
            Ok(()) => {
                self.excess = self.excess.saturating_sub(1);
                Verdict::Within
            }
            Err(retry_after_ms) => {
                self.excess += 1;
                if self.excess > limits.frames_burst_max {
                    Verdict::Close
                } else if self.excess == 1 {
                    Verdict::Warn { retry_after_ms }
                } else {
                    Verdict::Beyond { retry_after_ms }
                }
            }
        }
    }
}

/// A limit that was hit: its name as the schema's `Limits` has it, and when to come back (0: never with the same frame).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) name: &'static str,
    pub(crate) retry_after_ms: u32,
}

/// The one limit that `Welcome` does not tell: PROTOCOL.md names it beside those of the schema.
pub(crate) const EPHEMERALS: &str = "ephemerals_per_second_max";
/// Frames of any kind.
pub(crate) const FRAMES: &str = "frames_per_second_max";

/// The names of all limits that a [`Hit`] may have.
pub(crate) const LIMITS: [&str; 7] = [
    FRAMES,
    EPHEMERALS,
    "envelope_bytes_max",
    "ephemeral_bytes_max",
    "targets_max",
    "ttl_ms_max",
    "submits_in_flight_max",
];

/// Checks a submit against what `Welcome` told, with `in_flight` submits unanswered.
pub(crate) fn check_submit(submit: &Submit, limits: &Limits, in_flight: usize) -> Result<(), Hit> {
    let never = |name| Err(Hit { name, retry_after_ms: 0 });
    if submit.payloads.iter().any(|payload| payload.len() > limits.envelope_bytes_max as usize) {
        return never("envelope_bytes_max");
    }
    if submit.ephemeral
        && submit.payloads.iter().any(|payload| payload.len() > limits.ephemeral_bytes_max as usize)
    {
        return never("ephemeral_bytes_max");
    }
    if submit.targets.len() > limits.targets_max as usize {
        return never("targets_max");
    }
    if submit.ttl > limits.ttl_max {
        return never("ttl_ms_max");
    }
    if in_flight >= limits.submits_in_flight_max as usize {
        return Err(Hit { name: "submits_in_flight_max", retry_after_ms: 100 });
    }
    Ok(())
}

/// The error that tells a client of a limit.
pub(crate) fn limit_error(hit: Hit, submit: Option<SubmitId>) -> ErrorFrame {
    let message = format!("the limit {} was exceeded", hit.name);
    ErrorFrame::limit(hit.name, hit.retry_after_ms, submit, &message)
}

/// The error that tells a client that its new token was not taken; the old one goes on.
pub(crate) fn refresh_refused() -> ErrorFrame {
    ErrorFrame::refresh_refused("the new token is not valid; the old one holds until it expires")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use chappe_protocol::close::ErrorScope;
    use chappe_protocol::envelope::{DeviceFilter, Urgency};
    use chappe_protocol::frame::Target;
    use chappe_protocol::id::UserId;
    use chappe_protocol::time::Millis;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::full(Time(0), 3);
        for _ in 0..3 {
            assert_eq!(bucket.take(Time(0), 10, 3), Ok(()));
        }
        assert_eq!(bucket.take(Time(0), 10, 3), Err(100));
        assert_eq!(bucket.take(Time(99), 10, 3), Err(1));
        assert_eq!(bucket.take(Time(100), 10, 3), Ok(()));
        for _ in 0..3 {
            assert_eq!(bucket.take(Time(1_000_000), 10, 3), Ok(()));
        }
        assert_eq!(bucket.take(Time(1_000_000), 10, 3), Err(100), "never more than its burst");
    }

    #[test]
    fn a_slow_bucket_gives_its_rate_by_the_minute() {
        let mut bucket = Bucket::full(Time(0), 10);
        assert!((0..10).all(|_| bucket.take_by_minute(Time(0), 10, 10).is_ok()));
        assert_eq!(bucket.take_by_minute(Time(0), 10, 10), Err(6000));
        assert_eq!(bucket.take_by_minute(Time(5999), 10, 10), Err(1));
        assert_eq!(bucket.take_by_minute(Time(6000), 10, 10), Ok(()));
    }

    #[test]
    fn a_flood_is_warned_once_and_then_closed() {
        let limits = Limits::default();
        let mut rate = FrameRate::new(Time(0), &limits);
        let verdicts: Vec<Verdict> = (0..500).map(|_| rate.on_frame(Time(0), &limits)).collect();
        assert!(verdicts[..200].iter().all(|v| *v == Verdict::Within));
        assert_eq!(verdicts[200], Verdict::Warn { retry_after_ms: 20 });
        assert!(verdicts[201..400].iter().all(|v| *v == Verdict::Beyond { retry_after_ms: 20 }));
        assert_eq!(verdicts[400], Verdict::Close);
    }

    #[test]
    fn the_sustained_rate_is_never_closed() {
        let limits = Limits::default();
        let mut rate = FrameRate::new(Time(0), &limits);
        assert!((0..10_000).all(|n| rate.on_frame(Time(n * 20), &limits) == Verdict::Within));
    }

    fn submit(payload: usize, targets: u32, ttl: Millis) -> Submit {
        let user = UserId::new("ben").unwrap();
        let target = |number| Target {
            number,
            user: user.clone(),
            devices: DeviceFilter::All,
            device_set_version: None,
            payload: 0,
        };
        Submit {
            submit_id: SubmitId([7; 16]),
            attempt: 1,
            payloads: vec![Bytes::from(vec![0; payload])],
            targets: (0..targets).map(target).collect(),
            ttl,
            urgency: Urgency::default(),
            ephemeral: false,
        }
    }

    #[test]
    fn a_submit_at_every_limit_passes_and_one_beyond_names_the_limit_of_the_schema() {
        let schema = include_str!("../../protocol/proto/chappe/v1/chappe.proto");
        let limits = Limits::default();
        let (bytes, targets) = (limits.envelope_bytes_max as usize, limits.targets_max);
        let (ttl, in_flight) = (limits.ttl_max, limits.submits_in_flight_max as usize);
        let ephemeral = |bytes| Submit { ephemeral: true, ..submit(bytes, 1, ttl) };
        let passing = limits.ephemeral_bytes_max as usize;
        assert_eq!(check_submit(&submit(bytes, targets, ttl), &limits, in_flight - 1), Ok(()));
        assert_eq!(check_submit(&ephemeral(passing), &limits, 0), Ok(()));
        let beyond = [
            (submit(bytes + 1, 1, ttl), 0, "envelope_bytes_max", false),
            (submit(1, targets + 1, ttl), 0, "targets_max", false),
            (submit(1, 1, Millis(ttl.0 + 1)), 0, "ttl_ms_max", false),
            (ephemeral(passing + 1), 0, "ephemeral_bytes_max", false),
            (submit(1, 1, ttl), in_flight, "submits_in_flight_max", true),
        ];
        for (submit, in_flight, name, retryable) in beyond {
            assert!(schema.contains(&format!(" {name} = ")), "the schema does not have {name}");
            let hit = check_submit(&submit, &limits, in_flight).unwrap_err();
            let error = limit_error(hit, Some(submit.submit_id));
            assert_eq!((&error.code[..], &error.limit_name[..]), ("limit", name));
            assert_eq!((error.retryable, error.retry_after_ms > 0), (retryable, retryable));
            assert_eq!((error.scope, error.submit_id), (ErrorScope::Submit, Some(submit.submit_id)));
            assert!(error.message.contains(name));
        }
    }

    #[test]
    fn the_limit_that_welcome_does_not_tell_is_in_the_document() {
        let document = include_str!("../../protocol/PROTOCOL.md");
        assert!(document.contains(&format!("`{EPHEMERALS}`")));
    }
}
