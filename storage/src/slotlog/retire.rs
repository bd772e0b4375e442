//! Trim and erase. **Invariant:** the floor rises before a row goes, heads never go; an erased mailbox's register is closed
//! before its rows go, so nothing can be appended behind them.

use super::stats::add;
use super::{SlotLog, partition};
use crate::Trimmed;
use crate::error::{Result, StoreError};
#[cfg(feature = "testing")]
use crate::planted::Planted;
use crate::rows::{Floor, Rows};
use chappe_protocol::id::{Bucket, MailboxId, Seq, UserId};

/// Rows that one step of an age check reads.
const AGE_ROWS: usize = 32;
/// Their payload bytes.
const AGE_BYTES: usize = 256 * 1024;
/// Tries to close a register under contention.
const SEALS_MAX: usize = 50;

impl<R: Rows> SlotLog<R> {
    pub(super) async fn trim_mailbox(&self, mailbox: MailboxId) -> Result<Trimmed> {
        let floor = self.rows.floor(mailbox).await?;
        let known = self.serial_head(mailbox).await?;
        if known.erased() {
            return Err(StoreError::Erased);
        }
        let (unsealed, _) = known.next(self.config.shape);
        let passed = self.passed_by_all(mailbox).await?;
        let mut to = floor;
        while to.bucket < unsealed && to.bucket.0 - floor.bucket.0 < self.config.trim_buckets_max {
            let passed = passed.is_some_and(|seq| seq >= self.config.shape.last(to.bucket));
            if !passed && !self.aged(mailbox, to.bucket).await? {
                break;
            }
            let Some(head) = self.register(mailbox, to.bucket.0).await? else { break };
            to = Floor { bucket: Bucket(to.bucket.0 + 1), bytes_total: head.bytes_total };
        }
        // A trim that died between the floor and its last row left rows behind, in as many buckets at most as one trim
        // takes, since the next one removes them before it raises the floor again.
        let again = floor.bucket.0.saturating_sub(self.config.trim_buckets_max);
        let clean = self.cache.clean(mailbox).map_or(again, |clean| clean.0.clamp(again, floor.bucket.0));
        if clean < floor.bucket.0 {
            // It was read plainly, and its raising may have stopped half-way: a reader that misses it would take what is
            // deleted here for lost. Answered by a compare-and-set it is everywhere.
            self.rows.raise_floor(mailbox, floor).await?;
            self.delete_buckets(mailbox, clean, floor.bucket).await?;
        }
        if to.bucket > floor.bucket {
            let raised = self.rows.raise_floor(mailbox, to).await?;
            self.cache.learn_floor(mailbox, raised);
            self.delete_buckets(mailbox, floor.bucket.0, to.bucket).await?;
        }
        let buckets = to.bucket.0 - floor.bucket.0;
        add(&self.counters.trimmed, usize::try_from(buckets).unwrap_or(usize::MAX));
        Ok(Trimmed { buckets, floor: to.bucket })
    }

    async fn delete_buckets(&self, mailbox: MailboxId, from: u64, to: Bucket) -> Result<()> {
        for bucket in from..to.0 {
            self.rows.delete_slots(partition(mailbox, Bucket(bucket))).await?;
        }
        self.cache.learn_clean(mailbox, to);
        Ok(())
    }

    /// The slot up to which every live device needs nothing any more; `None`: no device counts.
    async fn passed_by_all(&self, mailbox: MailboxId) -> Result<Option<Seq>> {
        #[cfg(feature = "testing")]
        if self.planted(Planted::TrimIgnoresCursors) {
            return Ok(Some(Seq::MAX));
        }
        let now = self.rows.now();
        let (_, devices) = self.rows.devices(mailbox).await?;
        let mut passed = None;
        for (device, session_at) in devices {
            if device.revoked || session_at + self.config.silent_ms_max < now {
                continue;
            }
            let cursor = self.rows.cursor(mailbox, &device.device).await?.max(device.since);
            passed = Some(passed.map_or(cursor, |passed: Seq| passed.min(cursor)));
        }
        Ok(passed)
    }

    /// Whether all payloads of a sealed bucket are past their time. The last slot first: mostly it is the youngest.
    async fn aged(&self, mailbox: MailboxId, bucket: Bucket) -> Result<bool> {
        let now = self.rows.now();
        let partition = partition(mailbox, bucket);
        let last = self.config.shape.last(bucket);
        let newest = self.rows.slots(partition, Seq(last.0 - 1), 1, 1, true).await?;
        if newest.iter().any(|row| row.entry.expires_at > now) {
            return Ok(false);
        }
        let mut after = Seq(self.config.shape.first(bucket).0 - 1);
        loop {
            let rows = self.rows.slots(partition, after, AGE_ROWS, AGE_BYTES, true).await?;
            let Some(reached) = rows.last().map(|row| row.seq) else { return Ok(true) };
            if rows.iter().any(|row| row.entry.expires_at > now) {
                return Ok(false);
            }
            after = reached;
        }
    }

    /// Erases a user. Payloads that several mailboxes share go by their own time: the other mailboxes still need them,
    /// and this one's references are gone.
    pub(super) async fn erase_user(&self, user: &UserId) -> Result<()> {
        // At SERIAL: one that a plain read misses would be told as erased, and be there for the next one.
        let found = self.rows.user(user, true).await?;
        let Some(known) = found.filter(|known| !known.erased) else { return Ok(()) };
        let mailbox = known.mailbox;
        let floor = self.rows.floor(mailbox).await?;
        let last = self.close(mailbox).await?;
        for bucket in floor.bucket.0.saturating_sub(self.config.trim_buckets_max)..=last.0 {
            self.rows.delete_slots(partition(mailbox, Bucket(bucket))).await?;
        }
        self.rows.delete_devices(mailbox).await?;
        // Probes look at the mailbox and end the sessions that are still open.
        self.rows.add_pending(mailbox).await?;
        self.rows.mark_erased(user, mailbox).await
    }

    /// Closes the register that the next append would compare; returns its bucket.
    async fn close(&self, mailbox: MailboxId) -> Result<Bucket> {
        for _ in 0..SEALS_MAX {
            let known = self.serial_head(mailbox).await?;
            if known.erased() {
                return Ok(known.bucket);
            }
            let (bucket, expected) = known.next(self.config.shape);
            #[cfg(feature = "testing")]
            if self.planted(Planted::EraseWithoutSeal) {
                return Ok(bucket);
            }
            // Refused or closed: the next look at the head tells.
            match self.rows.seal(partition(mailbox, bucket), expected).await {
                Ok(_) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unknown("the mailbox is too busy to be closed; erase again".into()))
    }
}
