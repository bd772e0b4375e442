//! The slot log: [`Store`] once, over the [`Rows`] of any database, as `delivery.md` ("Store") lays it down.
//! **Invariant:** a cached head is never trusted to decide: the database compares it inside the append. Dropping any
//! call at any await leaves nothing to repair: what it may have written is found again by its ids.
//!
//! Several `SlotLog`s over one `Rows` (routers) need to know nothing of each other.

mod append;
mod cache;
mod devices;
mod head;
mod read;
mod retire;
mod stats;
mod wakes;

use crate::error::Result;
#[cfg(feature = "testing")]
use crate::planted::Planted;
use crate::rows::{Partition, Rows};
use crate::{
    AppendReply, Attach, Attached, DeviceSet, Entry, PendingFrom, PendingPage, Store, Trimmed, User, Woken,
};
use async_trait::async_trait;
use bytes::Bytes;
use cache::{Cache, Known};
use chappe_protocol::envelope::Page;
use chappe_protocol::id::{
    Bucket, BucketShape, CursorTag, DeviceId, EnvelopeId, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use sha2::{Digest, Sha256};
use stats::Counters;
pub use stats::LogStats;
use std::sync::Arc;

/// Settings of a [`SlotLog`]. All logs over one database must agree on `shape`.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Slots per bucket.
    pub shape: BucketShape,
    /// Slots above the floor that a mailbox may hold; 100,000.
    pub slots_max: u64,
    /// Payload bytes above the floor that a mailbox may hold; 1 GiB.
    pub bytes_max: u64,
    /// Live devices of a mailbox; one more is refused with `Quota`. 256.
    pub devices_max: usize,
    /// Mailboxes whose heads are remembered, at most; 65,536 (about 100 bytes each).
    pub cached_mailboxes_max: usize,
    /// How old a head may be that answers `head(…, serial = false)`; 1 s.
    pub head_age_ms_max: Millis,
    /// A pending row is not written again within this time; 10 s (it must be fresher than 20 s at *accepted*).
    pub pending_repeat_ms: Millis,
    /// A device silent for longer stops counting for trims; 45 days.
    pub silent_ms_max: Millis,
    /// Buckets that one trim deletes at most; 16.
    pub trim_buckets_max: u64,
    /// A defect, to see a test turn red.
    #[cfg(feature = "testing")]
    pub planted: Option<Planted>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            shape: BucketShape::PRODUCTION,
            slots_max: 100_000,
            bytes_max: 1 << 30,
            devices_max: 256,
            cached_mailboxes_max: 65_536,
            head_age_ms_max: Millis::from_secs(1),
            pending_repeat_ms: Millis::from_secs(10),
            silent_ms_max: Millis::from_secs(45 * 24 * 3600),
            trim_buckets_max: 16,
            #[cfg(feature = "testing")]
            planted: None,
        }
    }
}

/// The store of a role: algorithms over rows, with a small bounded cache of heads.
pub struct SlotLog<R> {
    rows: Arc<R>,
    world: Arc<dyn World>,
    config: LogConfig,
    cache: Cache,
    counters: Counters,
}

impl<R: Rows> SlotLog<R> {
    /// A log over these rows.
    pub fn new(rows: Arc<R>, world: Arc<dyn World>, config: LogConfig) -> Self {
        let cache = Cache::new(config.cached_mailboxes_max);
        Self { rows, world, config, cache, counters: Counters::default() }
    }

    /// What happened so far, for metrics and for tests that must not pass vacuously.
    pub fn stats(&self) -> LogStats {
        self.counters.snapshot()
    }

    /// The settings.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    #[cfg(feature = "testing")]
    fn planted(&self, planted: Planted) -> bool {
        self.config.planted == Some(planted)
    }
}

fn partition(mailbox: MailboxId, bucket: Bucket) -> Partition {
    Partition { mailbox, bucket }
}

#[async_trait]
impl<R: Rows> Store for SlotLog<R> {
    async fn user(&self, user: &UserId) -> Result<Option<User>> {
        self.rows.user(user, false).await
    }

    async fn create_user(&self, user: &UserId) -> Result<User> {
        let (fresh, now) = (MailboxId::random(&*self.world), self.world.now());
        let made = self.rows.create_user(user, fresh).await?;
        if made.mailbox == fresh {
            // Nobody has appended to a mailbox that was not there: where its head is looked for is known.
            self.cache.learn(fresh, Known { bucket: Bucket(0), head: None, at: now });
        }
        Ok(made)
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<DeviceSet> {
        let (version, rows) = self.rows.devices(mailbox).await?;
        Ok(DeviceSet { version, devices: rows.into_iter().map(|(device, _)| device).collect() })
    }

    async fn attach(&self, mailbox: MailboxId, device: &DeviceId, attach: Attach) -> Result<Attached> {
        let done = self.attach_device(mailbox, device, attach).await;
        self.unless_erased(mailbox, done).await
    }

    async fn glance(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        cursor: Option<Seq>,
    ) -> Result<Option<Attached>> {
        self.glance_device(mailbox, device, cursor).await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        let done = self.revoke_device(mailbox, device).await;
        self.unless_erased(mailbox, done).await
    }

    async fn append(
        &self,
        mailbox: MailboxId,
        entries: &[Entry],
        base: Option<Bucket>,
    ) -> Result<AppendReply> {
        self.append_entries(mailbox, entries, base).await
    }

    async fn find(
        &self,
        mailbox: MailboxId,
        ids: &[EnvelopeId],
        base: Option<Bucket>,
    ) -> Result<Vec<Option<Seq>>> {
        self.find_envelopes(mailbox, ids, base).await
    }

    async fn head(&self, mailbox: MailboxId, serial: bool) -> Result<Seq> {
        self.open_head(mailbox, serial).await
    }

    async fn read(&self, mailbox: MailboxId, after: Seq, rows_max: usize, bytes_max: usize) -> Result<Page> {
        self.read_page(mailbox, after, rows_max, bytes_max).await
    }

    async fn advance(&self, mailbox: MailboxId, device: &DeviceId, upto: Seq) -> Result<()> {
        let done = self.advance_cursor(mailbox, device, upto).await;
        self.unless_erased(mailbox, done).await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        self.rows.cursor(mailbox, device).await
    }

    async fn trim(&self, mailbox: MailboxId) -> Result<Trimmed> {
        self.trim_mailbox(mailbox).await
    }

    async fn erase(&self, user: &UserId) -> Result<()> {
        self.erase_user(user).await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        self.rows.put_payload(id, bytes, expires_at).await
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        let now = self.world.now();
        if self.cache.noted(mailbox).is_some_and(|at| now - at < self.config.pending_repeat_ms) {
            return Ok(());
        }
        self.rows.add_pending(mailbox).await?;
        self.cache.note(mailbox, now);
        Ok(())
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.rows.add_pending_at(mailbox, at).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        self.rows.pending_since(since).await
    }

    async fn push_targets(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        self.rows.push(mailbox, device).await
    }

    async fn set_push_targets(&self, mailbox: MailboxId, device: &DeviceId, sealed: Bytes) -> Result<bool> {
        wakes::check_push(Some(&sealed))?;
        self.rows.set_push(mailbox, device, sealed).await
    }

    async fn replace_push_targets(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        wakes::check_push(new.as_ref())?;
        self.rows.replace_push(mailbox, device, old, new).await
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        self.rows.woken(mailbox, device).await
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        let done = self.raise_woken_seen(mailbox, device, woken).await;
        self.unless_erased(mailbox, done).await
    }

    async fn pending_in_shard(&self, shard: u16, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        self.rows.pending_page(wakes::known(shard)?, from, rows_max).await
    }

    async fn swept(&self, shard: u16) -> Result<Option<UnixMillis>> {
        self.swept_lately(shard).await
    }

    async fn raise_swept(&self, shard: u16, upto: UnixMillis) -> Result<()> {
        self.raise_swept_seen(shard, upto).await
    }

    fn cursor_tag(&self, mailbox: MailboxId) -> CursorTag {
        let digest = Sha256::new().chain_update(self.rows.incarnation()).chain_update(mailbox.0).finalize();
        let mut tag = [0; 16];
        tag.copy_from_slice(&digest[..16]);
        CursorTag(tag)
    }
}
