//! A probe that no router answers: the gateway looks at the store itself.
//! **Invariant:** what a revocation or an erase has ended is closed within one probe, and what was committed is delivered, with the
//! bus or without it.
//!
//! As a router does, it reads only the mailboxes that were noted as pending since the last probe, less 2 minutes.

use crate::shared::Gateway;
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::ProbeReply;
use chappe_protocol::time::UnixMillis;
use chappe_router::probe::{AGE_MAX, LOOK_BACK, PENDING_MAX, look, store_clock};
use chappe_storage::{Result, Store};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;

/// Mailboxes that are read at the same time.
const PARALLEL_MAX: usize = 16;

/// What one round of probes rests on.
pub(crate) struct Alone {
    /// The store's clock before anything was read.
    as_of: UnixMillis,
    /// The mailboxes that may have news; `None`: all of them.
    pending: Option<BTreeSet<MailboxId>>,
}

impl Alone {
    /// Reads which mailboxes were noted since `since`. `None`: the store is away too.
    pub(crate) async fn begin(gateway: &Gateway, since: Option<UnixMillis>) -> Option<Self> {
        let budget = gateway.config.request_budget.to_std();
        tokio::time::timeout(budget, Self::read(&*gateway.store, since)).await.ok()?.ok()
    }

    async fn read(store: &dyn Store, since: Option<UnixMillis>) -> Result<Self> {
        let as_of = store_clock(store).await?;
        let Some(since) = since.filter(|since| as_of < *since + AGE_MAX) else {
            return Ok(Self { as_of, pending: None });
        };
        let (mailboxes, as_of) = store.pending_since(since - LOOK_BACK).await?;
        // With too many the store has not named them all.
        let all = mailboxes.len() <= PENDING_MAX;
        Ok(Self { as_of, pending: all.then(|| mailboxes.into_iter().collect()) })
    }

    /// What a router would have answered. `None`: not all could be read.
    pub(crate) async fn answer(&self, gateway: &Gateway, known: Vec<(MailboxId, Seq)>) -> Option<ProbeReply> {
        let listed =
            |mailbox: &MailboxId| self.pending.as_ref().is_none_or(|pending| pending.contains(mailbox));
        let known = known.into_iter().filter(|(mailbox, _)| listed(mailbox));
        let store = &*gateway.store;
        let reads = stream::iter(known)
            .map(|(mailbox, head)| look(store, mailbox, head))
            .buffered(PARALLEL_MAX)
            .try_collect::<Vec<_>>();
        let news = tokio::time::timeout(gateway.config.request_budget.to_std(), reads).await.ok()?.ok()?;
        gateway.metrics.probes_alone_total.inc();
        Some(ProbeReply { as_of: self.as_of, news: news.into_iter().flatten().collect() })
    }
}
