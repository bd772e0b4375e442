//! The pusher of `chappe serve`. **Invariant:** it is the only one there is; the store's notes are its outbox across restarts.

use crate::config::ServeConfig;
use anyhow::Result;
use chappe_protocol::world::World;
use chappe_pusher::config::{Parts, Providers, ProvidersConfig};
use chappe_pusher::metrics::PusherMetrics;
use chappe_pusher::operations::Operations;
use chappe_pusher::shards::Alone;
use chappe_pusher::waker::{Hinted, Waker, WakerParts, local_hints};
use chappe_router::presence::Presence;
use chappe_router::wakes::Wakes;
use chappe_storage::Store;
use chappe_storage::sealed::PushKeys;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use prometheus::Registry;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Hints that wait at most; a sweep finds what does not fit.
const HINTS_MAX: usize = 16_384;

/// What it shares with the other roles.
pub struct Shared<'a> {
    /// Time and randomness.
    pub world: &'a Arc<dyn World>,
    /// The slot log.
    pub store: &'a Arc<dyn Store>,
    /// Who is attached.
    pub presence: Arc<dyn Presence>,
    /// Opens push targets.
    pub keys: Arc<PushKeys>,
    /// For its metrics.
    pub registry: &'a Registry,
}

/// A pusher that is about to run.
pub struct Pushing {
    waker: Waker,
    hints: BoxStream<'static, Hinted>,
    providers: Arc<Providers>,
    files: ProvidersConfig,
}

impl Pushing {
    /// Reads the providers' files. Also returns where routers put their hints.
    pub fn open(config: &ServeConfig, shared: Shared<'_>) -> Result<(Self, Arc<dyn Wakes>)> {
        let parts = Parts::system(Arc::clone(shared.world), TaskTracker::new());
        let providers = Arc::new(Providers::open(&config.providers, parts)?);
        let parts = WakerParts {
            world: Arc::clone(shared.world),
            store: Arc::clone(shared.store),
            presence: shared.presence,
            keys: shared.keys,
            waking: Arc::clone(&providers) as _,
            members: Arc::new(Alone),
            metrics: Arc::new(PusherMetrics::new(shared.registry)?),
        };
        let waker = Waker::new(config.wakes.waker(), parts);
        let (wakes, hints) = local_hints(HINTS_MAX);
        let this = Self { waker, hints: hints.boxed(), providers, files: config.providers.clone() };
        Ok((this, Arc::new(wakes)))
    }

    /// The operators' calls.
    pub fn operations(&self, token: &str) -> Operations {
        Operations { waker: self.waker.clone(), token: token.to_owned() }
    }

    /// Wakes until `stop`; then wakes in flight end.
    pub async fn run(self, reload: watch::Receiver<u64>, stop: CancellationToken) {
        let Self { waker, hints, providers, files } = self;
        let renewed = waker.clone();
        tokio::select! {
            biased;
            () = waker.run(hints, stop) => {}
            () = providers.reload_on(files, reload, || renewed.resume()) => {}
        }
    }
}
