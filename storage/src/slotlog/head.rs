//! Finding the head of a mailbox. **Invariant:** the buckets that have a register are 0 up to some last one without a gap,
//! since each opens only when the one before it is full and no register is ever deleted; so few reads find the last.

use super::cache::Known;
use super::stats::add;
use super::{SlotLog, partition};
use crate::error::{Result, StoreError};
use crate::rows::{Head, Rows};
use chappe_protocol::id::{Bucket, MailboxId, Seq};

impl<R: Rows> SlotLog<R> {
    /// The head for a caller outside.
    pub(super) async fn open_head(&self, mailbox: MailboxId, serial: bool) -> Result<Seq> {
        let fresh = |known: &Known| self.world.now() - known.at <= self.config.head_age_ms_max;
        let known = match self.cache.known(mailbox).filter(|known| !serial && fresh(known)) {
            Some(known) => known,
            None => self.serial_head(mailbox).await?,
        };
        if known.erased() { Err(StoreError::Erased) } else { Ok(known.seq()) }
    }

    /// The head as remembered, else as found. May be old: only for what the database compares again.
    pub(super) async fn any_head(&self, mailbox: MailboxId) -> Result<Known> {
        match self.cache.known(mailbox) {
            Some(known) => Ok(known),
            None => self.serial_head(mailbox).await,
        }
    }

    /// The head at SERIAL: everything committed before this call began is at or below it.
    pub(super) async fn serial_head(&self, mailbox: MailboxId) -> Result<Known> {
        let start = match self.cache.known(mailbox) {
            Some(known) => known.bucket,
            None => self.rows.hint(mailbox).await?.max(self.rows.floor(mailbox).await?.bucket),
        };
        let (bucket, head) = match self.some_register(mailbox, start).await? {
            Some((bucket, head, above)) => self.last_register(mailbox, bucket, head, above).await?,
            None => (Bucket(0), None),
        };
        if bucket > start {
            add(&self.counters.galloped, 1);
        }
        let known = Known { bucket, head, at: self.world.now() };
        self.cache.learn(mailbox, known);
        Ok(known)
    }

    pub(super) async fn register(&self, mailbox: MailboxId, bucket: u64) -> Result<Option<Head>> {
        add(&self.counters.head_reads, 1);
        self.rows.head(partition(mailbox, Bucket(bucket))).await
    }

    /// Any register at or below `start`, and the lowest bucket known to have none. Downwards in growing steps: the floor
    /// may stand one bucket beyond the head, and a hint may have outlived a restored backup.
    async fn some_register(
        &self,
        mailbox: MailboxId,
        start: Bucket,
    ) -> Result<Option<(u64, Head, Option<u64>)>> {
        let (mut at, mut above, mut step) = (start.0, None, 1);
        loop {
            if let Some(head) = self.register(mailbox, at).await? {
                return Ok(Some((at, head, above)));
            }
            if at == 0 {
                return Ok(None);
            }
            above = Some(at);
            at = at.saturating_sub(step);
            step *= 2;
        }
    }

    /// The last register at or above `low`: upwards in growing steps, then by halves.
    async fn last_register(
        &self,
        mailbox: MailboxId,
        low: u64,
        head: Head,
        above: Option<u64>,
    ) -> Result<(Bucket, Option<Head>)> {
        let (mut low, mut head, mut above, mut step) = (low, head, above, 1);
        while head.seq == self.config.shape.last(Bucket(low)) && above != Some(low + 1) {
            let probe = above.map_or(low + step, |above| low + (above - low) / 2);
            match self.register(mailbox, probe).await? {
                Some(found) => (low, head) = (probe, found),
                None => above = Some(probe),
            }
            step *= 2;
        }
        Ok((Bucket(low), Some(head)))
    }
}
