//! What a run does, as data. **Invariant:** the same seed gives the same sends to the same people at the same times.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use std::time::Duration;

/// The scenario `chat`: people write to each other, lose their connections, come back.
#[derive(Debug, Clone, Serialize)]
pub struct Chat {
    /// Users, each with one device.
    pub users: u32,
    /// Submits per second over all users, at intended times that no slow answer moves.
    pub rate: u32,
    /// How long submits are sent.
    pub duration: Duration,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// Of 100 submits, how many go to several people.
    pub fan_out_percent: u8,
    /// To how many.
    pub fan_out: u32,
    /// Of 100 users, how many lose their connection per second.
    pub disconnects_percent: f64,
    /// Decides everything that is random.
    pub seed: u64,
}

impl Default for Chat {
    fn default() -> Self {
        Self {
            users: 100,
            rate: 200,
            duration: Duration::from_secs(10),
            payload_bytes: 256,
            fan_out_percent: 5,
            fan_out: 5,
            disconnects_percent: 1.0,
            seed: 1,
        }
    }
}

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

impl Chat {
    /// Refuses what cannot be run.
    pub fn check(&self) -> Result<(), String> {
        match () {
            () if self.users < 2 => Err("--users: at least 2 are needed to talk".into()),
            () if self.users > 15_000 => {
                Err("--users: one process holds at most 15,000 sessions; run several".into())
            }
            () if self.rate == 0 => Err("--rate: at least 1 submit per second".into()),
            () if self.duration.is_zero() => Err("--duration: must not be zero".into()),
            () if self.payload_bytes > 64 * 1024 => Err("--payload: at most 65536 bytes".into()),
            () if self.fan_out_percent > 100 => Err("--fan-out-percent: at most 100".into()),
            () => Ok(()),
        }
    }

    /// Every submit of the run, by time.
    pub fn sends(&self) -> Vec<Send> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let total =
            u64::from(self.rate) * u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX) / 1000;
        (0..total.max(1))
            .map(|number| {
                let at = Duration::from_nanos(number * 1_000_000_000 / u64::from(self.rate));
                let sender = random.random_range(0..self.users);
                let many = random.random_range(0..100) < self.fan_out_percent;
                let wanted = if many { self.fan_out.clamp(1, self.users - 1) } else { 1 };
                let mut targets = Vec::new();
                while targets.len() < wanted as usize {
                    let target = random.random_range(0..self.users);
                    if target != sender && !targets.contains(&target) {
                        targets.push(target);
                    }
                }
                Send { at, sender, targets }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_one_plan_and_nobody_writes_to_himself() {
        let chat = Chat { users: 5, fan_out_percent: 50, fan_out: 9, ..Chat::default() };
        let sends = chat.sends();
        assert_eq!(sends, chat.sends());
        assert_eq!(sends.len(), 2000);
        assert!(sends.iter().all(|send| !send.targets.contains(&send.sender)));
        assert!(sends.iter().any(|send| send.targets.len() == 4));
        assert!(sends.is_sorted_by_key(|send| send.at));
        assert_ne!(sends, Chat { seed: 2, ..chat }.sends());
    }

    #[test]
    fn what_cannot_run_is_refused() {
        assert!(Chat { users: 1, ..Chat::default() }.check().is_err());
        assert!(Chat { rate: 0, ..Chat::default() }.check().is_err());
        Chat::default().check().unwrap();
    }
}
