//! Leaves a provider alone that does not work. **Invariant:** while it is open, one request at a time finds out whether the
//! provider works again, and only the outcome of what was admitted under the present state changes that state.

use chappe_protocol::time::{Millis, Time};

/// While one tries, others may ask again after this.
pub(crate) const ASK_AGAIN: Millis = Millis::from_secs(2);

/// When a [`Breaker`] opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it.
    pub failures: u32,
    /// It stays open so long the first time, twice as long each time after.
    pub open_first: Millis,
    /// And at most so long; up to a quarter is added to either (jitter). Short: who is woken through a provider that is back
    /// is woken within the bound.
    pub open_max: Millis,
    /// A probe that has told nothing by then is taken for lost, and the next is let through.
    pub probe: Millis,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 5,
            open_first: Millis::from_secs(5),
            open_max: Millis::from_secs(12),
            probe: Millis::from_secs(30),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Time },
    HalfOpen { since: Time },
}

/// The right to try, to be shown with the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Ticket {
    epoch: u64,
}

/// Pure: time and randomness are handed in.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    /// Changes with the state.
    epoch: u64,
    /// How often it opened since it was last closed.
    opened: u32,
}

impl Breaker {
    /// Closed.
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: State::Closed { failures: 0 }, epoch: 0, opened: 0 }
    }

    /// Whether a request may go; if not, how long to wait.
    pub fn admit(&mut self, now: Time) -> Result<Ticket, Millis> {
        match self.state {
            State::Closed { .. } => {}
            State::Open { until } if now < until => return Err(until - now),
            State::HalfOpen { since } if now < since + self.config.probe => {
                return Err((since + self.config.probe - now).min(ASK_AGAIN));
            }
            State::Open { .. } | State::HalfOpen { .. } => self.turn(State::HalfOpen { since: now }),
        }
        Ok(Ticket { epoch: self.epoch })
    }

    /// What the ticket was for went well: the provider works.
    pub fn succeeded(&mut self, ticket: Ticket) {
        if ticket.epoch != self.epoch {
            return;
        }
        match self.state {
            State::Closed { .. } => self.state = State::Closed { failures: 0 },
            State::HalfOpen { .. } => {
                self.opened = 0;
                self.turn(State::Closed { failures: 0 });
            }
            State::Open { .. } => {}
        }
    }

    /// What the ticket was for failed by the provider's fault. `random` is for the jitter.
    pub fn failed(&mut self, ticket: Ticket, now: Time, random: u64) {
        if ticket.epoch != self.epoch {
            return;
        }
        match self.state {
            State::Closed { failures } if failures + 1 < self.config.failures => {
                self.state = State::Closed { failures: failures + 1 };
            }
            State::Closed { .. } | State::HalfOpen { .. } => {
                let span = self
                    .config
                    .open_first
                    .0
                    .saturating_mul(1 << self.opened.min(16))
                    .min(self.config.open_max.0);
                self.opened += 1;
                self.turn(State::Open { until: now + Millis(span + random % (span / 4 + 1)) });
            }
            State::Open { .. } => {}
        }
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(breaker: &mut Breaker, now: Time) {
        for _ in 0..5 {
            let ticket = breaker.admit(now).unwrap();
            breaker.failed(ticket, now, 0);
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_does_not() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        for round in 0..20 {
            let ticket = breaker.admit(Time(round)).unwrap();
            if round % 5 == 4 { breaker.succeeded(ticket) } else { breaker.failed(ticket, Time(round), 0) }
        }
        open(&mut breaker, Time(100));
        assert_eq!(breaker.admit(Time(100)), Err(Millis(5000)));
        assert_eq!(breaker.admit(Time(5099)), Err(Millis(1)));
    }

    #[test]
    fn one_probe_at_a_time_finds_out_and_closes_it() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        open(&mut breaker, Time(0));
        let probe = breaker.admit(Time(5000)).unwrap();
        assert_eq!(breaker.admit(Time(5000)), Err(Millis(2000)), "the others ask again soon");
        assert_eq!(breaker.admit(Time(34_500)), Err(Millis(500)));
        breaker.succeeded(probe);
        assert!(breaker.admit(Time(5001)).is_ok() && breaker.admit(Time(5001)).is_ok());
    }

    #[test]
    fn a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_bound_and_jitter_only_adds() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        open(&mut breaker, Time(0));
        let mut now = Time(5000);
        for span in [10, 12, 12, 12] {
            let probe = breaker.admit(now).unwrap();
            breaker.failed(probe, now, u64::MAX);
            let Err(wait) = breaker.admit(now) else { panic!("closed") };
            assert!((span * 1000..=span * 1250).contains(&wait.0), "{wait:?} for {span} s");
            now = now + wait;
        }
        let probe = breaker.admit(now).unwrap();
        breaker.succeeded(probe);
        open(&mut breaker, now);
        assert_eq!(breaker.admit(now), Err(Millis(5000)), "after a success it begins anew");
    }

    #[test]
    fn what_was_admitted_before_says_nothing_about_the_state_now() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        let old = breaker.admit(Time(0)).unwrap();
        open(&mut breaker, Time(0));
        breaker.succeeded(old);
        assert!(breaker.admit(Time(1)).is_err(), "a straggler does not close it");
        let probe = breaker.admit(Time(5000)).unwrap();
        breaker.failed(old, Time(5000), 0);
        breaker.succeeded(probe);
        assert!(breaker.admit(Time(5001)).is_ok(), "nor reopen it");
    }

    #[test]
    fn a_probe_that_never_ends_is_followed_by_another() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        open(&mut breaker, Time(0));
        let lost = breaker.admit(Time(5000)).unwrap();
        let next = breaker.admit(Time(35_000)).unwrap();
        breaker.failed(lost, Time(35_001), 0);
        breaker.succeeded(next);
        assert!(breaker.admit(Time(35_002)).is_ok());
    }
}
