//! `chappe serve`: every role in one process, on the embedded store. **Invariant:** the ports are bound last, and closed first.

use crate::cluster::{Cluster, Doors};
use crate::config::ServeConfig;
use crate::development::DataDir;
use crate::pushing::{self, Pushing};
use crate::store_metrics::EmbeddedMetrics;
use anyhow::{Context, Result};
use chappe_gateway::listen::accepted;
use chappe_gateway::quic::QuicDoor;
use chappe_gateway::settings::gateway_config;
use chappe_gateway::{TlsSource, TokenVerifier};
use chappe_node::admin::{Admin, AdminHandler, Process};
use chappe_node::clock::SystemWorld;
use chappe_node::config::read_secret;
use chappe_node::listen::bind;
use chappe_node::signal::Signals;
use chappe_node::spans::{Exporter, Origin};
use chappe_node::tls::ReloadingTls;
use chappe_protocol::id::GatewayId;
use chappe_protocol::world::World;
use chappe_router::links::Links;
use chappe_router::operations::Operations;
use chappe_router::{RouterConfig, janitor, operations};
use chappe_storage::Store;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::sealed::PushKeys;
use chappe_storage::slotlog::SlotLog;
use futures_util::{FutureExt, StreamExt};
use prometheus::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Beyond the sessions' own drain: for the last answers and the store.
const CLOSING: Duration = Duration::from_secs(5);

/// A server whose ports are bound and which is about to serve.
pub struct Server {
    config: ServeConfig,
    world: Arc<dyn World>,
    clients: TcpListener,
    admin: TcpListener,
    cluster: Cluster,
    router: chappe_router::Router,
    operations: Operations,
    registry: Registry,
    verifier: Arc<TokenVerifier>,
    tls: Option<Arc<ReloadingTls>>,
    quic: Option<QuicDoor>,
    resume_key: [u8; 32],
    push_keys: Arc<PushKeys>,
    pushing: Pushing,
    exporter: Option<Exporter>,
    /// The store, whose counters are metrics.
    counted: (Arc<EmbeddedRows>, Arc<SlotLog<EmbeddedRows>>, EmbeddedMetrics),
}

impl Server {
    /// Opens the data directory, then binds both ports.
    pub async fn open(config: ServeConfig) -> Result<Self> {
        let world: Arc<dyn World> = Arc::new(SystemWorld::new());
        let data = DataDir::new(&config.data);
        data.prepare(world.as_ref())?;
        let (certificate, key) = (data.certificate(), data.certificate_key());
        let tls = config.tls.open(Some((&certificate, &key)))?;
        let verifier = Arc::new(config.token.open(Some(&data.token_public()))?);
        let resume_key = data.read_resume_key()?;
        let push_keys = config.push.open_or(Some(&data.push_key()))?;
        let push_keys = Arc::new(push_keys.context("there is no push key")?);
        let token = read_secret(&data.admin_token(), "data")?;
        let (rows, log) = open_store(&config, &data, &world)?;
        let store: Arc<dyn Store> = Arc::<SlotLog<EmbeddedRows>>::clone(&log);
        let registry = Registry::new();
        let counted = (rows, log, EmbeddedMetrics::new(&registry)?);
        let origin = Origin { role: "standalone", cluster: "", at: config.admin };
        let (spans, exporter) = config.traces.open(&origin, &world, &registry)?;
        let cluster = Cluster::new(Arc::clone(&world), Arc::clone(&store), &registry, |local| local)?;
        let cluster = cluster.telling(spans);
        let shared = pushing::Shared {
            world: &world,
            store: &store,
            presence: cluster.presence(),
            keys: Arc::clone(&push_keys),
            registry: &registry,
        };
        let (pushing, wakes) = Pushing::open(&config, shared)?;
        let router = cluster.add_router_with(0, router_config(&config), wakes);
        let links: Arc<dyn Links> = cluster.local().clone();
        let traces = cluster.traces();
        let operations = Operations { store, links, traces, token };
        let clients = bind(config.listen, "--listen").await?;
        let serving = tls.clone().map(|tls| tls as Arc<dyn TlsSource>);
        let quic = config.quic.open(clients.local_addr()?, serving, &resume_key)?;
        let admin = bind(config.admin, "--admin").await?;
        Ok(Self {
            config,
            world,
            clients,
            admin,
            cluster,
            router,
            operations,
            registry,
            verifier,
            tls,
            quic,
            resume_key,
            push_keys,
            pushing,
            exporter,
            counted,
        })
    }

    /// Where clients connect and where operators look, as bound.
    pub fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.clients.local_addr()?, self.admin.local_addr()?))
    }

    /// Whether there is a UDP port.
    pub fn serves_quic(&self) -> bool {
        self.quic.is_some()
    }

    /// Serves until the signals say stop, then drains. Returns whether the drain ended within its budget.
    pub async fn run(self, signals: Signals) -> Result<bool> {
        let (tasks, background) = (TaskTracker::new(), TaskTracker::new());
        let ended = CancellationToken::new();
        let verifier = Arc::clone(&self.verifier);
        let has_keys = verifier.has_keys().now_or_never().is_some();
        let (ready, ready_watch) = tokio::sync::watch::channel(has_keys);
        let handler = admin_handler(self.pushing.operations(&self.operations.token), self.operations);
        let process = Process {
            role: "standalone",
            registry: self.registry.clone(),
            ready: ready_watch,
            stop: signals.stop.clone(),
            handler: Some(handler),
        };
        let admin = Admin::new(process, self.admin.local_addr()?)?;
        background.spawn(chappe_node::admin::serve(self.admin, admin, ended.clone(), background.clone()));
        background.spawn(janitor::run(
            Arc::clone(self.cluster.store()),
            Arc::clone(&self.world),
            ended.clone(),
        ));
        let (rows, log, counted) = self.counted;
        background.spawn(counted.follow(rows, log, ended.clone()));
        if let Some(exporter) = self.exporter {
            background.spawn(exporter.run(ended.clone()));
        }
        if let Some(tls) = self.tls.clone() {
            tls.tell(&self.registry)?;
            let (reload, ended) = (signals.reload.clone(), ended.clone());
            background.spawn(async move { tls.watch(reload, ended).await });
        }
        let (keys, reload, stop) = (Arc::clone(&verifier), signals.reload.clone(), ended.clone());
        background.spawn(async move { stop.run_until_cancelled(keys.renew_on(reload)).await });
        let mut config = gateway_config(
            GatewayId::random(self.world.as_ref()),
            self.resume_key,
            &self.config.limits,
            &self.config.drain,
            &self.config.origins,
        );
        config.push_keys = Some(self.push_keys);
        let tls = self.tls.map(|tls| tls as Arc<dyn TlsSource>);
        let budget = config.drain.budget.to_std() + CLOSING;
        let (cluster, stop) = (self.cluster.clone(), signals.stop.clone());
        let (clients, checking) = (self.clients, self.verifier);
        tasks.spawn(self.pushing.run(signals.reload.clone(), signals.stop.clone()));
        tasks.spawn(async move {
            let doors = Doors { tls, quic: self.quic };
            cluster.run_gateway(config, checking, doors, accepted(clients).boxed(), stop).await;
        });

        if signals.stop.run_until_cancelled(verifier.has_keys()).await.is_some() {
            ready.send_replace(true);
        }
        signals.stop.cancelled().await;
        ready.send_replace(false);
        let in_time = chappe_node::drain::wait(&signals.stop, &tasks, budget).await;
        self.router.close().await;
        self.cluster.local().clear();
        ended.cancel();
        background.close();
        background.wait().await;
        Ok(in_time)
    }
}

/// The pusher's calls, and the others.
fn admin_handler(pushing: chappe_pusher::operations::Operations, others: Operations) -> AdminHandler {
    let pushing = chappe_pusher::operations::handler(Arc::new(pushing.into()));
    let others = operations::handler(Arc::new(others.into()));
    Arc::new(move |call| {
        let own = call.path.starts_with(chappe_pusher::operations::PREFIX);
        if own { pushing(call) } else { others(call) }
    })
}

/// The rows, and the log over them.
fn open_store(
    config: &ServeConfig,
    data: &DataDir,
    world: &Arc<dyn World>,
) -> Result<(Arc<EmbeddedRows>, Arc<SlotLog<EmbeddedRows>>)> {
    let mut embedded = EmbeddedConfig::default();
    embedded.cache_bytes = config.store.cache_bytes();
    let rows = EmbeddedRows::open(&data.store(), Arc::clone(world), embedded)
        .map_err(|error| anyhow::anyhow!("{}: {error}", error.code()))?;
    let (rows, log) = (Arc::new(rows), config.quota.log());
    Ok((Arc::clone(&rows), Arc::new(SlotLog::new(rows, Arc::clone(world), log))))
}

fn router_config(config: &ServeConfig) -> RouterConfig {
    RouterConfig {
        payload_bytes_max: usize::try_from(config.limits.envelope_bytes_max).unwrap_or(usize::MAX),
        ttl_max: chappe_protocol::time::Millis::from_secs(u64::from(config.limits.ttl_seconds_max)),
        lists_max: usize::try_from(config.limits.targets_max).unwrap_or(usize::MAX),
        ..RouterConfig::default()
    }
}
