//! Takes submits to the slot log and rings the gateways.
//! **Invariant:** *accepted* is answered only for what the store has answered as committed or duplicate: durable before visible.

mod append;
pub mod config;
mod devices;
pub mod directory;
mod doorbells;
mod fanout;
pub mod janitor;
pub mod links;
pub mod local;
pub mod metrics;
pub mod nats;
pub mod operations;
pub mod parts;
mod permits;
pub mod planted;
pub mod presence;
pub mod probe;
pub mod process;
pub mod redis;
mod rounds;
pub mod settings;
pub mod store_metrics;
mod submit;
pub mod trace;
pub mod wakes;

pub use config::RouterConfig;
pub use directory::Directory;
pub use local::LocalLinks;
pub use metrics::{PresenceMetrics, RouterMetrics};

use chappe_protocol::id::{Bucket, MailboxId};
use chappe_protocol::internode::{Reply, Request};
use chappe_protocol::time::Time;
use chappe_protocol::world::World;
use chappe_storage::Store;
use chappe_storage::StoreError;
use devices::DeviceSets;
use links::Links;
use permits::Bound;
use presence::Presence;
use probe::PendingCache;
use rounds::Rounds;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trace::Traces;
use wakes::{LocalWakes, Wakes};

/// A router; clones are the same router.
#[derive(Clone)]
pub struct Router {
    shared: Arc<Shared>,
}

/// What all tasks of a router share.
pub(crate) struct Shared {
    pub(crate) config: RouterConfig,
    pub(crate) world: Arc<dyn World>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) links: Arc<dyn Links>,
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) wakes: Arc<dyn Wakes>,
    pub(crate) metrics: Arc<RouterMetrics>,
    /// Entries and payload bytes of all submits under way.
    pub(crate) queue: Bound,
    /// Doorbells that are being rung.
    pub(crate) bells: Bound,
    /// Appends under way in the store.
    pub(crate) appends: Semaphore,
    /// Probes under way.
    pub(crate) probes: Semaphore,
    pub(crate) rounds: Rounds,
    pub(crate) device_sets: DeviceSets,
    pub(crate) pending: PendingCache,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the router is killed: its tasks end where they are.
    pub(crate) killed: CancellationToken,
}

impl Router {
    /// A router over a store; any number of them may work on one store at the same time. Nobody hears its wake hints.
    pub fn new(
        config: RouterConfig,
        world: Arc<dyn World>,
        store: Arc<dyn Store>,
        links: Arc<dyn Links>,
        presence: Arc<dyn Presence>,
        metrics: Arc<RouterMetrics>,
    ) -> Self {
        Self::with_wakes(config, world, store, links, presence, metrics, Arc::new(LocalWakes::default()))
    }

    /// A router that hints to these wakes.
    pub fn with_wakes(
        config: RouterConfig,
        world: Arc<dyn World>,
        store: Arc<dyn Store>,
        links: Arc<dyn Links>,
        presence: Arc<dyn Presence>,
        metrics: Arc<RouterMetrics>,
        wakes: Arc<dyn Wakes>,
    ) -> Self {
        let (m, c) = (&metrics, &config);
        m.queue_entries_max.set(i64::try_from(c.queue_entries_max).unwrap_or(i64::MAX));
        let shared = Shared {
            queue: Bound::new(
                c.queue_entries_max,
                c.queue_bytes_max,
                m.queue_entries.clone(),
                m.queue_bytes.clone(),
            ),
            bells: Bound::new(
                c.doorbells_max,
                c.doorbell_bytes_max,
                m.doorbell_queue.clone(),
                m.doorbell_bytes.clone(),
            ),
            appends: Semaphore::new(c.appends_in_flight_max.clamp(1, Semaphore::MAX_PERMITS)),
            probes: Semaphore::new(c.probes_in_flight_max.clamp(1, Semaphore::MAX_PERMITS)),
            rounds: Rounds::default(),
            device_sets: DeviceSets::default(),
            pending: PendingCache::default(),
            tasks: TaskTracker::new(),
            killed: CancellationToken::new(),
            config,
            world,
            store,
            links,
            presence,
            wakes,
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// What became of envelopes lately.
    pub fn traces(&self) -> Arc<Traces> {
        Arc::clone(&self.shared.config.traces)
    }

    /// Answers a request. Dropping the future leaves appends that have begun running.
    pub async fn handle(&self, request: Request) -> Reply {
        let shared = &self.shared;
        match request {
            Request::Submit(request) => submit::submit(shared, request).await,
            Request::Ephemeral(request) => doorbells::ephemeral(shared, request),
            Request::Probe(request) => self.in_time(probe::answer(shared, request)).await,
            Request::Base(mailbox) => self.in_time(self.base(mailbox)).await,
            Request::Attached(request) => doorbells::attached(shared, request).await,
        }
    }

    /// A store that does not answer a read must not keep what the request holds; reads can be dropped anywhere.
    async fn in_time(&self, answer: impl Future<Output = Reply>) -> Reply {
        let shared = &self.shared;
        let deadline = shared.world.now() + shared.config.budget_max;
        shared.within(deadline, answer).await.unwrap_or(Reply::Unavailable)
    }

    /// The head bucket of a mailbox. A head that is a moment old only makes later appends look back further.
    async fn base(&self, mailbox: MailboxId) -> Reply {
        match self.shared.store.head(mailbox, false).await {
            Ok(head) => Reply::Base(self.shared.config.shape.bucket_of(head)),
            // Whatever comes next is refused.
            Err(StoreError::Erased) => Reply::Base(Bucket(0)),
            Err(_) => Reply::Unavailable,
        }
    }

    /// Starts a request on the router's own tasks; the answer is `None` if the router was killed meanwhile.
    /// `None` at once: the router is closed and takes nothing.
    pub(crate) fn serve(
        &self,
        request: Request,
    ) -> Option<impl Future<Output = Option<Reply>> + Send + use<>> {
        if self.is_closed() {
            return None;
        }
        let router = self.clone();
        let killed = self.shared.killed.clone();
        let task = async move { killed.run_until_cancelled(router.handle(request)).await };
        let reply = self.shared.tasks.spawn(task);
        Some(async move { reply.await.ok().flatten() })
    }

    /// Takes no more requests and waits for those under way and their doorbells.
    pub async fn close(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Ends all tasks where they are, as the death of the process would; what was sent to the store may still arrive.
    pub fn kill(&self) {
        self.shared.tasks.close();
        self.shared.killed.cancel();
    }

    /// Whether [`Router::close`] or [`Router::kill`] was called.
    pub fn is_closed(&self) -> bool {
        self.shared.tasks.is_closed()
    }
}

impl Shared {
    /// Waits for the future until the deadline; `None`: it was dropped.
    pub(crate) async fn within<F: Future>(&self, deadline: Time, future: F) -> Option<F::Output> {
        let left = deadline - self.world.now();
        tokio::time::timeout(left.to_std(), future).await.ok()
    }
}
