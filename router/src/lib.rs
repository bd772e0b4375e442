//! Takes submits to the slot log and rings the gateways.
//! **Invariant:** *accepted* is answered only for what the store has answered as committed or duplicate: durable before visible.

pub mod config;
pub mod directory;
pub mod links;
pub mod local;
pub mod metrics;
pub mod planted;
pub mod presence;

pub use config::RouterConfig;
pub use directory::Directory;
pub use local::LocalLinks;
pub use metrics::RouterMetrics;

use chappe_protocol::internode::{Reply, Request};
use chappe_protocol::world::World;
use chappe_storage::Store;
use links::Links;
use presence::Presence;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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
    pub(crate) metrics: Arc<RouterMetrics>,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the router is killed: its tasks end where they are.
    pub(crate) killed: CancellationToken,
}

impl Router {
    /// A router over a store; any number of them may work on one store at the same time.
    pub fn new(
        config: RouterConfig,
        world: Arc<dyn World>,
        store: Arc<dyn Store>,
        links: Arc<dyn Links>,
        presence: Arc<dyn Presence>,
        metrics: Arc<RouterMetrics>,
    ) -> Self {
        let tasks = TaskTracker::new();
        let killed = CancellationToken::new();
        Self { shared: Arc::new(Shared { config, world, store, links, presence, metrics, tasks, killed }) }
    }

    /// Answers a request. Dropping the future leaves appends that have begun running.
    pub async fn handle(&self, request: Request) -> Reply {
        drop(request);
        Reply::Unavailable
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
