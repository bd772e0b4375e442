//! Settings of `chappe serve`. **Invariant:** whatever is set is read; what cannot work is refused before a port is bound.

use chappe_gateway::settings::{Door, DrainSettings, LimitsConfig, QuicConfig, TlsConfig, TokenConfig};
use chappe_node::config::{ConfigError, between};
use chappe_node::spans::TracesConfig;
use chappe_node::telemetry::LogConfig;
use chappe_pusher::config::ProvidersConfig;
use chappe_pusher::settings::WakeLimits;
use chappe_router::settings::{PushKeySettings, QuotaConfig};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// QUIC and WebTransport.
    pub quic: QuicConfig,
    /// How tokens are checked.
    pub token: TokenConfig,
    /// Seals what devices say about being woken; without a key the data directory's own does.
    pub push: PushKeySettings,
    /// What a client may do.
    pub limits: LimitsConfig,
    /// What a mailbox may hold.
    pub quota: QuotaConfig,
    /// The embedded store.
    pub store: StoreSettings,
    /// How the process ends.
    pub drain: DrainSettings,
    /// Which apps are woken through whom; by default the log tells of all wakes.
    pub providers: ProvidersConfig,
    /// How often devices are woken, and how many at once.
    pub wakes: WakeLimits,
    /// Logs.
    pub log: LogConfig,
    /// Spans of some envelopes, for a collector.
    pub traces: TracesConfig,
}

/// The embedded store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Memory for pages of the database, MiB; it fills up with use.
    pub cache_mib: u32,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7440)),
            admin: SocketAddr::from(([127, 0, 0, 1], 7441)),
            data: "chappe-data".into(),
            origins: Vec::new(),
            tls: TlsConfig::default(),
            quic: QuicConfig::default(),
            token: TokenConfig::default(),
            push: PushKeySettings::default(),
            limits: LimitsConfig::default(),
            quota: QuotaConfig::default(),
            store: StoreSettings::default(),
            drain: DrainSettings::default(),
            providers: ProvidersConfig { log: vec!["*".into()], ..ProvidersConfig::default() },
            wakes: WakeLimits::default(),
            log: LogConfig::default(),
            traces: TracesConfig::default(),
        }
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

impl ServeConfig {
    /// Refuses what cannot work or must not be.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self { listen, admin, ref tls, ref token, .. } = *self;
        Door { listen, admin, tls, token }.check(true)?;
        self.quic.check()?;
        self.push.check()?;
        self.limits.check()?;
        self.quota.check()?;
        between("store.cache_mib", self.store.cache_mib, 1, 1 << 20)?;
        self.drain.check()?;
        self.traces.check()?;
        self.wakes.check("wakes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_gateway::settings::TokenAlgorithm;

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
