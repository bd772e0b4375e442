//! Settings of the process `pusher`, and those of wakes that `chappe serve` shares. **Invariant:** whatever is set is read; what
//! cannot work is refused before a port is bound.

use crate::config::ProvidersConfig;
use crate::outbox::OutboxConfig;
use crate::schedule::Intervals;
use crate::waker::WakerConfig;
use chappe_node::config::{ConfigError, between};
use chappe_node::process::Settings;
use chappe_node::telemetry::LogConfig;
use chappe_protocol::time::Millis;
use chappe_router::settings::{CqlSettings, NatsSettings, PushKeySettings, RedisSettings, WakeSettings};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Everything that `pusher` can be told. File: TOML with these names; environment: `CHAPPE_ADMIN`, `CHAPPE_NATS__URLS`, ….
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PusherSettings {
    /// The cluster's name, 1 to 32 characters of a-z, 0-9 and -; the same in all its processes.
    pub cluster: String,
    /// The admin port: health, readiness, metrics, operators' calls. Never for clients.
    pub admin: SocketAddr,
    /// File with the secret that operators' calls show; empty: there are no such calls.
    pub admin_token: PathBuf,
    /// The bus.
    pub nats: NatsSettings,
    /// Presence, and who sweeps what.
    pub redis: RedisSettings,
    /// The slot log.
    pub cql: CqlSettings,
    /// The stream of hints; the same as the routers'.
    pub wakes: WakeSettings,
    /// Opens push targets; the same as the gateways'.
    pub push: PushKeySettings,
    /// Which apps are woken through whom.
    pub providers: ProvidersConfig,
    /// How often and how many.
    pub limits: WakeLimits,
    /// How the process ends.
    pub drain: PusherDrain,
    /// Logs.
    pub log: LogConfig,
}

/// How often and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WakeLimits {
    /// Between a wake of a device and one for a call, milliseconds.
    pub call_interval_ms: u32,
    /// Between a wake of a device and one for a message, milliseconds.
    pub message_interval_ms: u32,
    /// Between a wake of a device and one that the person does not notice, milliseconds; iOS lets two or three an hour pass.
    pub background_interval_ms: u32,
    /// Wakes a second of one app at one provider.
    pub app_per_second: u32,
    /// Wakes in flight of one app at one provider.
    pub app_in_flight_max: u32,
    /// Wakes of one app at one provider that wait; what is beyond it waits in the store, a minute or two.
    pub app_queue_max: u32,
    /// Wakes of all apps that wait; some 700 bytes each.
    pub queue_max: u32,
}

/// The end of a pusher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PusherDrain {
    /// Wakes in flight end within this, milliseconds; each has 20 s at most.
    pub budget_ms: u32,
}

impl Default for PusherSettings {
    fn default() -> Self {
        Self {
            cluster: "chappe".into(),
            admin: SocketAddr::from(([127, 0, 0, 1], 7443)),
            admin_token: PathBuf::new(),
            nats: NatsSettings::default(),
            redis: RedisSettings::default(),
            cql: CqlSettings::default(),
            wakes: WakeSettings::default(),
            push: PushKeySettings::default(),
            providers: ProvidersConfig::default(),
            limits: WakeLimits::default(),
            drain: PusherDrain::default(),
            log: LogConfig::default(),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Default for WakeLimits {
    fn default() -> Self {
        let (outbox, intervals) = (OutboxConfig::default(), Intervals::default());
        let ms = |span: Millis| u32::try_from(span.0).unwrap_or(u32::MAX);
        Self {
            call_interval_ms: ms(intervals.call),
            message_interval_ms: ms(intervals.message),
            background_interval_ms: ms(intervals.background),
            app_per_second: outbox.per_second,
            app_in_flight_max: count(outbox.in_flight_per_app_max),
            app_queue_max: count(outbox.per_app_max),
            queue_max: count(outbox.total_max),
        }
    }
}

impl Default for PusherDrain {
    fn default() -> Self {
        Self { budget_ms: 25_000 }
    }
}

impl WakeLimits {
    /// Refuses what cannot work; `section` is what the settings call these.
    pub fn check(&self, section: &str) -> Result<(), ConfigError> {
        let hour = 3_600_000;
        let within = |name: &str, value: u32, least: u32, most: u32| {
            between(&format!("{section}.{name}"), value, least, most)
        };
        within("call_interval_ms", self.call_interval_ms, 0, hour)?;
        within("message_interval_ms", self.message_interval_ms, 1_000, hour)?;
        within("background_interval_ms", self.background_interval_ms, 1_000, 24 * hour)?;
        within("app_per_second", self.app_per_second, 1, 1_000_000)?;
        within("app_in_flight_max", self.app_in_flight_max, 1, 100_000)?;
        within("app_queue_max", self.app_queue_max, 1, 10_000_000)?;
        within("queue_max", self.queue_max, 1, 10_000_000)
    }

    /// The bounds of the core.
    pub fn waker(&self) -> WakerConfig {
        let ms = |span: u32| Millis(u64::from(span));
        WakerConfig {
            outbox: OutboxConfig {
                per_app_max: size(self.app_queue_max),
                total_max: size(self.queue_max),
                in_flight_per_app_max: size(self.app_in_flight_max),
                per_second: self.app_per_second,
                burst: self.app_per_second,
                ..OutboxConfig::default()
            },
            intervals: Intervals {
                call: ms(self.call_interval_ms),
                message: ms(self.message_interval_ms),
                background: ms(self.background_interval_ms),
            },
            ..WakerConfig::default()
        }
    }
}

impl Settings for PusherSettings {
    fn check(&self) -> Result<(), ConfigError> {
        self.nats.check()?;
        self.cql.check()?;
        self.wakes.check()?;
        self.limits.check("limits")?;
        self.push.check()?;
        if !self.push.is_set() {
            return Err(ConfigError::value("push.key", "name the file with the gateways' push key"));
        }
        between("drain.budget_ms", self.drain.budget_ms, 100, 3_600_000)
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }
}
