//! The scenario `wake`: devices that sleep, or fall silent with their connection open, are woken through a provider and come
//! back. **Invariant:** the provider is the harness's own strict fake of APNs; nobody else's is ever asked.

pub mod audit;
mod device;
mod provider;
mod run;

pub use audit::WakeAudit;
pub use provider::Provider;
pub use run::run;

use crate::scenario::{Scenario, Sleep};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Senders; they stay connected.
pub const SENDERS: u32 = 4;
/// Devices that may fall silent: each has a bad path of its own.
const SILENT_MAX: u32 = 200;

/// What is run: a scenario with devices that sleep, and where their provider is.
#[derive(Debug, Clone)]
pub struct Wake {
    /// Devices that sleep, each of a user of its own.
    devices: u32,
    /// Submits per second over all senders, each to one device.
    rate: u32,
    /// How long submits are sent.
    duration: Duration,
    /// Bytes of a payload.
    payload_bytes: usize,
    /// What is asked of them, and of the server.
    sleep: Sleep,
    /// Decides who is written to.
    seed: u64,
    /// For the report.
    whole: Scenario,
    /// Where the provider listens.
    provider_listen: SocketAddr,
    /// The settings of whoever asks the provider are written here.
    provider_settings: PathBuf,
}

/// One submit that is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Send {
    at: Duration,
    sender: u32,
    device: u32,
}

impl Wake {
    /// With the provider at this address, and the settings of whoever asks it in this file.
    pub fn new(scenario: &Scenario, provider_listen: SocketAddr, provider_settings: PathBuf) -> Self {
        Self {
            devices: scenario.users,
            rate: scenario.rate,
            duration: scenario.duration,
            payload_bytes: scenario.payload,
            sleep: scenario.wake.clone().unwrap_or_default(),
            seed: scenario.seed,
            whole: scenario.clone(),
            provider_listen,
            provider_settings,
        }
    }

    /// Whether this one falls silent; spread over all.
    fn is_silent(&self, device: u32) -> bool {
        let wanted = (self.devices * u32::from(self.sleep.silent_percent)).div_ceil(100).min(SILENT_MAX);
        wanted > 0 && device.is_multiple_of(self.devices.div_ceil(wanted).max(1))
    }

    /// Every submit of the run, by time.
    fn sends(&self) -> Vec<Send> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let millis = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let total = u64::from(self.rate).saturating_mul(millis) / 1000;
        let send = |number: u64| Send {
            at: Duration::from_nanos(number * 1_000_000_000 / u64::from(self.rate)),
            sender: random.random_range(0..SENDERS),
            device: random.random_range(0..self.devices),
        };
        (0..total.max(1)).map(send).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wake() -> Wake {
        let silent = Sleep { silent_percent: 5, ..Sleep::default() };
        let scenario = Scenario { rate: 50, wake: Some(silent), ..Scenario::default() };
        Wake::new(&scenario, SocketAddr::from(([127, 0, 0, 1], 0)), PathBuf::new())
    }

    #[test]
    fn one_seed_one_plan_and_everybody_is_written_to() {
        let sends = wake().sends();
        assert_eq!(sends, wake().sends());
        assert_eq!(sends.len(), 500);
        assert!(sends.is_sorted_by_key(|send| send.at));
        assert!(sends.iter().map(|send| send.device).max() > Some(90));
        assert_ne!(sends, Wake { seed: 2, ..wake() }.sends());
    }

    #[test]
    fn the_share_of_the_silent_is_kept_and_bounded() {
        let count = |silent_percent, devices| {
            let sleep = Sleep { silent_percent, ..Sleep::default() };
            let wake = Wake { devices, sleep, ..wake() };
            (0..devices).filter(|device| wake.is_silent(*device)).count()
        };
        assert_eq!((count(5, 100), count(0, 100), count(100, 100)), (5, 0, 100));
        assert!(count(100, 15_000) <= 200);
    }
}
