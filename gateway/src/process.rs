//! The process `gateway`. **Invariant:** the clients' port is bound last and closed first; it owns nothing that outlives it.

use crate::listen::accepted;
use crate::settings::{
    Door, DrainSettings, LimitsConfig, QuicConfig, TlsConfig, TokenConfig, gateway_config,
};
use crate::{GatewayMetrics, Parts, TlsSource};
use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use chappe_node::admin::{Admin, Process};
use chappe_node::clock::SystemWorld;
use chappe_node::config::{ConfigError, read_file, read_secret};
use chappe_node::listen::bind;
use chappe_node::process::Settings;
use chappe_node::signal::Signals;
use chappe_node::spans::{Origin, TracesConfig};
use chappe_node::telemetry::LogConfig;
use chappe_protocol::id::GatewayId;
use chappe_protocol::world::World;
use chappe_router::nats::BusRole;
use chappe_router::operations::{self, Operations};
use chappe_router::parts::PartSettings;
use chappe_router::settings::{CqlSettings, NatsSettings, PushKeySettings, QuotaConfig, RedisSettings};
use chappe_router::trace::Traces;
use futures_util::StreamExt;
use prometheus::Registry;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Doorbells that wait at most.
const BELLS_MAX: usize = 16_384;
/// Beyond the sessions' own drain: for the last answers and the store.
const CLOSING: Duration = Duration::from_secs(5);
/// A resume key's file holds at least so many bytes.
const RESUME_KEY_BYTES_MIN: usize = 32;

/// Everything that `gateway` can be told. File: TOML with these names; environment: `CHAPPE_LISTEN`, `CHAPPE_TLS__KEY`, ….
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySettings {
    /// The cluster's name, 1 to 32 characters of a-z, 0-9 and -; the same in all its processes.
    pub cluster: String,
    /// Where clients connect: address and port.
    pub listen: SocketAddr,
    /// The admin port: health, readiness, metrics. Never for clients.
    pub admin: SocketAddr,
    /// File with the token that operators' calls on the admin port must bring. Empty: there are no such calls.
    pub admin_token: PathBuf,
    /// Origins (`https://chat.example`) whose pages may connect.
    pub origins: Vec<String>,
    /// File with at least 32 random bytes, the same on all gateways: a session resumes on any of them. Empty: on this one only.
    pub resume_key: PathBuf,
    /// Transport security.
    pub tls: TlsConfig,
    /// QUIC and WebTransport.
    pub quic: QuicConfig,
    /// How tokens are checked.
    pub token: TokenConfig,
    /// Seals what devices say about being woken; without a key such a registration is refused.
    pub push: PushKeySettings,
    /// The bus.
    pub nats: NatsSettings,
    /// Presence.
    pub redis: RedisSettings,
    /// The slot log.
    pub cql: CqlSettings,
    /// What a client may do.
    pub limits: LimitsConfig,
    /// How the process ends.
    pub drain: DrainSettings,
    /// Logs.
    pub log: LogConfig,
    /// Spans of some envelopes, for a collector.
    pub traces: TracesConfig,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            cluster: "chappe".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7440)),
            admin: SocketAddr::from(([127, 0, 0, 1], 7441)),
            admin_token: PathBuf::new(),
            origins: Vec::new(),
            resume_key: PathBuf::new(),
            tls: TlsConfig::default(),
            quic: QuicConfig::default(),
            token: TokenConfig::default(),
            push: PushKeySettings::default(),
            nats: NatsSettings::default(),
            redis: RedisSettings::default(),
            cql: CqlSettings::default(),
            limits: LimitsConfig::default(),
            drain: DrainSettings::default(),
            log: LogConfig::default(),
            traces: TracesConfig::default(),
        }
    }
}

impl Settings for GatewaySettings {
    fn check(&self) -> Result<(), ConfigError> {
        let Self { listen, admin, ref tls, ref token, .. } = *self;
        Door { listen, admin, tls, token }.check(false)?;
        self.quic.check()?;
        self.push.check()?;
        self.nats.check()?;
        self.cql.check()?;
        self.limits.check()?;
        self.traces.check()?;
        self.drain.check()
    }

    fn log(&self) -> &LogConfig {
        &self.log
    }
}

/// The key that signs resume tokens, of a file's content.
fn resume_key(path: &Path, world: &dyn World) -> Result<[u8; 32], ConfigError> {
    let mut key = [0; 32];
    if path.as_os_str().is_empty() {
        tracing::warn!("resume_key is not set: a session of this gateway attaches anew on any other");
        world.fill_random(&mut key);
        return Ok(key);
    }
    let bytes = read_file(path, "resume_key")?;
    if bytes.len() < RESUME_KEY_BYTES_MIN {
        let hint =
            format!("{} holds {} bytes, at least 32 random ones are needed", path.display(), bytes.len());
        return Err(ConfigError::value("resume_key", hint));
    }
    key.copy_from_slice(digest(&SHA256, &bytes).as_ref());
    Ok(key)
}

/// Runs a gateway until the signals say stop, then drains. Returns whether the drain ended within its budget.
pub async fn run(settings: GatewaySettings, signals: Signals) -> Result<bool> {
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let registry = Registry::new();
    let (background, ended) = (TaskTracker::new(), CancellationToken::new());
    let tls = settings.tls.open(None)?;
    let verifier = Arc::new(settings.token.open(None)?);
    let push_keys = settings.push.open_or(None)?.map(Arc::new);
    if push_keys.is_none() {
        tracing::warn!("push.key is not set: devices cannot register to be woken");
    }
    let resume_key = resume_key(&settings.resume_key, world.as_ref())?;
    let (ready, watched) = watch::channel(false);
    let token = read_secret(&settings.admin_token, "admin_token")?;
    let operations = Arc::new(OnceLock::new());
    let handler = operations::handler(Arc::clone(&operations));
    let listener = bind(settings.admin, "--set admin=…").await?;
    let process = Process {
        role: "gateway",
        registry: registry.clone(),
        ready: watched,
        stop: signals.stop.clone(),
        handler: Some(handler),
    };
    let admin_at = listener.local_addr()?;
    let admin = Admin::new(process, admin_at)?;
    let console = admin.console();
    tracing::info!(admin = %admin_at, cluster = settings.cluster, "a gateway starts");
    background.spawn(chappe_node::admin::serve(listener, admin, ended.clone(), background.clone()));

    // A gateway appends nothing itself: the quota is the routers' business.
    let quota = QuotaConfig::default();
    let parts = PartSettings {
        cluster: &settings.cluster,
        nats: &settings.nats,
        redis: &settings.redis,
        cql: &settings.cql,
        quota: &quota,
    };
    let Some(parts) = parts.open(BusRole::Gateway, &world, &registry, &signals.stop).await? else {
        return Ok(true);
    };
    let parts = Arc::new(parts);
    parts.bus.meet(&console).await?;
    if let Some(tls) = tls.clone() {
        tls.tell(&registry)?;
        let (reload, ended) = (signals.reload.clone(), ended.clone());
        background.spawn(async move { tls.watch(reload, ended).await });
    }
    let (keys, reload, stop) = (Arc::clone(&verifier), signals.reload.clone(), ended.clone());
    background.spawn(async move { stop.run_until_cancelled(keys.renew_on(reload)).await });
    let looked = Arc::clone(&parts);
    let watching = ended.clone();
    background.spawn(async move { looked.watch(watching, |_| ()).await });

    let origin = Origin { role: "gateway", cluster: &settings.cluster, at: admin_at };
    let (spans, exporter) = settings.traces.open(&origin, &world, &registry)?;
    let traces = Arc::new(Traces::telling(spans));
    if let Some(exporter) = exporter {
        background.spawn(exporter.run(ended.clone()));
    }
    if !token.is_empty() {
        let (store, links) = (Arc::clone(&parts.store), parts.bus.links());
        let _ = operations.set(Operations { store, links, traces: Arc::clone(&traces), token });
    }
    let id = GatewayId::random(world.as_ref());
    let mut config = gateway_config(id, resume_key, &settings.limits, &settings.drain, &settings.origins);
    config.push_keys = push_keys;
    let budget = config.drain.budget.to_std() + CLOSING;
    let tls = tls.map(|tls| tls as Arc<dyn TlsSource>);
    let clients = bind(settings.listen, "--set listen=…").await?;
    let quic = settings.quic.open(clients.local_addr()?, tls.clone(), &resume_key)?;
    let own = Parts {
        world,
        store: Arc::clone(&parts.store),
        links: parts.bus.links(),
        presence: Arc::clone(&parts.presence) as _,
        bells: parts.bus.doorbells(id, BELLS_MAX).await?,
        alarms: parts.bus.alarms(),
        verifier: Arc::clone(&verifier),
        tls,
        quic,
        metrics: Arc::new(GatewayMetrics::new(&registry)?),
        traces: Arc::clone(&traces),
    };
    tracing::info!(listen = %clients.local_addr()?, "a gateway serves");
    let (tasks, stop) = (TaskTracker::new(), signals.stop.clone());
    tasks.spawn(crate::run(config, own, accepted(clients).boxed(), stop));

    // Who has no key to check tokens with is of no use to anybody.
    if signals.stop.run_until_cancelled(verifier.has_keys()).await.is_some() {
        ready.send_replace(true);
    }
    signals.stop.cancelled().await;
    ready.send_replace(false);
    let in_time = chappe_node::drain::wait(&signals.stop, &tasks, budget).await;
    parts.bus.close().await;
    ended.cancel();
    background.close();
    background.wait().await;
    Ok(in_time)
}
