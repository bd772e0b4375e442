//! `chappe serve`: every role in one process, on the embedded store. **Invariant:** the ports are bound last, and closed first.

use crate::admin::Operations;
use crate::cluster::Cluster;
use crate::config::{ServeConfig, TokenAlgorithm};
use crate::development::DataDir;
use crate::janitor;
use anyhow::{Context, Result};
use chappe_gateway::{Incoming, TlsSource, TokenKey, TokenVerifier};
use chappe_node::admin::Admin;
use chappe_node::clock::SystemWorld;
use chappe_node::signal::Signals;
use chappe_node::tls::ReloadingTls;
use chappe_protocol::id::GatewayId;
use chappe_protocol::world::World;
use chappe_router::RouterConfig;
use chappe_router::links::Links;
use chappe_storage::Store;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use futures_util::{Stream, StreamExt, stream};
use prometheus::Registry;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
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
    resume_key: [u8; 32],
}

/// Hands the gateway what the reloader has.
struct Tls(Arc<ReloadingTls>);

impl TlsSource for Tls {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        self.0.current()
    }
}

impl Server {
    /// Opens the data directory, then binds both ports.
    pub async fn open(config: ServeConfig) -> Result<Self> {
        let world: Arc<dyn World> = Arc::new(SystemWorld::new());
        let data = DataDir::new(&config.data);
        data.prepare(world.as_ref())?;
        let tls = open_tls(&config, &data)?;
        let verifier = Arc::new(open_verifier(&config, &data)?);
        let resume_key = data.read_resume_key()?;
        let token = read_text(&data.admin_token())?;
        let store = open_store(&config, &data, &world)?;
        let registry = Registry::new();
        let cluster = Cluster::new(Arc::clone(&world), Arc::clone(&store), &registry, |local| local)?;
        let router = cluster.add_router(0, router_config(&config));
        let links: Arc<dyn Links> = cluster.local().clone();
        let operations = Operations { store, links, token };
        let clients = bind(config.listen, "listen").await?;
        let admin = bind(config.admin, "admin").await?;
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
            resume_key,
        })
    }

    /// Where clients connect and where operators look, as bound.
    pub fn addresses(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.clients.local_addr()?, self.admin.local_addr()?))
    }

    /// Serves until the signals say stop, then drains. Returns whether the drain ended within its budget.
    pub async fn run(self, signals: Signals) -> Result<bool> {
        let (tasks, background) = (TaskTracker::new(), TaskTracker::new());
        let ended = CancellationToken::new();
        let (ready, ready_watch) = tokio::sync::watch::channel(true);
        let handler = crate::admin::handler(self.operations);
        let admin = Admin { registry: self.registry.clone(), ready: ready_watch, handler: Some(handler) };
        background.spawn(chappe_node::admin::serve(self.admin, admin, ended.clone(), background.clone()));
        background.spawn(janitor::run(
            Arc::clone(self.cluster.store()),
            Arc::clone(&self.world),
            ended.clone(),
        ));
        if let Some(tls) = self.tls.clone() {
            let (reload, ended) = (signals.reload.clone(), ended.clone());
            background.spawn(async move { tls.watch(reload, ended).await });
        }
        let config = self.config.gateway(GatewayId::random(self.world.as_ref()), self.resume_key);
        let tls = self.tls.map(|tls| Arc::new(Tls(tls)) as Arc<dyn TlsSource>);
        let budget = config.drain.budget.to_std() + CLOSING;
        let (cluster, stop) = (self.cluster.clone(), signals.stop.clone());
        let (clients, verifier) = (self.clients, self.verifier);
        tasks.spawn(async move {
            cluster.run_gateway(config, verifier, tls, accepted(clients).boxed(), stop).await;
        });

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

/// The listener as a stream of sockets without Nagle's delay.
fn accepted(listener: TcpListener) -> impl Stream<Item = std::io::Result<Incoming<TcpStream>>> + Send {
    stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.and_then(|(io, peer)| {
            io.set_nodelay(true)?;
            Ok(Incoming { io, peer })
        });
        Some((accepted, listener))
    })
}

fn open_store(config: &ServeConfig, data: &DataDir, world: &Arc<dyn World>) -> Result<Arc<dyn Store>> {
    let mut embedded = EmbeddedConfig::default();
    embedded.cache_bytes = config.store.cache_bytes();
    let rows = EmbeddedRows::open(&data.store(), Arc::clone(world), embedded)
        .map_err(|error| anyhow::anyhow!("{}: {error}", error.code()))?;
    let log = LogConfig {
        slots_max: u64::from(config.quota.slots_max),
        bytes_max: config.quota.bytes_max,
        ..LogConfig::default()
    };
    Ok(Arc::new(SlotLog::new(Arc::new(rows), Arc::clone(world), log)))
}

fn router_config(config: &ServeConfig) -> RouterConfig {
    RouterConfig {
        payload_bytes_max: usize::try_from(config.limits.envelope_bytes_max).unwrap_or(usize::MAX),
        ttl_max: chappe_protocol::time::Millis::from_secs(u64::from(config.limits.ttl_seconds_max)),
        lists_max: usize::try_from(config.limits.targets_max).unwrap_or(usize::MAX),
        ..RouterConfig::default()
    }
}

fn open_tls(config: &ServeConfig, data: &DataDir) -> Result<Option<Arc<ReloadingTls>>> {
    if config.tls.off {
        return Ok(None);
    }
    let given = !config.tls.certificate.as_os_str().is_empty();
    let (certificate, key) = if given {
        (config.tls.certificate.clone(), config.tls.key.clone())
    } else {
        (data.certificate(), data.certificate_key())
    };
    Ok(Some(Arc::new(ReloadingTls::load(&certificate, &key)?)))
}

fn open_verifier(config: &ServeConfig, data: &DataDir) -> Result<TokenVerifier> {
    let given = !config.token.key.as_os_str().is_empty();
    let path = if given { config.token.key.clone() } else { data.token_public() };
    let bytes = std::fs::read(&path)
        .with_context(|| format!("token_key_unreadable: cannot read {}", path.display()))?;
    let key = match config.token.algorithm {
        TokenAlgorithm::EdDsa => TokenKey::EdDsa { public_pem: bytes },
        TokenAlgorithm::Hs256 => TokenKey::Hs256 { secret: bytes },
    };
    let mut verifier =
        TokenVerifier::new(&key).with_context(|| format!("token_key_unusable: {}", path.display()))?;
    if !config.token.issuer.is_empty() {
        verifier = verifier.issued_by(&config.token.issuer);
    }
    if !config.token.audience.is_empty() {
        verifier = verifier.for_audience(&config.token.audience);
    }
    Ok(verifier)
}

fn read_text(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
            format!(
                "port_in_use: {address} is taken; end the other process or choose another with --{setting}"
            )
        } else {
            format!("port_unusable: {address} cannot be bound; choose another with --{setting}")
        };
        anyhow::Error::new(error).context(hint)
    })
}
