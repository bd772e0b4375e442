//! Any number of gateways and routers over one store, in one process. **Invariant:** they share nothing but the store,
//! the links and the presence, as they would on many machines.

use anyhow::Result;
use chappe_gateway::quic::QuicDoor;
use chappe_gateway::{GatewayConfig, GatewayMetrics, Incoming, Parts, TlsSource, TokenVerifier};
use chappe_node::spans::Spans;
use chappe_protocol::internode::Doorbell;
use chappe_protocol::world::World;
use chappe_router::links::Links;
use chappe_router::presence::Presence;
use chappe_router::trace::Traces;
use chappe_router::wakes::{LocalWakes, Wakes};
use chappe_router::{Directory, LocalLinks, Router, RouterConfig, RouterMetrics};
use chappe_storage::Store;
use futures_util::Stream;
use prometheus::Registry;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Leases that the directory holds at most.
const LEASES_MAX: usize = 1_000_000;
/// Doorbells that wait for a gateway at most.
const BELLS_MAX: usize = 16_384;

/// What a gateway's ports need beside the sockets of its TCP port.
#[derive(Default)]
pub struct Doors {
    /// TLS; `None`: plain sockets.
    pub tls: Option<Arc<dyn TlsSource>>,
    /// The UDP port; `None`: WebSocket only.
    pub quic: Option<QuicDoor>,
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doors").field("quic", &self.quic).finish_non_exhaustive()
    }
}

/// The roles of one process.
#[derive(Clone)]
pub struct Cluster {
    world: Arc<dyn World>,
    store: Arc<dyn Store>,
    local: Arc<LocalLinks>,
    links: Arc<dyn Links>,
    presence: Arc<dyn Presence>,
    router_metrics: Arc<RouterMetrics>,
    gateway_metrics: Arc<GatewayMetrics>,
    traces: Arc<Traces>,
}

impl Cluster {
    /// A cluster without routers and gateways yet. `wrap` may put something between both, such as a simulation's faults.
    pub fn new(
        world: Arc<dyn World>,
        store: Arc<dyn Store>,
        registry: &Registry,
        wrap: impl FnOnce(Arc<LocalLinks>) -> Arc<dyn Links>,
    ) -> Result<Self> {
        let router_metrics = Arc::new(RouterMetrics::new(registry)?);
        let gateway_metrics = Arc::new(GatewayMetrics::new(registry)?);
        let local = Arc::new(LocalLinks::new(Arc::clone(&router_metrics)));
        let links = wrap(Arc::clone(&local));
        let presence = Arc::new(Directory::new(Arc::clone(&world), LEASES_MAX, Arc::clone(&router_metrics)));
        let traces = Arc::default();
        Ok(Self { world, store, local, links, presence, router_metrics, gateway_metrics, traces })
    }

    /// The same, whose gateways and routers tell of spans, too; before any of them is added.
    #[must_use]
    pub fn telling(self, spans: Spans) -> Self {
        Self { traces: Arc::new(Traces::telling(spans)), ..self }
    }

    /// Adds a router under a name that decides its affinity; its hints reach nobody.
    pub fn add_router(&self, name: u64, config: RouterConfig) -> Router {
        self.add_router_with(name, config, Arc::new(LocalWakes::default()))
    }

    /// Adds a router that tells `wakes` whom to wake.
    pub fn add_router_with(&self, name: u64, mut config: RouterConfig, wakes: Arc<dyn Wakes>) -> Router {
        config.traces = self.traces();
        let router = Router::with_wakes(
            config,
            Arc::clone(&self.world),
            Arc::clone(&self.store),
            Arc::clone(&self.links),
            Arc::clone(&self.presence),
            Arc::clone(&self.router_metrics),
            wakes,
        );
        self.local.add_router(name, router.clone());
        router
    }

    /// The links within the process.
    pub fn local(&self) -> &Arc<LocalLinks> {
        &self.local
    }

    /// What gateways and routers remember of envelopes.
    pub fn traces(&self) -> Arc<Traces> {
        Arc::clone(&self.traces)
    }

    /// Who is attached.
    pub fn presence(&self) -> Arc<dyn Presence> {
        Arc::clone(&self.presence)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Runs a gateway until `drain` and its drain are over; its doorbells reach it from the first poll on.
    pub async fn run_gateway<S, IO>(
        &self,
        config: GatewayConfig,
        verifier: Arc<TokenVerifier>,
        doors: Doors,
        incoming: S,
        drain: CancellationToken,
    ) where
        S: Stream<Item = std::io::Result<Incoming<IO>>> + Send,
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let id = config.id;
        let bells: mpsc::Receiver<Doorbell> = self.local.add_gateway(id, BELLS_MAX);
        let parts = Parts {
            world: Arc::clone(&self.world),
            store: Arc::clone(&self.store),
            links: Arc::clone(&self.links),
            presence: Arc::clone(&self.presence),
            bells,
            alarms: self.local.alarms(),
            verifier,
            tls: doors.tls,
            quic: doors.quic,
            metrics: Arc::clone(&self.gateway_metrics),
            traces: Arc::clone(&self.traces),
        };
        chappe_gateway::run(config, parts, incoming, drain).await;
        self.local.remove_gateway(id);
    }
}
