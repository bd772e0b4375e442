//! The scenario `wake`: devices that sleep, or fall silent with their connection open, are woken through a provider and come
//! back. **Invariant:** the provider is the harness's own strict fake of APNs; nobody else's is ever asked.

pub mod audit;
mod device;
mod provider;
mod report;
mod run;

pub use provider::Provider;
pub use report::WakeReport;
pub use run::run;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Senders; they stay connected.
pub const SENDERS: u32 = 4;
/// Devices that may fall silent: each has a bad path of its own.
const SILENT_MAX: u32 = 200;

/// The scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Wake {
    /// Devices that sleep, each of a user of its own.
    pub devices: u32,
    /// Submits per second over all senders, each to one device.
    pub rate: u32,
    /// How long submits are sent.
    pub duration: Duration,
    /// Bytes of a payload.
    pub payload_bytes: usize,
    /// Of 100 devices, how many fall silent instead of closing their session.
    pub silent_percent: u8,
    /// From the acceptance to the wake.
    pub bound: Duration,
    /// How long it is watched at the end that nobody is woken any more.
    pub quiet: Duration,
    /// How long the provider answers 503 in the middle of the run.
    pub provider_fails: Duration,
    /// Where the provider listens.
    #[serde(skip)]
    pub provider_listen: SocketAddr,
    /// The settings of whoever asks the provider are written here.
    #[serde(skip)]
    pub provider_settings: PathBuf,
    /// Decides who is written to.
    pub seed: u64,
}

/// One submit that is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Send {
    at: Duration,
    sender: u32,
    device: u32,
}

impl Wake {
    /// Refuses what cannot be run.
    pub fn check(&self) -> Result<(), String> {
        match () {
            () if self.devices == 0 => Err("--users: at least 1 device that sleeps".into()),
            () if self.devices > 15_000 => {
                Err("--users: one process holds at most 15,000 sessions; run several".into())
            }
            () if self.rate == 0 => Err("--rate: at least 1 submit per second".into()),
            () if self.duration.is_zero() => Err("--duration: must not be zero".into()),
            () if self.payload_bytes > 64 * 1024 => Err("--payload: at most 65536 bytes".into()),
            () if self.silent_percent > 100 => Err("--silent-percent: at most 100".into()),
            () if self.bound.is_zero() => Err("--bound: must not be zero".into()),
            () if self.provider_fails >= self.duration && !self.provider_fails.is_zero() => {
                Err("--provider-fails: shorter than --duration".into())
            }
            () => Ok(()),
        }
    }

    /// Whether this one falls silent; spread over all.
    fn is_silent(&self, device: u32) -> bool {
        let wanted = (self.devices * u32::from(self.silent_percent)).div_ceil(100).min(SILENT_MAX);
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
        Wake {
            devices: 100,
            rate: 50,
            duration: Duration::from_secs(10),
            payload_bytes: 256,
            silent_percent: 5,
            bound: Duration::from_secs(30),
            quiet: Duration::from_secs(35),
            provider_fails: Duration::ZERO,
            provider_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            provider_settings: PathBuf::new(),
            seed: 1,
        }
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
        let count = |wake: Wake| (0..wake.devices).filter(|device| wake.is_silent(*device)).count();
        assert_eq!(count(wake()), 5);
        assert_eq!(count(Wake { silent_percent: 0, ..wake() }), 0);
        assert_eq!(count(Wake { silent_percent: 100, ..wake() }), 100);
        assert!(count(Wake { silent_percent: 100, devices: 15_000, ..wake() }) <= 200);
    }

    #[test]
    fn what_cannot_run_is_refused() {
        wake().check().unwrap();
        assert!(Wake { devices: 0, ..wake() }.check().is_err());
        assert!(Wake { rate: 0, ..wake() }.check().is_err());
        assert!(Wake { provider_fails: Duration::from_secs(10), ..wake() }.check().is_err());
    }
}
