//! The sends of a run, one after the other. **Invariant:** no list of them is ever made: a run of days takes no more memory
//! than one of seconds.

use super::Scenario;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// One submit that is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// When, from the start of the load.
    pub at: Duration,
    /// Who.
    pub sender: u32,
    /// To whom: distinct, never the sender.
    pub targets: Vec<u32>,
}

/// Every submit of the run, by time.
#[derive(Debug)]
pub struct Sends<'a> {
    scenario: &'a Scenario,
    random: StdRng,
    number: u64,
}

impl Scenario {
    /// From the first.
    pub fn sends(&self) -> Sends<'_> {
        Sends { scenario: self, random: StdRng::seed_from_u64(self.seed), number: 0 }
    }

    /// How many there will be.
    pub fn sends_total(&self) -> u64 {
        let (from, to) = (f64::from(self.rate), f64::from(self.rate_end.unwrap_or(self.rate)));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far below 2^53")]
        let total = (f64::midpoint(from, to) * self.duration.as_secs_f64()) as u64;
        total.max(1)
    }

    /// When the send of this number is due: where the area below the rate is `number`.
    fn due(&self, number: u64) -> Duration {
        let Some(end) = self.rate_end.filter(|end| *end != self.rate) else {
            return Duration::from_nanos(
                u64::try_from(u128::from(number) * 1_000_000_000 / u128::from(self.rate)).unwrap_or(u64::MAX),
            );
        };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let number = number as f64;
        let (rate, seconds) = (f64::from(self.rate), self.duration.as_secs_f64());
        let slope = (f64::from(end) - rate) / seconds;
        // rate·t + slope·t²/2 = number
        let root = (rate * rate + 2.0 * slope * number).max(0.0).sqrt();
        Duration::from_secs_f64(((root - rate) / slope).clamp(0.0, seconds))
    }
}

impl Iterator for Sends<'_> {
    type Item = Send;

    fn next(&mut self) -> Option<Send> {
        if self.number >= self.scenario.sends_total() {
            return None;
        }
        let at = self.scenario.due(self.number);
        let number = self.number;
        self.number += 1;
        let (users, traffic) = (self.scenario.users, &self.scenario.traffic);
        if traffic.in_turn {
            let place = |number: u64| u32::try_from(number % u64::from(users.max(1))).unwrap_or_default();
            let (sender, next) = (place(number), place(number + 1));
            let targets = if next == sender { Vec::new() } else { vec![next] };
            return Some(Send { at, sender, targets });
        }
        let all = |some: u32| if some == 0 { users } else { some };
        let (senders, receivers) = (all(traffic.senders), all(traffic.receivers));
        let sender = self.random.random_range(0..senders);
        let many = self.random.random_range(0..100) < traffic.fan_out_percent;
        // Those that can be written to: the last ones, without the sender.
        let others = receivers - u32::from(sender >= users - receivers);
        let wanted = match () {
            () if traffic.group => others,
            () if many => traffic.fan_out.min(others),
            () => 1.min(others),
        };
        let mut targets: Vec<u32> = Vec::new();
        if wanted * 2 > others {
            targets.extend((users - receivers..users).filter(|user| *user != sender));
            while targets.len() > wanted as usize {
                let index = self.random.random_range(0..targets.len());
                targets.swap_remove(index);
            }
        }
        while targets.len() < wanted as usize {
            let target = users - 1 - self.random.random_range(0..receivers);
            if target != sender && !targets.contains(&target) {
                targets.push(target);
            }
        }
        Some(Send { at, sender, targets })
    }
}
