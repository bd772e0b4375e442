//! Logs and the panic hook. **Invariant:** no user, device, token or payload in any of them.

use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Logs: where they stop and how they look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Directives of `tracing-subscriber`'s `EnvFilter`, such as `info` or `chappe_gateway=debug,info`.
    pub level: String,
    /// Human or JSON.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Human }
    }
}

/// Starts logging to standard error and makes a panic one log line with its place.
/// Errors: the level is no filter; or logging was started before.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level)
        .map_err(|error| format!("log.level: {error}; try \"info\" or \"chappe_gateway=debug,info\""))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match config.format {
        LogFormat::Human => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("logging: {error}"))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // The message is left out on purpose: it may quote what a peer sent.
        tracing::error!(place, "panicked");
    }));
    Ok(())
}
