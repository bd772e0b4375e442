//! The slot log of Chappe: one mailbox per user, a dense write-once log of slots, a cursor per device.
//! **Invariant:** an append that was answered with a seq is durable; a seq is never issued twice.
//!
//! [`Store`] is what the roles use. [`SlotLog`](slotlog::SlotLog) implements it once, over [`Rows`](rows::Rows),
//! the few single-partition operations that a database must offer; each backend is one implementation of `Rows`.

#[cfg(feature = "testing")]
pub mod conformance;
pub mod embedded;
pub mod error;
#[cfg(feature = "testing")]
pub mod faulty;
pub mod memory;
#[cfg(feature = "testing")]
pub mod planted;
#[cfg(feature = "testing")]
pub mod quorum;
pub mod rows;
pub mod scylla;
pub mod sealed;
pub mod slotlog;
mod wakes;

use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Page, Sender, Urgency};
use chappe_protocol::id::{
    Bucket, ConnectionId, CursorTag, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;
pub use error::{Result, StoreError};
pub use wakes::{PENDING_PAGE_MAX, PUSH_BYTES_MAX, PendingFrom, PendingPage, Woken};

/// A user as the store knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The user's mailbox.
    pub mailbox: MailboxId,
    /// The user was erased; a return mints a new mailbox.
    pub erased: bool,
}

/// A device of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Which.
    pub device: DeviceId,
    /// Its first cursor: slots up to it never target it. Never changes.
    pub since: Seq,
    /// May not attach any more.
    pub revoked: bool,
    /// Its newest session.
    pub epoch: Epoch,
    /// The newest session's socket.
    pub connection: ConnectionId,
}

impl Device {
    /// One that never had a session.
    pub(crate) fn fresh(device: &DeviceId, since: Seq) -> Self {
        let (epoch, connection) = (Epoch::default(), ConnectionId::default());
        Self { device: device.clone(), since, revoked: false, epoch, connection }
    }
}

/// The live and the revoked devices of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceSet {
    /// Counts up with every device added or revoked; 0: none yet.
    pub version: u64,
    /// Sorted by id.
    pub devices: Vec<Device>,
}

/// The device that stands for all devices of a user. It never attaches; revoked, it bars the user.
pub fn every_device() -> DeviceId {
    let Ok(device) = DeviceId::new("chappe:every-device") else { unreachable!("a valid id") };
    device
}

/// Bars a user for as long as the mailbox is theirs: every device is revoked, and none that comes later gets in. Returns the devices
/// as they were. An erase ends the bar, since it forgets whom it was for.
pub async fn bar(store: &dyn Store, mailbox: MailboxId) -> Result<DeviceSet> {
    // First the bar, then the devices: one that is created meanwhile is seen here, or sees the bar.
    store.revoke(mailbox, &every_device()).await?;
    let set = store.devices(mailbox).await?;
    for row in set.devices.iter().filter(|row| !row.revoked) {
        store.revoke(mailbox, &row.device).await?;
    }
    Ok(set)
}

/// An envelope on its way into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key of idempotence.
    pub envelope_id: EnvelopeId,
    /// Who sent it.
    pub sender: Sender,
    /// For which devices.
    pub devices: DeviceFilter,
    /// When it was accepted.
    pub at: UnixMillis,
    /// When the payload goes.
    pub expires_at: UnixMillis,
    /// How soon it matters.
    pub urgency: Urgency,
    /// The bytes, or where they are.
    pub payload: EntryPayload,
}

/// The payload of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryPayload {
    /// In the slot.
    Inline(Bytes),
    /// Stored once for many mailboxes by [`Store::put_payload`].
    Ref {
        /// Under this id.
        id: PayloadId,
        /// Its length.
        bytes: u32,
    },
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// By this append.
    Committed(Seq),
    /// By an earlier one.
    Duplicate(Seq),
}

impl Appended {
    /// The slot, either way.
    pub fn seq(self) -> Seq {
        match self {
            Self::Committed(seq) | Self::Duplicate(seq) => seq,
        }
    }
}

/// The answer to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendReply {
    /// One per entry, in order.
    pub entries: Vec<Appended>,
    /// The head afterwards, or later.
    pub head: Seq,
}

/// How a device attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The new socket.
    pub connection: ConnectionId,
    /// The client's own cursor, if its tag was this store's; counts as an ack.
    pub cursor: Option<Seq>,
}

/// What an attach found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The device row, with the new epoch and connection in it.
    pub device: Device,
    /// max(`since`, the client's cursor or the stored one).
    pub from: Seq,
    /// The head.
    pub head: Seq,
}

/// What a trim did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// Buckets whose slots were deleted.
    pub buckets: u64,
    /// The first bucket that still has its slots.
    pub floor: Bucket,
}

/// The durable side of delivery. All calls are safe to repeat; [`StoreError`] says what a failure means.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Looks a user up.
    async fn user(&self, user: &UserId) -> Result<Option<User>>;

    /// Finds or creates a user; two at once agree on one mailbox. An erased user gets a new mailbox.
    async fn create_user(&self, user: &UserId) -> Result<User>;

    /// The devices of a mailbox.
    async fn devices(&self, mailbox: MailboxId) -> Result<DeviceSet>;

    /// Attaches a device: creates it at the SERIAL head if it is new, raises its epoch, takes its cursor as an ack.
    /// [`StoreError::Revoked`] (also: its user is [barred](bar)) and [`StoreError::CursorAhead`] are final.
    async fn attach(&self, mailbox: MailboxId, device: &DeviceId, attach: Attach) -> Result<Attached>;

    /// Attaches without a new epoch and without any write (resume, peek): one read of the device, one of the head.
    /// `None`: there is no such device yet, and its user is not barred.
    async fn glance(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        cursor: Option<Seq>,
    ) -> Result<Option<Attached>>;

    /// Bars a device for ever, and removes its push targets.
    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()>;

    /// Appends entries in their order, densely, once each. `base`: a head bucket learned before the first transmission
    /// of every entry; `None` looks back 2 days. At most 64 entries and 512 KiB of payload.
    /// [`StoreError::Quota`] refuses all of them.
    async fn append(
        &self,
        mailbox: MailboxId,
        entries: &[Entry],
        base: Option<Bucket>,
    ) -> Result<AppendReply>;

    /// Where envelopes stand, in their order; `None`: not in the log, as far as ids are remembered (2 days). `base` as for
    /// [`Store::append`]. For a caller that is about to refuse an entry whose earlier attempt may have been committed.
    async fn find(
        &self,
        mailbox: MailboxId,
        ids: &[EnvelopeId],
        base: Option<Bucket>,
    ) -> Result<Vec<Option<Seq>>>;

    /// The head; SERIAL when `serial`, else it may be a moment old.
    async fn head(&self, mailbox: MailboxId, serial: bool) -> Result<Seq>;

    /// A contiguous run behind `after`: at most `rows_max` slots and `bytes_max` bytes of `Slot::cost`, but at least one slot.
    /// Resolves holes: a row that is missing though it should be there comes back as `SlotBody::Lost`.
    async fn read(&self, mailbox: MailboxId, after: Seq, rows_max: usize, bytes_max: usize) -> Result<Page>;

    /// Raises a device's cursor (a max-register); a lower value changes nothing.
    async fn advance(&self, mailbox: MailboxId, device: &DeviceId, upto: Seq) -> Result<()>;

    /// A device's cursor as stored.
    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq>;

    /// Deletes the sealed buckets that every live device's cursor has passed, or whose payloads are all past their time.
    async fn trim(&self, mailbox: MailboxId) -> Result<Trimmed>;

    /// Erases a user: the log takes no more, then rows, payloads, devices and the name go.
    async fn erase(&self, user: &UserId) -> Result<()>;

    /// Stores a payload for many mailboxes.
    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()>;

    /// Notes that a mailbox is about to grow, or that its sessions changed (kept 24 h). Cheap when repeated within 10 s.
    async fn add_pending(&self, mailbox: MailboxId) -> Result<()>;

    /// Notes a mailbox in the minute of `at`: a scan finds it when that minute has come (up to one minute before, as all notes)
    /// and for 24 h behind it. An `at` in the past is the present; one beyond 24 h ahead is 24 h ahead. For a wake that is to be
    /// repeated or waits. Each call is a write.
    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()>;

    /// The mailboxes noted since `since`, but for those of minutes to come, and the store's clock at the start of this read.
    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)>;

    /// A device's push targets as they were set: opaque here, sealed by [`sealed::PushKeys`]. `None`: it has none, is
    /// revoked or does not exist.
    async fn push_targets(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>>;

    /// Sets all of a device's push targets, for as long as it is neither revoked nor erased. `false`: it is, or there is no
    /// such device. More than [`PUSH_BYTES_MAX`] bytes are [`StoreError::Invalid`].
    async fn set_push_targets(&self, mailbox: MailboxId, device: &DeviceId, sealed: Bytes) -> Result<bool>;

    /// Replaces (`None`: removes) a device's push targets if they still are `old`: for whoever learned that a token is dead, so
    /// that a registration that came meanwhile stays. `false`: they are others by now, perhaps by an earlier try of this call.
    /// More than [`PUSH_BYTES_MAX`] bytes are [`StoreError::Invalid`].
    async fn replace_push_targets(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool>;

    /// How far a device was woken; `None`: never.
    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>>;

    /// Raises how far a device was woken (a max-register); what is not greater changes nothing. Beyond the head, or beyond the
    /// bounds of [`Woken`], it is [`StoreError::Invalid`].
    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()>;

    /// Into how many shards the notes of [`Store::add_pending`] fall, so that several can share a scan of them.
    fn pending_shards(&self) -> u16 {
        u16::from(MailboxId::SHARDS)
    }

    /// A part of one shard's notes, at most `rows_max` mailboxes (1 to [`PENDING_PAGE_MAX`], else the nearer of these). What is
    /// noted while a scan goes on may be missed: the next scan begins two minutes before the first page's `as_of`.
    /// A shard that does not exist is [`StoreError::Invalid`].
    async fn pending_in_shard(&self, shard: u16, from: PendingFrom, rows_max: usize) -> Result<PendingPage>;

    /// How far a shard's notes were dealt with, as [`Store::raise_swept`] said. `None`: never, or more than 24 h ago, or it is
    /// more than a minute ahead of the store's clock, which was set back then: scan all that is kept.
    /// A shard that does not exist is [`StoreError::Invalid`].
    async fn swept(&self, shard: u16) -> Result<Option<UnixMillis>>;

    /// Raises how far a shard's notes were dealt with (a max-register); what is not greater, or more than 24 h ago, changes
    /// nothing. More than a minute ahead of the store's clock it is [`StoreError::Invalid`]: it would hide notes to come.
    /// A shard that does not exist is [`StoreError::Invalid`].
    async fn raise_swept(&self, shard: u16, upto: UnixMillis) -> Result<()>;

    /// Names a mailbox and this store's incarnation, for clients' cursors.
    fn cursor_tag(&self, mailbox: MailboxId) -> CursorTag;
}
