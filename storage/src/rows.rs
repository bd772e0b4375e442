//! What a database must offer: linearizable single-partition operations and plain rows, in the shape of the CQL schema.
//! **Invariant:** whatever answered `Ok` is durable; [`Rows::compare_and_append`] writes all of a batch or nothing.

use crate::error::Result;
use crate::{Device, Entry, EntryPayload, PendingFrom, PendingPage, Woken};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;

/// One partition of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// Whose.
    pub mailbox: MailboxId,
    /// Which.
    pub bucket: Bucket,
}

/// The head register of a partition. Never deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The highest committed slot of the bucket; [`Seq::MAX`] once erased.
    pub seq: Seq,
    /// When the bucket's first slot was committed, by the store's clock.
    pub opened_at: UnixMillis,
    /// Payload bytes of the whole mailbox up to here, from its first slot on.
    pub bytes_total: u64,
}

/// A conditional batch: `head` becomes `to` if it is `expected`, and the slots come with it.
#[derive(Debug, Clone)]
pub struct Batch<'a> {
    /// The register as the caller knows it; `None`: the bucket has none yet.
    pub expected: Option<Seq>,
    /// The register afterwards.
    pub to: Head,
    /// The slots `(seq, entry)`, dense up to `to.seq`, each writing its id row beside it.
    pub slots: Vec<(Seq, &'a Entry)>,
}

/// The answer to a conditional batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// Written.
    Yes,
    /// Nothing written: the register was another, or an id exists in this bucket.
    No {
        /// The register now.
        head: Option<Head>,
        /// Ids of the batch that stand in this bucket (ids live 2 days).
        existing: Vec<(EnvelopeId, Seq)>,
    },
}

/// A slot's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRow {
    /// Its place.
    pub seq: Seq,
    /// What was appended; an inline payload past its `expires_at` comes back empty with `payload_gone`.
    pub entry: Entry,
    /// The payload is not there any more (its TTL ran out, or it was lost).
    pub payload_gone: bool,
    /// Marked as lost by [`Rows::mark_lost`].
    pub lost: bool,
}

impl SlotRow {
    /// The row that [`Rows::mark_lost`] leaves where there was none: nothing but its place is known.
    pub fn lost(seq: Seq) -> Self {
        let nobody = UserId::new("lost").and_then(|user| Ok(Sender { user, device: DeviceId::new("lost")? }));
        let Ok(sender) = nobody else { unreachable!("`lost` is a valid name") };
        let entry = Entry {
            envelope_id: EnvelopeId::default(),
            sender,
            devices: DeviceFilter::All,
            at: UnixMillis(0),
            expires_at: UnixMillis(0),
            urgency: Urgency::Background,
            payload: EntryPayload::Inline(Bytes::new()),
        };
        Self { seq, entry, payload_gone: true, lost: true }
    }
}

/// How far a mailbox was trimmed: buckets below have no slots any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// The first bucket that still has its slots.
    pub bucket: Bucket,
    /// [`Head::bytes_total`] of the bucket before it.
    pub bytes_total: u64,
}

/// The operations. Single-partition compare-and-sets and their SERIAL reads are linearizable; all else is a quorum write or read.
#[async_trait]
pub trait Rows: Send + Sync + 'static {
    /// Reads a head register at SERIAL.
    async fn head(&self, partition: Partition) -> Result<Option<Head>>;

    /// The conditional batch.
    async fn compare_and_append(&self, partition: Partition, batch: Batch<'_>) -> Result<Applied>;

    /// Sets the register to [`Seq::MAX`] if it is `expected`; `false`: it was another.
    async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool>;

    /// Where ids stand in a bucket, in their order; an id older than 2 days may be gone.
    async fn find_ids(&self, partition: Partition, ids: &[EnvelopeId]) -> Result<Vec<Option<Seq>>>;

    /// The slot rows behind `after`, ascending, at most `rows_max`, cut after the row that reaches `bytes_max` of payload;
    /// at SERIAL if `serial`. Rows may be missing: the caller checks density.
    async fn slots(
        &self,
        partition: Partition,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
        serial: bool,
    ) -> Result<Vec<SlotRow>>;

    /// Writes `form = lost` for a slot that has no row or no payload, by compare-and-set; `false`: it is there after all.
    async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool>;

    /// Deletes the slot rows of a bucket; ids die by their own time, the head stays.
    async fn delete_slots(&self, partition: Partition) -> Result<()>;

    /// Where to look for a cold head: a bucket that existed.
    async fn hint(&self, mailbox: MailboxId) -> Result<Bucket>;

    /// Raises the hint (a max-register).
    async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()>;

    /// The floor.
    async fn floor(&self, mailbox: MailboxId) -> Result<Floor>;

    /// Raises the floor by compare-and-set; returns the floor afterwards, which is never lower than before.
    async fn raise_floor(&self, mailbox: MailboxId, floor: Floor) -> Result<Floor>;

    /// A device's cursor; 0 if it never was written.
    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq>;

    /// Raises a cursor (a max-register).
    async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()>;

    /// All devices of a mailbox, sorted by id, with the version of the set and the time of each one's last session write.
    async fn devices(&self, mailbox: MailboxId) -> Result<(u64, Vec<(Device, UnixMillis)>)>;

    /// One device.
    async fn device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Device>>;

    /// Creates a device with its first cursor, by compare-and-set; an existing one stays as it is. Returns what is there.
    async fn create_device(&self, mailbox: MailboxId, device: &DeviceId, since: Seq) -> Result<Device>;

    /// Creates a device in a set that still has the version which was read with it (0: it is empty), by one compare-and-set; `false`:
    /// it has another one, or has the device already, and nothing was done.
    async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool>;

    /// Raises (epoch, connection) of a device (a max-register).
    async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()>;

    /// Marks a device as revoked and removes its push targets, in one step.
    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()>;

    /// A device's sealed push targets; `None`: it has none, is revoked or does not exist.
    async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>>;

    /// Sets a device's sealed push targets by compare-and-set on its row; `false`: there is no such device, or it is revoked.
    async fn set_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool>;

    /// Replaces or removes a device's sealed push targets by compare-and-set, if they are `old`; `false`: they are not. A
    /// repetition after `Unknown` may find that it was done, and says `false`.
    async fn replace_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool>;

    /// How far a device was woken; `None`: never.
    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>>;

    /// Raises how far a device was woken (a max-register); `Invalid` beyond the bounds of [`Woken`].
    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()>;

    /// Deletes devices, with all they have, and cursors and wakes of an erased mailbox.
    async fn delete_devices(&self, mailbox: MailboxId) -> Result<()>;

    /// Looks a user up, at SERIAL if `serial`; else one whose creation stopped half-way may be seen now and missed then.
    async fn user(&self, user: &UserId, serial: bool) -> Result<Option<crate::User>>;

    /// Creates a user, or replaces the mailbox of an erased one, by compare-and-set; returns what is there.
    async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<crate::User>;

    /// Marks a user as erased, if its mailbox is this one.
    async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()>;

    /// Stores a shared payload, once.
    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()>;

    /// Reads a shared payload; `None`: past its time, or never written.
    async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>>;

    /// Deletes a shared payload.
    async fn delete_payload(&self, id: PayloadId) -> Result<()>;

    /// Notes a mailbox under the present minute of the store's clock.
    async fn add_pending(&self, mailbox: MailboxId) -> Result<()>;

    /// Notes a mailbox under the minute of `at`, which the store's clock bounds: not before now, at most 24 h ahead. Kept until
    /// 24 h behind that minute.
    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()>;

    /// The mailboxes noted in the minute of `since` or later, up to the minute behind the present one, and the store's clock.
    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)>;

    /// The notes of one shard ([`MailboxId::shard`]) behind a place, `rows_max` of them (1 to
    /// [`PENDING_PAGE_MAX`](crate::PENDING_PAGE_MAX), else the nearer of these) or fewer.
    async fn pending_page(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage>;

    /// A shard's watermark; `None`: never written, or more than 24 h ago.
    async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>>;

    /// Raises a shard's watermark (a max-register).
    async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()>;

    /// The store's clock.
    fn now(&self) -> UnixMillis;

    /// 16 bytes that name this incarnation of the data; a restore from backup changes them.
    fn incarnation(&self) -> [u8; 16];
}
