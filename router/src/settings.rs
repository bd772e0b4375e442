//! Settings of a router's work and of the cluster's parts, as every process that uses them reads them.
//! **Invariant:** whatever is set is read; what cannot work is refused before a port is bound.

mod push;

use crate::RouterConfig;
use crate::nats::{BusRole, Credentials, NatsConfig, WakeConfig, WakeJobsConfig, sync};
use crate::redis::RedisConfig;
use chappe_node::config::{ConfigError, between, read_file, read_secret};
use chappe_node::process::Settings;
use chappe_node::spans::TracesConfig;
use chappe_node::telemetry::LogConfig;
use chappe_node::tls::client_config;
use chappe_protocol::time::Millis;
use chappe_storage::scylla::{Credentials as CqlCredentials, ScyllaConfig};
use chappe_storage::slotlog;
pub use push::PushKeySettings;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Everything that `router` can be told. File: TOML with these names; environment: `CHAPPE_ADMIN`, `CHAPPE_NATS__URLS`, ….
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterSettings {
    /// The cluster's name, 1 to 32 characters of a-z, 0-9 and -; the same in all its processes.
    pub cluster: String,
    /// The admin port: health, readiness, metrics, operators' calls. Never for clients.
    pub admin: SocketAddr,
    /// File with the secret that operators' calls show; empty: there are no such calls.
    pub admin_token: PathBuf,
    /// The bus.
    pub nats: NatsSettings,
    /// Presence.
    pub redis: RedisSettings,
    /// The slot log.
    pub cql: CqlSettings,
    /// Hints to whoever wakes devices, on JetStream.
    pub wakes: WakeSettings,
    /// What an entry may be.
    pub limits: EntryLimits,
    /// What a mailbox may hold.
    pub quota: QuotaConfig,
    /// How the process ends.
    pub drain: RouterDrain,
    /// Logs.
    pub log: LogConfig,
    /// Spans of some envelopes, for a collector.
    pub traces: TracesConfig,
}

/// The bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// `nats://host:port` of one server or more.
    pub urls: Vec<String>,
    /// File with the seed of this role's NKey; empty: none. At most one of the three.
    pub nkey_seed: PathBuf,
    /// File with a token; empty: none.
    pub token: PathBuf,
    /// File with `user:password`; empty: none.
    pub user_password: PathBuf,
    /// PEM file of the authority that signed the servers' certificates; empty: no TLS.
    pub authority: PathBuf,
}

/// Presence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisSettings {
    /// `redis://host:port/db`, or `rediss://…` with TLS.
    pub url: String,
    /// User; empty: Redis's default one.
    pub user: String,
    /// File with the password; empty: none.
    pub password: PathBuf,
    /// PEM file of the authority that signed Redis's certificate; empty: the system's.
    pub authority: PathBuf,
}

/// The slot log in ScyllaDB, or another database that speaks CQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CqlSettings {
    /// `cql://host[:port][,host…]/keyspace`.
    pub url: String,
    /// Role; empty: the database asks for none.
    pub user: String,
    /// File with its password.
    pub password: PathBuf,
    /// PEM file of the authority that signed the nodes' certificates; empty: no TLS.
    pub authority: PathBuf,
    /// The data centre whose quorum counts; empty: that of the first node reached.
    pub datacenter: String,
    /// A statement that takes longer is given up, milliseconds.
    pub timeout_ms: u32,
    /// Statements under way at once.
    pub in_flight_max: u32,
}

/// Wake hints. They may be lost: what must be woken stands in the slot log's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WakeSettings {
    /// Whether they are published at all.
    pub publish: bool,
    /// Copies of the stream, 1 to 5: as many NATS servers with JetStream are needed.
    pub replicas: u32,
    /// Bytes of the stream; the oldest hints go first, and all after a minute. Some 130 bytes are one hint.
    pub stream_bytes_max: u32,
    /// `http://host:port` of each NATS server's monitoring port, to tell whether JetStream syncs before it answers; none: not
    /// checked.
    pub monitors: Vec<String>,
}

/// What an entry may be; the same as the gateways' `limits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntryLimits {
    /// Payload bytes of one envelope.
    pub envelope_bytes_max: u32,
    /// Targets of one submit.
    pub targets_max: u32,
    /// Time to live of an envelope, seconds.
    pub ttl_seconds_max: u32,
}

/// The end of a router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterDrain {
    /// What is under way ends within this, milliseconds.
    pub budget_ms: u32,
}

/// What a mailbox may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// Slots that are not trimmed yet.
    pub slots_max: u32,
    /// Their payload bytes.
    pub bytes_max: u64,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self { slots_max: 100_000, bytes_max: 1 << 30 }
    }
}

impl QuotaConfig {
    /// Refuses what is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        between("quota.slots_max", self.slots_max, 1, u32::MAX)
    }

    /// The settings of the slot log.
    pub fn log(&self) -> slotlog::LogConfig {
        slotlog::LogConfig {
            slots_max: u64::from(self.slots_max),
            bytes_max: self.bytes_max,
            ..slotlog::LogConfig::default()
        }
    }
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            cluster: "chappe".into(),
            admin: SocketAddr::from(([127, 0, 0, 1], 7442)),
            admin_token: PathBuf::new(),
            nats: NatsSettings::default(),
            redis: RedisSettings::default(),
            cql: CqlSettings::default(),
            wakes: WakeSettings::default(),
            limits: EntryLimits::default(),
            quota: QuotaConfig::default(),
            drain: RouterDrain::default(),
            log: LogConfig::default(),
            traces: TracesConfig::default(),
        }
    }
}

impl Default for NatsSettings {
    fn default() -> Self {
        let empty = PathBuf::new;
        Self {
            urls: vec!["nats://127.0.0.1:4222".into()],
            nkey_seed: empty(),
            token: empty(),
            user_password: empty(),
            authority: empty(),
        }
    }
}

impl Default for RedisSettings {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            user: String::new(),
            password: PathBuf::new(),
            authority: PathBuf::new(),
        }
    }
}

impl Default for CqlSettings {
    fn default() -> Self {
        Self {
            url: "cql://127.0.0.1:9042/chappe".into(),
            user: String::new(),
            password: PathBuf::new(),
            authority: PathBuf::new(),
            datacenter: String::new(),
            timeout_ms: 3_000,
            in_flight_max: 1_024,
        }
    }
}

impl Default for WakeSettings {
    fn default() -> Self {
        Self { publish: true, replicas: 1, stream_bytes_max: 64 * 1024 * 1024, monitors: Vec::new() }
    }
}

impl WakeSettings {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        between("wakes.replicas", self.replicas, 1, 5)?;
        between("wakes.stream_bytes_max", self.stream_bytes_max, 64 * 1024, u32::MAX)?;
        match self.monitors.iter().find(|monitor| sync::host(monitor).is_none()) {
            None => Ok(()),
            Some(bad) => Err(ConfigError::value("wakes.monitors", format!("{bad} is not http://host:port"))),
        }
    }

    /// The bounds of the stream.
    pub fn stream(&self) -> WakeConfig {
        WakeConfig {
            replicas: usize::try_from(self.replicas).unwrap_or(usize::MAX),
            stream_bytes_max: u64::from(self.stream_bytes_max),
            ..WakeConfig::default()
        }
    }

    /// How a pusher reads them. A wake has 20 s: who has a hint for longer than that and a little is gone.
    pub fn jobs(&self) -> WakeJobsConfig {
        let WakeConfig { replicas, stream_bytes_max, .. } = self.stream();
        let ack_wait = Millis::from_secs(25);
        WakeJobsConfig { replicas, stream_bytes_max, ack_wait, ..WakeJobsConfig::default() }
    }
}

impl Default for EntryLimits {
    fn default() -> Self {
        let told = chappe_protocol::frame::Limits::default();
        Self {
            envelope_bytes_max: told.envelope_bytes_max,
            targets_max: told.targets_max,
            ttl_seconds_max: u32::try_from(told.ttl_max.0 / 1000).unwrap_or(u32::MAX),
        }
    }
}

impl Default for RouterDrain {
    fn default() -> Self {
        Self { budget_ms: 15_000 }
    }
}

impl Settings for RouterSettings {
    fn check(&self) -> Result<(), ConfigError> {
        self.nats.check()?;
        self.cql.check()?;
        self.quota.check()?;
        self.wakes.check()?;
        let told = chappe_protocol::frame::Limits::default();
        let EntryLimits { envelope_bytes_max, targets_max, ttl_seconds_max } = self.limits;
        between("limits.envelope_bytes_max", envelope_bytes_max, 1, told.frame_bytes_max / 2)?;
        between("limits.targets_max", targets_max, 1, 10_000)?;
        between("limits.ttl_seconds_max", ttl_seconds_max, 1, 365 * 24 * 3600)?;
        self.traces.check()?;
        between("drain.budget_ms", self.drain.budget_ms, 100, 3_600_000)
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }
}

impl EntryLimits {
    /// The bounds of a router's work.
    pub fn router(&self) -> RouterConfig {
        RouterConfig {
            payload_bytes_max: usize::try_from(self.envelope_bytes_max).unwrap_or(usize::MAX),
            ttl_max: Millis::from_secs(u64::from(self.ttl_seconds_max)),
            lists_max: usize::try_from(self.targets_max).unwrap_or(usize::MAX),
            ..RouterConfig::default()
        }
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl NatsSettings {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.urls.is_empty() {
            return Err(ConfigError::value("nats.urls", "name one server at least"));
        }
        let given = [&self.nkey_seed, &self.token, &self.user_password];
        if given.into_iter().filter(|path| is_set(path)).count() > 1 {
            let hint = "nats.nkey_seed, nats.token and nats.user_password exclude each other";
            return Err(ConfigError::value("nats", hint));
        }
        Ok(())
    }

    /// How this role reaches the bus.
    pub fn open(&self, role: BusRole, cluster: &str) -> anyhow::Result<NatsConfig> {
        let mut config = NatsConfig::new(role, "", cluster);
        config.urls.clone_from(&self.urls);
        config.credentials = if is_set(&self.nkey_seed) {
            Credentials::NkeySeedFile(self.nkey_seed.clone())
        } else if is_set(&self.token) {
            Credentials::TokenFile(self.token.clone())
        } else if is_set(&self.user_password) {
            Credentials::UserPasswordFile(self.user_password.clone())
        } else {
            Credentials::None
        };
        config.tls = client_config(&self.authority)?;
        Ok(config)
    }
}

impl RedisSettings {
    /// How Redis is reached.
    pub fn open(&self, cluster: &str) -> anyhow::Result<RedisConfig> {
        let mut config = RedisConfig::new(&self.url, cluster);
        config.username.clone_from(&self.user);
        config.password = read_secret(&self.password, "redis.password")?;
        if is_set(&self.authority) {
            config.authority_pem = Some(read_file(&self.authority, "redis.authority")?);
        }
        Ok(config)
    }
}

impl CqlSettings {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        ScyllaConfig::from_url(&self.url)
            .map_err(|error| ConfigError::value("cql.url", error.to_string()))?;
        if self.user.is_empty() == is_set(&self.password) {
            return Err(ConfigError::value("cql", "cql.user and cql.password go together; one is missing"));
        }
        between("cql.timeout_ms", self.timeout_ms, 100, 60_000)?;
        between("cql.in_flight_max", self.in_flight_max, 1, 100_000)
    }

    /// How the database is reached.
    pub fn open(&self) -> anyhow::Result<ScyllaConfig> {
        let mut config = ScyllaConfig::from_url(&self.url)?;
        if !self.user.is_empty() {
            let password = read_secret(&self.password, "cql.password")?;
            config.credentials = Some(CqlCredentials::new(&self.user, password));
        }
        config.tls = client_config(&self.authority)?;
        config.datacenter = Some(self.datacenter.clone()).filter(|name| !name.is_empty());
        config.request_timeout = Millis(u64::from(self.timeout_ms));
        config.in_flight_max = usize::try_from(self.in_flight_max).unwrap_or(usize::MAX);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::WakeSettings;

    #[test]
    fn wake_settings_that_cannot_work_are_refused_by_name() {
        assert!(WakeSettings::default().check().is_ok());
        let refused = |settings: WakeSettings| {
            settings.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        for replicas in [0, 6] {
            let text = refused(WakeSettings { replicas, ..WakeSettings::default() });
            assert!(text.contains("wakes.replicas"), "{text}");
        }
        let tiny = refused(WakeSettings { stream_bytes_max: 1, ..WakeSettings::default() });
        assert!(tiny.contains("wakes.stream_bytes_max"), "{tiny}");
        let monitors = vec!["http://nats-1:8222".to_owned(), "nats-2:8222".to_owned()];
        let text = refused(WakeSettings { monitors, ..WakeSettings::default() });
        assert!(text.contains("wakes.monitors") && text.contains("nats-2"), "{text}");
    }
}
