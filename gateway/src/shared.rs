//! What all tasks of a gateway share. **Invariant:** every map in it is bounded.

use crate::bases::Bases;
use crate::config::{GatewayConfig, Parts};
use crate::cursors::Cursors;
use crate::limits::Bucket;
use crate::metrics::GatewayMetrics;
use crate::pace::Pace;
use crate::quic::QuicDoor;
use crate::reads::Reads;
use crate::registry::Registry;
use crate::resume::ResumeKey;
use crate::sources::Sources;
use crate::timers::Timers;
use crate::users::Users;
use crate::{TlsSource, TokenVerifier};
use chappe_protocol::internode::Doorbell;
use chappe_protocol::world::World;
use chappe_router::links::Links;
use chappe_router::presence::Presence;
use chappe_router::trace::Traces;
use chappe_storage::Store;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) struct Gateway {
    pub(crate) config: GatewayConfig,
    pub(crate) world: Arc<dyn World>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) links: Arc<dyn Links>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) verifier: Arc<TokenVerifier>,
    pub(crate) tls: Option<Arc<dyn TlsSource>>,
    pub(crate) quic: Option<QuicDoor>,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) traces: Arc<Traces>,
    pub(crate) resume: ResumeKey,
    pub(crate) registry: Registry,
    pub(crate) timers: Timers,
    pub(crate) users: Users,
    pub(crate) bases: Arc<Bases>,
    pub(crate) reads: Reads,
    pub(crate) cursors: Cursors,
    pub(crate) tasks: TaskTracker,
    /// Everything ends where it is: the gateway was dropped, or its drain took too long.
    pub(crate) killed: CancellationToken,
    /// No new sessions.
    pub(crate) drain: CancellationToken,
    /// Ask the routers what is new, now.
    pub(crate) probe_now: Notify,
    /// Sockets from admission to their end.
    pub(crate) connections: AtomicUsize,
    pub(crate) admission: Mutex<Bucket>,
    pub(crate) sources: Sources,
    /// How many attaches are with the store.
    pub(crate) pace: Pace,
}

impl Gateway {
    /// Splits off the doorbells and their alarms, which one task each owns.
    pub(crate) fn new(
        config: GatewayConfig,
        parts: Parts,
        drain: CancellationToken,
    ) -> (Arc<Self>, mpsc::Receiver<Doorbell>, watch::Receiver<u64>) {
        let Parts { world, store, links, presence, bells, alarms, verifier, tls, quic, metrics, traces } =
            parts;
        let admission = Mutex::new(Bucket::full(world.now(), config.handshakes_burst));
        let sources = Sources::new(world.now(), config.source_handshakes_per_second);
        let gateway = Self {
            resume: ResumeKey::new(&config.resume_key),
            cursors: Cursors::new(Arc::clone(&store), Arc::clone(&metrics)),
            reads: Reads::new(Arc::clone(&store), Arc::clone(&metrics)),
            pace: Pace::new(metrics.attaches_max.clone()),
            config,
            world,
            store,
            links,
            presence,
            verifier,
            tls,
            quic,
            metrics,
            traces,
            registry: Registry::default(),
            timers: Timers::default(),
            users: Users::default(),
            bases: Arc::default(),
            tasks: TaskTracker::new(),
            killed: CancellationToken::new(),
            drain,
            probe_now: Notify::new(),
            connections: AtomicUsize::new(0),
            admission,
            sources,
        };
        (Arc::new(gateway), bells, alarms)
    }

    /// Whether a test has planted this.
    #[cfg(feature = "testing")]
    pub(crate) fn has_bug(&self, bug: crate::faults::Bug) -> bool {
        self.config.bug == Some(bug)
    }
}
