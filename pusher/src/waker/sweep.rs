//! Finds whom no hint told of: reads the store's notes by shards. **Invariant:** a shard's watermark is raised when every mailbox that
//! was noted before it has been looked at, and whoever waits on has a note of a later minute.

use super::Shared;
use super::settled::Visit;
use crate::look::Ask;
use crate::shards::{BEAT, View};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_storage::{PENDING_PAGE_MAX, PendingFrom, Result};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError};

/// A sweep begins so long before the last one's clock: notes are of a minute, are written up to 20 s before their slots, and
/// slots are to be 20 s old.
const OVERLAP: Millis = Millis::from_secs(120);
/// Notes are kept for so long; without a watermark all of them are read.
const KEPT: Millis = Millis::from_secs(24 * 3600);
/// The watermark is written down so often.
const WRITE_EVERY: Millis = Millis::from_secs(15);
/// Shards that are swept at once.
const SHARDS_AT_ONCE: usize = 4;
/// A sweep that takes longer is told of.
const LONG: Millis = Millis::from_secs(30);

/// How far a shard was swept.
#[derive(Debug, Clone, Copy)]
struct Mark {
    upto: UnixMillis,
    written_at: Option<Time>,
}

impl Shared {
    /// Sweeps this pusher's shards, and says to the others that it lives.
    pub(super) async fn sweep_on(self: Arc<Self>) {
        let me = self.world.random_below(u64::MAX);
        let mut view = View::new(me, self.world.now());
        let mut marks: BTreeMap<u16, Mark> = BTreeMap::new();
        let mut swept_at: Option<Time> = None;
        loop {
            let members = self.stop.run_until_cancelled(self.members.beat(me)).await;
            let Some(members) = members else { break };
            view.heard(members, self.world.now());
            let owned = view.owned(self.eyes.store.pending_shards());
            self.owned.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&owned);
            self.metrics.shards.set(i64::try_from(owned.len()).unwrap_or(i64::MAX));
            marks.retain(|shard, _| owned.binary_search(shard).is_ok());
            let due = swept_at.is_none_or(|at| self.world.now() - at >= self.config.sweep_every);
            if due {
                swept_at = Some(self.world.now());
                let sweeping = self.sweep(&owned, &mut marks);
                // The beats go on while a long sweep does.
                let beating = self.beat_on(me);
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => break,
                    () = sweeping => {}
                    () = beating => {}
                }
            }
            let pause = Millis(BEAT.0 / 2 + self.world.random_below(BEAT.0 / 2));
            if self.stop.run_until_cancelled(tokio::time::sleep(pause.to_std())).await.is_none() {
                break;
            }
        }
        self.members.leave(me).await;
    }

    async fn beat_on(&self, me: u64) {
        loop {
            tokio::time::sleep(BEAT.to_std()).await;
            self.members.beat(me).await;
        }
    }

    async fn sweep(&self, owned: &[u16], marks: &mut BTreeMap<u16, Mark>) {
        let started = self.world.now();
        let shards: Vec<(u16, Option<Mark>)> =
            owned.iter().map(|shard| (*shard, marks.get(shard).copied())).collect();
        let sweeps = futures_util::stream::iter(shards)
            .map(|(shard, mark)| async move { (shard, self.sweep_shard(shard, mark).await) });
        let mut sweeps = pin!(sweeps.buffer_unordered(SHARDS_AT_ONCE));
        let mut behind = Millis(0);
        while let Some((shard, swept)) = sweeps.next().await {
            match swept {
                Ok(mark) => {
                    marks.insert(shard, mark);
                }
                Err(error) => {
                    self.metrics.sweeps_failed.inc();
                    tracing::debug!(%error, "a shard could not be swept");
                    let upto = marks.get(&shard).map(|mark| mark.upto);
                    let since = upto.map_or(0, |upto| self.clock().now().0.saturating_sub(upto.0));
                    behind = behind.max(Millis(since));
                }
            }
        }
        let took = self.world.now() - started;
        self.metrics.swept(took, behind.max(took));
        if took >= LONG {
            tracing::info!(seconds = took.0 / 1000, shards = owned.len(), "a long sweep has ended");
        }
    }

    async fn sweep_shard(&self, shard: u16, mark: Option<Mark>) -> Result<Mark> {
        let store = &self.eyes.store;
        let now = self.clock().now();
        let upto = match mark {
            Some(mark) => mark.upto,
            None => store.swept(shard).await?.unwrap_or(now - KEPT),
        };
        let old = upto + OVERLAP < now;
        let mut from = Some(PendingFrom::since(upto - OVERLAP));
        let mut as_of = None;
        let mut complete = true;
        while let Some(next) = from {
            let asked = self.world.wall();
            let page = store.pending_in_shard(shard, next, PENDING_PAGE_MAX).await?;
            self.clock().observe(page.as_of, asked);
            as_of.get_or_insert(page.as_of);
            self.metrics.notes.inc_by(page.mailboxes.len() as u64);
            let visits = futures_util::stream::iter(page.mailboxes).map(|mailbox| self.visit(mailbox, !old));
            let mut visits = pin!(visits.buffer_unordered(self.config.looks_at_once_max));
            while let Some(visited) = visits.next().await {
                complete &= visited;
            }
            from = page.next;
        }
        let written_at = mark.and_then(|mark| mark.written_at);
        let Some(as_of) = as_of.filter(|_| complete) else { return Ok(Mark { upto, written_at }) };
        let now = self.world.now();
        let fresh = written_at.filter(|at| now - *at < WRITE_EVERY);
        if fresh.is_none() {
            store.raise_swept(shard, as_of).await?;
        }
        Ok(Mark { upto: as_of, written_at: fresh.or(Some(now)) })
    }

    /// Looks at a mailbox that is noted. `false`: it has to be looked at once more before the watermark is raised.
    async fn visit(&self, mailbox: MailboxId, noted: bool) -> bool {
        let visit = self.settled().visit(mailbox, self.clock().now());
        let head = match visit {
            Visit::Rest => return true,
            Visit::Look => None,
            Visit::Unless(head) => Some(head),
        };
        let looked = async {
            if let Some(head) = head
                && self.eyes.store.head(mailbox, false).await? == head
            {
                return Ok(None);
            }
            self.eyes.look(Ask { mailbox, hinted: Seq(0) }).await.map(Some)
        };
        match looked.await {
            Ok(None) => true,
            Ok(Some(look)) => self.act(mailbox, look, Vec::new(), noted).await,
            Err(error) => {
                tracing::debug!(%error, "a mailbox could not be looked at");
                self.metrics.looks_failed.inc();
                self.settled().settle(mailbox, Seq(0), self.clock().now());
                false
            }
        }
    }
}
