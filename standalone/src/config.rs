//! Settings of `chappe serve`. **Invariant:** whatever is set is read; what cannot work is refused before a port is bound.

use chappe_gateway::{DrainConfig, GatewayConfig};
use chappe_node::config::ConfigError;
use chappe_node::telemetry::LogConfig;
use chappe_protocol::id::GatewayId;
use chappe_protocol::session::SessionConfig;
use chappe_protocol::time::Millis;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Everything that `chappe serve` can be told. File: TOML with these names; environment: `CHAPPE_LISTEN`, `CHAPPE_TLS__KEY`, ….
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    /// Where clients connect: address and port.
    pub listen: SocketAddr,
    /// The admin port: health, readiness, metrics, operators' calls. Never for clients.
    pub admin: SocketAddr,
    /// The data directory; created if it does not exist.
    pub data: PathBuf,
    /// Origins (`https://chat.example`) whose pages may connect.
    pub origins: Vec<String>,
    /// Transport security.
    pub tls: TlsConfig,
    /// How tokens are checked.
    pub token: TokenConfig,
    /// What a client may do.
    pub limits: LimitsConfig,
    /// What a mailbox may hold.
    pub quota: QuotaConfig,
    /// The embedded store.
    pub store: StoreSettings,
    /// How the process ends.
    pub drain: DrainSettings,
    /// Logs.
    pub log: LogConfig,
}

/// TLS of the client port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file with the certificate chain; empty: a self-made one, on loopback only.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// Serve plain WebSocket; on loopback only, unless `behind_proxy`.
    pub off: bool,
    /// Something in front ends TLS, so that `off` is allowed on other addresses too.
    pub behind_proxy: bool,
}

/// The one algorithm of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenAlgorithm {
    /// Ed25519: the server has the public key only.
    #[default]
    EdDsa,
    /// HMAC-SHA-256: the server has the secret.
    Hs256,
}

/// Which tokens are good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfig {
    /// `eddsa` or `hs256`; a token that says otherwise is refused.
    pub algorithm: TokenAlgorithm,
    /// File with the public key (PEM) or the secret (at least 32 bytes); empty: a self-made key, on loopback only.
    pub key: PathBuf,
    /// Only tokens of this issuer (`iss`); empty: any.
    pub issuer: String,
    /// Only tokens for this audience (`aud`); empty: none.
    pub audience: String,
}

/// Limits of sessions, as told in Welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Sessions of this process.
    pub sessions_max: u32,
    /// Payload bytes of one envelope.
    pub envelope_bytes_max: u32,
    /// Targets of one submit.
    pub targets_max: u32,
    /// Time to live of an envelope, seconds.
    pub ttl_seconds_max: u32,
    /// Frames per second and connection, sustained.
    pub frames_per_second_max: u32,
    /// Frames at once.
    pub frames_burst_max: u32,
    /// Clients ping at least so often, milliseconds.
    pub ping_every_ms: u32,
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

/// The embedded store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Memory for pages of the database, MiB; it fills up with use.
    pub cache_mib: u32,
}

/// The end of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainSettings {
    /// All sessions are moved off within this, milliseconds.
    pub budget_ms: u32,
    /// So many a second, unless the budget asks for more.
    pub sessions_per_second: u32,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7440)),
            admin: SocketAddr::from(([127, 0, 0, 1], 7441)),
            data: "chappe-data".into(),
            origins: Vec::new(),
            tls: TlsConfig::default(),
            token: TokenConfig::default(),
            limits: LimitsConfig::default(),
            quota: QuotaConfig::default(),
            store: StoreSettings::default(),
            drain: DrainSettings::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let told = chappe_protocol::frame::Limits::default();
        Self {
            sessions_max: 100_000,
            envelope_bytes_max: told.envelope_bytes_max,
            targets_max: told.targets_max,
            ttl_seconds_max: u32::try_from(told.ttl_max.0 / 1000).unwrap_or(u32::MAX),
            frames_per_second_max: told.frames_per_second_max,
            frames_burst_max: told.frames_burst_max,
            ping_every_ms: u32::try_from(told.ping_every.0).unwrap_or(u32::MAX),
        }
    }
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self { slots_max: 100_000, bytes_max: 1 << 30 }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        let bytes = chappe_storage::embedded::EmbeddedConfig::default().cache_bytes;
        Self { cache_mib: u32::try_from(bytes >> 20).unwrap_or(u32::MAX) }
    }
}

impl StoreSettings {
    /// Memory for pages of the database, bytes.
    pub fn cache_bytes(&self) -> usize {
        usize::try_from(u64::from(self.cache_mib) << 20).unwrap_or(usize::MAX)
    }
}

impl Default for DrainSettings {
    fn default() -> Self {
        let drain = DrainConfig::default();
        Self {
            budget_ms: u32::try_from(drain.budget.0).unwrap_or(u32::MAX),
            sessions_per_second: drain.sessions_per_second,
        }
    }
}

impl ServeConfig {
    /// Refuses what cannot work or must not be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let local = self.listen.ip().is_loopback();
        let set = |path: &PathBuf| !path.as_os_str().is_empty();
        if set(&self.tls.certificate) != set(&self.tls.key) {
            return Err(ConfigError::value("tls", "tls.certificate and tls.key go together; one is missing"));
        }
        if self.tls.off && set(&self.tls.certificate) {
            return Err(ConfigError::value("tls.off", "TLS is off and a certificate is given; choose one"));
        }
        if self.tls.off && !local && !self.tls.behind_proxy {
            let hint = "plain WebSocket is served on loopback only; give tls.certificate and tls.key, or set tls.behind_proxy = true if a proxy ends TLS";
            return Err(ConfigError::value("tls.off", hint));
        }
        if !self.tls.off && !local && !set(&self.tls.certificate) {
            let hint = "the self-made certificate serves on loopback only; give tls.certificate and tls.key";
            return Err(ConfigError::value("listen", hint));
        }
        if !local && !set(&self.token.key) {
            let hint = "the self-made token key serves on loopback only; give token.key";
            return Err(ConfigError::value("listen", hint));
        }
        if self.token.algorithm == TokenAlgorithm::Hs256 && !set(&self.token.key) {
            return Err(ConfigError::value(
                "token.key",
                "hs256 needs a file with a secret of at least 32 bytes",
            ));
        }
        if self.admin == self.listen && self.listen.port() != 0 {
            return Err(ConfigError::value("admin", "the admin port must not be the clients' port"));
        }
        self.check_bounds()
    }

    fn check_bounds(&self) -> Result<(), ConfigError> {
        let told = chappe_protocol::frame::Limits::default();
        let bounds = [
            ("limits.sessions_max", self.limits.sessions_max, 1, 10_000_000),
            ("limits.envelope_bytes_max", self.limits.envelope_bytes_max, 1, told.frame_bytes_max / 2),
            ("limits.targets_max", self.limits.targets_max, 1, 10_000),
            ("limits.ttl_seconds_max", self.limits.ttl_seconds_max, 1, 365 * 24 * 3600),
            ("limits.frames_per_second_max", self.limits.frames_per_second_max, 1, 1_000_000),
            ("limits.frames_burst_max", self.limits.frames_burst_max, 1, 1_000_000),
            ("limits.ping_every_ms", self.limits.ping_every_ms, 1_000, 600_000),
            ("quota.slots_max", self.quota.slots_max, 1, u32::MAX),
            ("store.cache_mib", self.store.cache_mib, 1, 1 << 20),
            ("drain.budget_ms", self.drain.budget_ms, 100, 3_600_000),
            ("drain.sessions_per_second", self.drain.sessions_per_second, 1, 1_000_000),
        ];
        for (key, value, low, high) in bounds {
            if !(low..=high).contains(&value) {
                return Err(ConfigError::value(key, format!("{value} is not between {low} and {high}")));
            }
        }
        Ok(())
    }

    /// The gateway's settings.
    pub fn gateway(&self, id: GatewayId, resume_key: [u8; 32]) -> GatewayConfig {
        let mut session = SessionConfig::default();
        session.limits.envelope_bytes_max = self.limits.envelope_bytes_max;
        session.limits.targets_max = self.limits.targets_max;
        session.limits.ttl_max = Millis::from_secs(u64::from(self.limits.ttl_seconds_max));
        session.limits.frames_per_second_max = self.limits.frames_per_second_max;
        session.limits.frames_burst_max = self.limits.frames_burst_max;
        session.limits.ping_every = Millis(u64::from(self.limits.ping_every_ms));
        let mut gateway = GatewayConfig::new(id, resume_key);
        gateway.handshake.origins.clone_from(&self.origins);
        gateway.handshake.codec.message_bytes_max = session.limits.frame_bytes_max;
        gateway.session = Arc::new(session);
        gateway.sessions_max = usize::try_from(self.limits.sessions_max).unwrap_or(usize::MAX);
        gateway.drain.budget = Millis(u64::from(self.drain.budget_ms));
        gateway.drain.sessions_per_second = self.drain.sessions_per_second;
        gateway
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut ServeConfig)) -> String {
        let mut config = ServeConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_good_and_round_trip_through_toml() {
        let config = ServeConfig::default();
        config.check().unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<ServeConfig>(&text).unwrap(), config);
    }

    #[test]
    fn what_is_self_made_or_plain_stays_on_loopback() {
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 7440));
        assert!(refused(|config| config.listen = everywhere).contains("tls.certificate"));
        assert!(
            refused(|config| (config.listen, config.tls.off) = (everywhere, true)).contains("behind_proxy")
        );
        let with_certificate = |config: &mut ServeConfig| {
            config.listen = everywhere;
            (config.tls.certificate, config.tls.key) = ("c".into(), "k".into());
        };
        assert!(refused(with_certificate).contains("token.key"));
    }

    #[test]
    fn halves_and_numbers_out_of_bounds_are_refused() {
        assert!(refused(|config| config.tls.key = "k".into()).contains("go together"));
        assert!(refused(|config| config.token.algorithm = TokenAlgorithm::Hs256).contains("32 bytes"));
        assert!(refused(|config| config.limits.targets_max = 0).contains("between 1 and"));
        assert!(refused(|config| config.admin = config.listen).contains("admin"));
    }
}
