//! Logs and the panic hook. **Invariant:** no user, device, token or payload in any of them.

use crate::alarms::Hearing;
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// What strangers' packets make these libraries say at `warn` would let anybody fill the logs: only errors, unless the level
/// names them or is `off`.
const DRIVEN_BY_STRANGERS: &str =
    "quinn=error,quinn_proto=error,quinn_udp=error,web_transport_quinn=error,web_transport_proto=error";

fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    if level.trim().eq_ignore_ascii_case("off") {
        return EnvFilter::try_new(level);
    }
    EnvFilter::try_new(format!("{DRIVEN_BY_STRANGERS},{level}"))
}

/// Starts logging to standard error and makes a panic one log line with its place.
/// Errors: the level is no filter; or logging was started before.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let filter = filter(&config.level)
        .map_err(|error| format!("log.level: {error}; try \"info\" or \"chappe_gateway=debug,info\""))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let subscriber = tracing_subscriber::registry().with(filter).with(Hearing::default());
    let started = match config.format {
        LogFormat::Human => subscriber.with(lines.with_target(false)).try_init(),
        LogFormat::Json => subscriber.with(lines.json().flatten_event(true)).try_init(),
    };
    started.map_err(|error| format!("logging: {error}"))?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // The message is left out on purpose: it may quote what a peer sent.
        tracing::error!(place, "panicked");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(level).unwrap())
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "quinn_proto::connection", "illegal packet");
            tracing::warn!(target: "web_transport_quinn::session", "unknown capsule");
            tracing::error!(target: "quinn_udp", "no socket");
            tracing::debug!(target: "chappe_gateway", "ours");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn strangers_do_not_fill_the_logs() {
        for level in ["warn", "debug", "trace", "chappe_gateway=debug,info"] {
            let said = logged(level);
            assert!(!said.contains("packet") && !said.contains("capsule"), "{level}: {said}");
            assert!(
                said.contains("no socket") && said.contains("ours") == (level != "warn"),
                "{level}: {said}"
            );
        }
        let asked = logged("warn,quinn_proto=debug");
        assert!(asked.contains("illegal packet") && !asked.contains("capsule"), "{asked}");
        assert_eq!(logged("off"), "");
        assert!(filter("nonsense=loud").is_err());
    }
}
