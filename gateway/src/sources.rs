//! Handshakes by where they come from. **Invariant:** beyond its rate a source is refused before any work, and an address that was
//! not proven is never refused for what others did in its name; so many sources are remembered and no more.

use crate::limits::Bucket;
use chappe_protocol::time::{Millis, Time};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Sources that are remembered at most, some 4 MB; what exceeds them is bounded by the gateway's own rate alone.
const SOURCES_MAX: usize = 65_536;
/// Full buckets are forgotten at most so often, once there are too many.
const SWEEP_EVERY: Millis = Millis::from_secs(1);

/// One address of IPv4, or the network of 64 bits that one subscriber of IPv6 has (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Four(u32),
    Six(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::Four(address.to_bits()),
            IpAddr::V6(address) => Self::Six(u64::try_from(address.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

/// What to do about a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knock {
    /// It may go on.
    Within,
    /// It may, once the address is proven.
    Prove,
    /// Too many came from there.
    Beyond,
}

/// The buckets.
pub(crate) struct Sources {
    per_second: u32,
    room: usize,
    known: Mutex<Known>,
}

struct Known {
    buckets: HashMap<Source, Bucket>,
    swept_at: Time,
}

impl Sources {
    /// So many handshakes a second of each source, and twice as many at once; 0: no bound.
    pub(crate) fn new(now: Time, per_second: u32) -> Self {
        Self::with_room(now, per_second, SOURCES_MAX)
    }

    fn with_room(now: Time, per_second: u32, room: usize) -> Self {
        let known = Known { buckets: HashMap::new(), swept_at: now };
        Self { per_second, room, known: Mutex::new(known) }
    }

    /// A handshake of a source whose address stands, as of every TCP connection.
    pub(crate) fn knock(&self, now: Time, address: IpAddr) -> Knock {
        self.take(now, address, true)
    }

    /// A first packet that may bear anybody's address: it takes of the source's first half only, so that the source itself is at
    /// worst asked to prove its address.
    pub(crate) fn knock_unproven(&self, now: Time, address: IpAddr) -> Knock {
        self.take(now, address, false)
    }

    fn take(&self, now: Time, address: IpAddr, proven: bool) -> Knock {
        if self.per_second == 0 {
            return Knock::Within;
        }
        let (rate, burst) = (self.per_second, self.per_second.saturating_mul(2));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let source = Source::from(address);
        if known.buckets.len() >= self.room && !known.buckets.contains_key(&source) {
            if now - known.swept_at >= SWEEP_EVERY {
                known.swept_at = now;
                known.buckets.retain(|_, bucket| bucket.level(now, rate, burst) < burst);
            }
            if known.buckets.len() >= self.room {
                return Knock::Within;
            }
        }
        let bucket = known.buckets.entry(source).or_insert_with(|| Bucket::full(now, burst));
        if !proven && bucket.level(now, rate, burst) <= burst / 2 {
            return Knock::Prove;
        }
        match bucket.take(now, rate, burst) {
            Ok(()) => Knock::Within,
            Err(_) => Knock::Beyond,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn within(sources: &Sources, now: u64, from: &str, tries: usize) -> usize {
        (0..tries).filter(|_| sources.knock(Time(now), address(from)) == Knock::Within).count()
    }

    #[test]
    fn a_source_gets_its_burst_and_its_rate_whatever_others_do() {
        let sources = Sources::new(Time(0), 10);
        assert_eq!(within(&sources, 0, "192.0.2.1", 100), 20);
        assert_eq!(within(&sources, 0, "192.0.2.2", 5), 5);
        assert_eq!(within(&sources, 500, "192.0.2.1", 100), 5);
        assert_eq!(within(&sources, 500, "::ffff:192.0.2.1", 100), 0, "the same host");
        assert_eq!(
            within(&sources, 0, "2001:db8:0:1::1", 15) + within(&sources, 0, "2001:db8:0:1::2", 15),
            20
        );
        assert_eq!(within(&sources, 0, "2001:db8:0:2::1", 15), 15, "the next subscriber");
        let free = Sources::new(Time(0), 0);
        assert_eq!(within(&free, 0, "192.0.2.1", 10_000), 10_000);
    }

    #[test]
    fn a_borrowed_address_does_not_lock_its_owner_out() {
        let sources = Sources::new(Time(0), 10);
        let spoofed = || sources.knock_unproven(Time(0), address("192.0.2.1"));
        let taken = (0..1_000).filter(|_| spoofed() == Knock::Within).count();
        assert_eq!((taken, spoofed()), (10, Knock::Prove));
        assert_eq!(within(&sources, 0, "192.0.2.1", 100), 10, "the half that is the owner's");
    }

    #[test]
    fn memory_is_bounded_and_who_was_quiet_is_forgotten_first() {
        let sources = Sources::with_room(Time(0), 1, 100);
        for n in 0..100 {
            assert_eq!(within(&sources, 0, &format!("192.0.2.{n}"), 9), 2);
        }
        assert_eq!(within(&sources, 10, "198.51.100.1", 9), 9, "no room: the gateway's own rate bounds it");
        assert_eq!(sources.known.lock().unwrap().buckets.len(), 100);
        assert_eq!(within(&sources, 1_999, "198.51.100.1", 9), 9, "all are still paying back");
        assert_eq!(within(&sources, 3_000, "198.51.100.1", 9), 2, "those who have are forgotten");
        assert_eq!(sources.known.lock().unwrap().buckets.len(), 1);
    }
}
