//! The real parts of a cluster, opened together by every process that uses them.
//! **Invariant:** what can never work ends the process with a code and a hint; what may come back is waited for, and told.

use crate::metrics::PresenceMetrics;
use crate::nats::{BusError, BusMetrics, BusRole, NatsBus};
use crate::redis::{RedisPresence, RedisPresenceError};
use crate::settings::{CqlSettings, NatsSettings, QuotaConfig, RedisSettings};
use crate::store_metrics::StoreMetrics;
use anyhow::Result;
use chappe_protocol::id::{ClusterId, MailboxId};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::Store;
use chappe_storage::rows::Rows as _;
use chappe_storage::scylla::{ConnectError, Durability, ScyllaRows};
use chappe_storage::slotlog::SlotLog;
use prometheus::Registry;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The first pause before a part is tried again; doubles up to [`PAUSE_MAX`], half of it random.
const PAUSE_MIN: Millis = Millis(250);
const PAUSE_MAX: Millis = Millis::from_secs(5);
/// How often the store is asked whether it is there, and its counters are read.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A store that takes longer to answer is not there.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// The settings of all parts.
#[derive(Debug, Clone, Copy)]
pub struct PartSettings<'a> {
    /// The cluster's name.
    pub cluster: &'a str,
    /// The bus.
    pub nats: &'a NatsSettings,
    /// Presence.
    pub redis: &'a RedisSettings,
    /// The slot log's database.
    pub cql: &'a CqlSettings,
    /// What a mailbox may hold.
    pub quota: &'a QuotaConfig,
}

/// What they open to.
pub struct ClusterParts {
    /// The bus.
    pub bus: Arc<NatsBus>,
    /// Presence.
    pub presence: Arc<RedisPresence>,
    /// The slot log.
    pub store: Arc<dyn Store>,
    log: Arc<SlotLog<ScyllaRows>>,
    rows: Arc<ScyllaRows>,
    metrics: StoreMetrics,
}

impl PartSettings<'_> {
    /// Opens all parts; tries again what may come back. `None`: told to stop before all were there.
    pub async fn open(
        self,
        role: BusRole,
        world: &Arc<dyn World>,
        registry: &Registry,
        stop: &CancellationToken,
    ) -> Result<Option<ClusterParts>> {
        let mut nats = self.nats.open(role, self.cluster)?;
        let redis = self.redis.open(self.cluster)?;
        let cql = self.cql.open()?;
        let bus_metrics = Arc::new(BusMetrics::new(registry)?);
        let presence = RedisPresence::open(&redis, Arc::new(PresenceMetrics::new(registry)?))?;
        match presence.check().await {
            Ok(()) => {}
            Err(error @ RedisPresenceError::Unreachable(_)) => tracing::warn!("{error}"),
            Err(error) => return Err(error.into()),
        }
        let rows = tries(world, stop, || {
            let (config, world) = (cql.clone(), Arc::clone(world));
            async move { ScyllaRows::connect(config, world).await.map_err(|error| told_of_store(&error)) }
        });
        let Some(rows) = rows.await? else { return Ok(None) };
        let rows = Arc::new(rows);
        nats.cluster = ClusterId::of_store(self.cluster, rows.incarnation());
        if rows.durability() == Durability::Periodic {
            tracing::warn!(
                "cql_not_synced: the database acknowledges before it syncs: accepted envelopes may go with the power; set commitlog_sync to batch or group"
            );
        }
        let bus = tries(world, stop, || {
            let (config, world) = (nats.clone(), Arc::clone(world));
            let metrics = Arc::clone(&bus_metrics);
            async move { NatsBus::connect(config, world, metrics).await.map_err(|error| told_of_bus(&error)) }
        });
        let Some(bus) = bus.await? else { return Ok(None) };
        let log = Arc::new(SlotLog::new(Arc::clone(&rows), Arc::clone(world), self.quota.log()));
        let store: Arc<dyn Store> = Arc::<SlotLog<ScyllaRows>>::clone(&log);
        let metrics = StoreMetrics::new(registry)?;
        Ok(Some(ClusterParts { bus, presence: Arc::new(presence), store, log, rows, metrics }))
    }
}

/// A part that did not open.
enum Refused {
    /// It may come back.
    ForNow(String),
    /// Somebody must change something first.
    ForGood(String),
}

fn told(code: &str, error: &dyn Display, hint: &str, passes: bool) -> Refused {
    let message = format!("{code}: {error}; {hint}");
    if passes { Refused::ForNow(message) } else { Refused::ForGood(message) }
}

fn told_of_store(error: &ConnectError) -> Refused {
    let passes = match error {
        // The schema may be about to be applied.
        ConnectError::Unreachable(_)
        | ConnectError::SchemaAbsent(_)
        | ConnectError::SchemaOlder { .. }
        | ConnectError::SchemaLocked
        | ConnectError::Database(_) => true,
        ConnectError::Config(_)
        | ConnectError::Credentials
        | ConnectError::Permission(_)
        | ConnectError::Tls(_)
        | ConnectError::SchemaNewer { .. } => false,
    };
    told(error.code(), error, error.hint(), passes)
}

fn told_of_bus(error: &BusError) -> Refused {
    let passes = match error {
        BusError::Unreachable(_) | BusError::HungUp(_) => true,
        BusError::Config(_)
        | BusError::Credentials { .. }
        | BusError::Refused
        | BusError::Tls(_)
        | BusError::TooOld(_)
        | BusError::MaxPayload { .. } => false,
    };
    told(error.code(), error, error.hint(), passes)
}

/// Tries until it opens, is refused for good, or `stop`.
async fn tries<T, F: Future<Output = Result<T, Refused>>>(
    world: &Arc<dyn World>,
    stop: &CancellationToken,
    mut open: impl FnMut() -> F,
) -> Result<Option<T>> {
    let mut pause = PAUSE_MIN;
    loop {
        let tried = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            // A driver's connect is a large future.
            tried = Box::pin(open()) => tried,
        };
        match tried {
            Ok(opened) => return Ok(Some(opened)),
            Err(Refused::ForGood(message)) => return Err(anyhow::Error::msg(message)),
            Err(Refused::ForNow(message)) => tracing::warn!("not ready yet: {message}"),
        }
        let waited = Millis(pause.0 / 2 + world.random_below(pause.0 / 2 + 1));
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(waited.to_std()) => {}
        }
        pause = Millis((pause.0 * 2).min(PAUSE_MAX.0));
    }
}

impl ClusterParts {
    /// Looks at the store every 2 s until `stop`, and tells `seen` whether it answers.
    pub async fn watch(&self, stop: CancellationToken, seen: impl Fn(bool)) {
        let mut answered = true;
        loop {
            let head = self.store.head(MailboxId([0; 16]), false);
            let answers = matches!(tokio::time::timeout(LOOK_MAX, head).await, Ok(Ok(_)));
            if answers != answered {
                if answers {
                    tracing::info!("the store answers again");
                } else {
                    tracing::error!(
                        "store_away: the store does not answer; nothing is accepted until it does"
                    );
                }
            }
            answered = answers;
            self.metrics.observe(&self.rows.stats(), &self.log.stats(), answers);
            seen(answers);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }
}
