//! How long messages wait before this router reads them, without comparing two clocks.
//! **Invariant:** the bound is never too small: a message that is read now was sent after the beat that came back last.
//!
//! A router sends beats to itself, through the same subscription as its requests. NATS keeps the order of what it gives to one
//! connection, so whatever is read between two beats entered the pipe after the first of them did. A router that was paused
//! (SIGSTOP, a hypervisor, a stall) finds its last beat old when it goes on, and refuses what waited longer than it may,
//! until the first beat that it sends itself afterwards comes back. This covers the server's buffers, the kernel's, the
//! driver's queue and the router's own.

use chappe_protocol::time::{Millis, Time};

/// How often a router sends itself a beat.
pub(crate) const BEAT_EVERY: Millis = Millis(250);
/// A pipe that is no slower than this counts as empty: budgets are seconds, beats are a quarter of one.
const FRESH: Millis = Millis(1000);

/// The beats of one router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    /// When the newest beat that came back was sent.
    returned: Option<Time>,
    begun: Time,
}

impl Pulse {
    pub(crate) fn new(now: Time) -> Self {
        Self { returned: None, begun: now }
    }

    /// A beat that was sent at this time has come back.
    pub(crate) fn returned(&mut self, sent: Time) {
        self.returned = self.returned.max(Some(sent));
    }

    /// Whether a beat has come back that was sent at this time or later: what was sent to the router before it has been read.
    pub(crate) fn has_returned_since(&self, time: Time) -> bool {
        self.returned.is_some_and(|sent| sent >= time)
    }

    /// How long a message that is read now has waited, at most.
    pub(crate) fn wait_max(&self, now: Time) -> Millis {
        now - self.returned.unwrap_or(self.begun)
    }

    /// What is left of a budget that began when the message was sent; `None`: nothing may be.
    pub(crate) fn left(&self, budget: Millis, now: Time) -> Option<Millis> {
        let wait = self.wait_max(now);
        if wait <= FRESH {
            return Some(budget);
        }
        budget.0.checked_sub(wait.0).filter(|left| *left > 0).map(Millis)
    }
}

#[cfg(test)]
mod tests {
    use super::{Millis, Pulse, Time};

    #[test]
    fn a_paused_router_refuses_what_waited_until_a_new_beat_is_back() {
        let mut pulse = Pulse::new(Time(0));
        assert!(!pulse.has_returned_since(Time(0)));
        pulse.returned(Time(100));
        assert!(pulse.has_returned_since(Time(100)) && !pulse.has_returned_since(Time(101)));
        assert_eq!(pulse.left(Millis(50), Time(400)), Some(Millis(50)), "a small budget, an empty pipe");
        assert_eq!(pulse.left(Millis(50), Time(1100)), Some(Millis(50)));
        // Paused from 400 to 6400.
        assert_eq!(pulse.left(Millis(5000), Time(6400)), None);
        assert_eq!(pulse.left(Millis(10_000), Time(6400)), Some(Millis(3700)));
        pulse.returned(Time(350));
        assert_eq!(pulse.left(Millis(5000), Time(6400)), None, "a beat from before the pause proves nothing");
        pulse.returned(Time(6401));
        assert_eq!(pulse.left(Millis(5000), Time(6402)), Some(Millis(5000)));
        pulse.returned(Time(350));
        assert_eq!(pulse.wait_max(Time(6402)), Millis(1), "beats do not go back");
    }
}
