//! The options of the scenario `wake`, and its way from the command line to a report.

use super::duration;
use crate::wake::Wake;
use anyhow::{Result, ensure};
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Of the scenario wake")]
pub(super) struct WakeArgs {
    /// Of 100 devices, how many fall silent with their connection open instead of closing it (200 devices at most)
    #[arg(long, default_value_t = 2)]
    silent_percent: u8,
    /// From the acceptance of an envelope to the wake
    #[arg(long, default_value = "30s", value_parser = duration)]
    bound: Duration,
    /// How long it is watched at the end that nobody is woken any more; the first repeat comes after 30 s
    #[arg(long, default_value = "35s", value_parser = duration)]
    quiet: Duration,
    /// So long, in the middle, the provider answers 503
    #[arg(long, default_value = "0s", value_parser = duration)]
    provider_fails: Duration,
    /// Where the provider (a strict fake of APNs) listens; pushers must reach it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    provider_listen: SocketAddr,
    /// Write the settings of the pushers here; start them with it. A server behind -- gets it by itself
    #[arg(long, value_name = "FILE", default_value = "chappe-loadtest/push.toml")]
    provider_settings: PathBuf,
}

impl WakeArgs {
    pub(super) fn wake(&self, users: u32, rate: u32, duration: Duration, payload: usize, seed: u64) -> Wake {
        Wake {
            devices: users,
            rate,
            duration,
            payload_bytes: payload,
            silent_percent: self.silent_percent,
            bound: self.bound,
            quiet: self.quiet,
            provider_fails: self.provider_fails,
            provider_listen: self.provider_listen,
            provider_settings: self.provider_settings.clone(),
            seed,
        }
    }
}

/// The server's command, such that it asks our provider.
pub(super) fn with_settings(command: &[String], settings: &Path) -> Result<Vec<String>> {
    let own = command.iter().any(|word| word == "--config" || word.starts_with("--config="));
    ensure!(!own, "the server's command has a --config of its own; it would not hear of the provider");
    let variable = format!("CHAPPE_CONFIG={}", settings.display());
    Ok(["env".to_owned(), variable].into_iter().chain(command.iter().cloned()).collect())
}
