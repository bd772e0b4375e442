//! Settings of a gateway's door: what `gateway` and `chappe serve` have in common.
//! **Invariant:** whatever is set is read; what cannot work is refused before a port is bound.

mod quic;
mod token;

use crate::{DrainConfig, GatewayConfig, TlsSource};
use chappe_node::config::{ConfigError, between};
use chappe_node::tls::ReloadingTls;
use chappe_protocol::id::GatewayId;
use chappe_protocol::session::SessionConfig;
use chappe_protocol::time::Millis;
use ipnet::IpNet;
pub use quic::QuicConfig;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub use token::{TokenAlgorithm, TokenConfig};

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

/// Limits of sessions, as told in Welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Sessions of this process.
    pub sessions_max: u32,
    /// TLS, WebSocket and QUIC handshakes per second, sustained; twice as many may come at once. What is beyond is closed before any work.
    pub handshakes_per_second: u32,
    /// The same of one source: an address of IPv4, or a network of 64 bits of IPv6; 0: no bound of its own. Many people may share one.
    pub source_handshakes_per_second: u32,
    /// Load balancers (`10.0.0.0/8`, `2001:db8::1/128`) whose TCP connections begin with a header of the PROXY protocol, version 1 or 2.
    pub proxies: Vec<IpNet>,
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

/// The end of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrainSettings {
    /// All sessions are moved off within this, milliseconds.
    pub budget_ms: u32,
    /// So many a second, unless the budget asks for more.
    pub sessions_per_second: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let told = chappe_protocol::frame::Limits::default();
        Self {
            sessions_max: 100_000,
            handshakes_per_second: 2_000,
            source_handshakes_per_second: 0,
            proxies: Vec::new(),
            envelope_bytes_max: told.envelope_bytes_max,
            targets_max: told.targets_max,
            ttl_seconds_max: u32::try_from(told.ttl_max.0 / 1000).unwrap_or(u32::MAX),
            frames_per_second_max: told.frames_per_second_max,
            frames_burst_max: told.frames_burst_max,
            ping_every_ms: u32::try_from(told.ping_every.0).unwrap_or(u32::MAX),
        }
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

/// The door of a process: where clients come in, and what they must show.
#[derive(Debug, Clone, Copy)]
pub struct Door<'a> {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The admin port.
    pub admin: SocketAddr,
    /// Transport security.
    pub tls: &'a TlsConfig,
    /// How tokens are checked.
    pub token: &'a TokenConfig,
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

impl Door<'_> {
    /// Refuses what cannot work or must not be. `self_made`: the process brings a certificate and a key for loopback.
    pub fn check(self, self_made: bool) -> Result<(), ConfigError> {
        let Self { listen, admin, tls, token } = self;
        let local = listen.ip().is_loopback();
        let self_made_will_do = local && self_made;
        if is_set(&tls.certificate) != is_set(&tls.key) {
            return Err(ConfigError::value("tls", "tls.certificate and tls.key go together; one is missing"));
        }
        if tls.off && is_set(&tls.certificate) {
            return Err(ConfigError::value("tls.off", "TLS is off and a certificate is given; choose one"));
        }
        if tls.off && !local && !tls.behind_proxy {
            let hint = "plain WebSocket is served on loopback only; give tls.certificate and tls.key, or set tls.behind_proxy = true if a proxy ends TLS";
            return Err(ConfigError::value("tls.off", hint));
        }
        if !(tls.off || is_set(&tls.certificate) || self_made_will_do) {
            let hint = if self_made {
                "the self-made certificate serves on loopback only; give tls.certificate and tls.key"
            } else {
                "a gateway needs a certificate: give tls.certificate and tls.key, or tls.off = true on loopback or behind a proxy"
            };
            return Err(ConfigError::value("tls.certificate", hint));
        }
        token.check(self_made, local)?;
        if admin == listen && listen.port() != 0 {
            return Err(ConfigError::value("admin", "the admin port must not be the clients' port"));
        }
        Ok(())
    }
}

impl TlsConfig {
    /// The certificate of the settings, else the self-made one; `None`: TLS is off.
    pub fn open(&self, self_made: Option<(&Path, &Path)>) -> anyhow::Result<Option<Arc<ReloadingTls>>> {
        if self.off {
            return Ok(None);
        }
        let given = (self.certificate.as_path(), self.key.as_path());
        let (certificate, key) = self_made.filter(|_| !is_set(&self.certificate)).unwrap_or(given);
        Ok(Some(Arc::new(ReloadingTls::load(certificate, key)?)))
    }
}

impl LimitsConfig {
    /// Refuses what is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let told = chappe_protocol::frame::Limits::default();
        between("limits.sessions_max", self.sessions_max, 1, 10_000_000)?;
        between("limits.handshakes_per_second", self.handshakes_per_second, 1, 1_000_000)?;
        between("limits.source_handshakes_per_second", self.source_handshakes_per_second, 0, 1_000_000)?;
        between("limits.envelope_bytes_max", self.envelope_bytes_max, 1, told.frame_bytes_max / 2)?;
        between("limits.targets_max", self.targets_max, 1, 10_000)?;
        between("limits.ttl_seconds_max", self.ttl_seconds_max, 1, 365 * 24 * 3600)?;
        between("limits.frames_per_second_max", self.frames_per_second_max, 1, 1_000_000)?;
        between("limits.frames_burst_max", self.frames_burst_max, 1, 1_000_000)?;
        between("limits.ping_every_ms", self.ping_every_ms, 1_000, 600_000)
    }
}

impl DrainSettings {
    /// Refuses what is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        between("drain.budget_ms", self.budget_ms, 100, 3_600_000)?;
        between("drain.sessions_per_second", self.sessions_per_second, 1, 1_000_000)
    }
}

/// The gateway's own settings, of those of its process.
pub fn gateway_config(
    id: GatewayId,
    resume_key: [u8; 32],
    limits: &LimitsConfig,
    drain: &DrainSettings,
    origins: &[String],
) -> GatewayConfig {
    let mut session = SessionConfig::default();
    session.limits.envelope_bytes_max = limits.envelope_bytes_max;
    session.limits.targets_max = limits.targets_max;
    session.limits.ttl_max = Millis::from_secs(u64::from(limits.ttl_seconds_max));
    session.limits.frames_per_second_max = limits.frames_per_second_max;
    session.limits.frames_burst_max = limits.frames_burst_max;
    session.limits.ping_every = Millis(u64::from(limits.ping_every_ms));
    let mut gateway = GatewayConfig::new(id, resume_key);
    gateway.handshake.origins = origins.to_vec();
    gateway.handshake.codec.message_bytes_max = session.limits.frame_bytes_max;
    gateway.session = Arc::new(session);
    gateway.sessions_max = usize::try_from(limits.sessions_max).unwrap_or(usize::MAX);
    gateway.handshakes_per_second = limits.handshakes_per_second;
    gateway.handshakes_burst = limits.handshakes_per_second.saturating_mul(2);
    gateway.source_handshakes_per_second = limits.source_handshakes_per_second;
    gateway.proxies.clone_from(&limits.proxies);
    gateway.drain.budget = Millis(u64::from(drain.budget_ms));
    gateway.drain.sessions_per_second = drain.sessions_per_second;
    gateway
}

impl TlsSource for ReloadingTls {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        Self::current(self)
    }
}
