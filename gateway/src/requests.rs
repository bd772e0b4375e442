//! What a device asks for beside envelopes. **Invariant:** one request of a session is with the store, a few wait; each is
//! answered once, in order, and none makes a delivery wait.

use crate::handle::Handle;
use crate::shared::Gateway;
use chappe_protocol::close::{ErrorCode, ErrorFrame};
use chappe_protocol::frame::Reply;
use chappe_protocol::push::PushSettings;
use chappe_storage::StoreError;
use chappe_storage::sealed::{PushKeys, SealedError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Requests of one session that wait while another one is with the store.
const WAITING_MAX: usize = 4;
/// When to come back to a store that did not answer, and at most so much later.
const RETRY_MS: (u64, u64) = (2000, 2000);

/// What became of a request.
pub(crate) enum Done {
    /// Answer it so; the word is for the metrics.
    Reply(Reply, &'static str),
    /// The device was revoked, or its user erased: there is nobody to answer.
    Revoked,
}

/// The requests of one session; made for the first and dropped after the last.
pub(crate) struct Requests {
    gateway: Arc<Gateway>,
    handle: Arc<Handle>,
    waiting: VecDeque<(u64, PushSettings)>,
    work: Option<(u64, BoxFuture<'static, Done>)>,
}

impl Requests {
    pub(crate) fn new(gateway: Arc<Gateway>, handle: Arc<Handle>) -> Self {
        Self { gateway, handle, waiting: VecDeque::new(), work: None }
    }

    /// Whether one more may come.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Takes one, which has come now.
    pub(crate) fn admit(&mut self, id: u64, mut settings: PushSettings) {
        for target in &mut settings.targets {
            target.registered_at = self.gateway.world.wall();
        }
        self.gateway.metrics.requests_waiting.inc();
        self.waiting.push_back((id, settings));
        self.start();
    }

    /// The next that is done.
    pub(crate) fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<(u64, Done)> {
        let Some((id, work)) = &mut self.work else { return Poll::Pending };
        let done = ready!(work.poll_unpin(cx));
        let id = *id;
        self.work = None;
        self.gateway.metrics.requests_waiting.dec();
        self.start();
        Poll::Ready((id, done))
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.work.is_none()
    }

    fn start(&mut self) {
        if self.work.is_none()
            && let Some((id, settings)) = self.waiting.pop_front()
        {
            let (gateway, handle) = (Arc::clone(&self.gateway), Arc::clone(&self.handle));
            self.work = Some((id, set_push(gateway, handle, settings).boxed()));
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let left = self.waiting.len() + usize::from(self.work.is_some());
        self.gateway.metrics.requests_waiting.sub(i64::try_from(left).unwrap_or(i64::MAX));
    }
}

async fn set_push(gateway: Arc<Gateway>, handle: Arc<Handle>, settings: PushSettings) -> Done {
    let Some(keys) = &gateway.config.push_keys else {
        return push_unavailable();
    };
    let word = if settings.targets.is_empty() { "push_cleared" } else { "push_set" };
    let sealed = match seal(keys, &gateway, &handle, &settings) {
        Ok(sealed) => sealed,
        Err(done) => return done,
    };
    let budget = gateway.config.request_budget.to_std();
    let set = gateway.store.set_push_targets(handle.mailbox, &handle.device, sealed);
    match tokio::time::timeout(budget, set).await {
        Ok(Ok(true)) => Done::Reply(Reply::PushSet, word),
        Ok(Ok(false) | Err(StoreError::Revoked | StoreError::Erased)) => Done::Revoked,
        Ok(Err(StoreError::Unavailable(_) | StoreError::Unknown(_))) | Err(_) => unavailable(&gateway),
        Ok(Err(error @ (StoreError::Invalid(_) | StoreError::Quota | StoreError::CursorAhead { .. }))) => {
            tracing::error!(%error, "the store refused push settings");
            unavailable(&gateway)
        }
    }
}

fn seal(
    keys: &PushKeys,
    gateway: &Gateway,
    handle: &Handle,
    settings: &PushSettings,
) -> Result<bytes::Bytes, Done> {
    let sealed = keys.seal(settings, handle.mailbox, &handle.device, &*gateway.world);
    sealed.map_err(|error| match error {
        SealedError::TooMany | SealedError::Target => {
            refused(ErrorCode::BadRequest, 0, "field targets is out of bounds: at most 16 KiB together")
        }
        SealedError::Version | SealedError::UnknownKey | SealedError::Damaged | SealedError::Crypto => {
            tracing::error!(%error, "push settings could not be sealed");
            unavailable(gateway)
        }
    })
}

/// Refused, in words for metrics and client.
pub(crate) fn refused(code: ErrorCode, retry_after_ms: u32, message: &str) -> Done {
    Done::Reply(Reply::Error(ErrorFrame::request(code, retry_after_ms, message)), code.as_str())
}

/// Nobody has given this gateway a key for push targets.
pub(crate) fn push_unavailable() -> Done {
    refused(
        ErrorCode::PushUnavailable,
        0,
        "this server wakes no devices; its operator sets push.key to change that",
    )
}

fn unavailable(gateway: &Gateway) -> Done {
    let (least, more) = RETRY_MS;
    let wait = least + gateway.world.random_below(more);
    let wait = u32::try_from(wait).unwrap_or(u32::MAX);
    refused(ErrorCode::Unavailable, wait, "the store did not answer, and perhaps it is done; send it again")
}
