//! The only words between nodes: requests of gateways to routers, doorbells of routers to gateways.
//! **Invariant:** no user name in any of them but the stamped sender, which travels with the envelope.

mod decode;
mod encode;

use crate::envelope::{DeviceFilter, Sender, Slot, Urgency};
use crate::frame::FrameError;
use crate::id::{Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, Seq, SubmitId, TraceId};
use crate::time::{Millis, UnixMillis};
use alloc::vec::Vec;
use bytes::Bytes;

/// A gateway's request to any router.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Append to mailboxes.
    Submit(Submit),
    /// Best effort to attached devices, never stored.
    Ephemeral(EphemeralSubmit),
    /// Which of these mailboxes have grown, or have newer sessions?
    Probe(Probe),
    /// The head bucket of a mailbox: a `base` for submits.
    Base(MailboxId),
    /// A device has attached: ring its other gateways, so that an older socket closes at once.
    Attached(Attached),
}

/// A router's answer; the variant matches the request's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// One list reply per list, in order.
    Submit(Vec<ListReply>),
    /// Taken; says nothing about delivery.
    Ephemeral,
    /// Only what is news.
    Probe(ProbeReply),
    /// The head bucket.
    Base(Bucket),
    /// The doorbells are on their way.
    Attached,
    /// The router is full or lost its store: certainly nothing was done.
    Unavailable,
}

/// Appends: one ordered list of entries per mailbox, all of one sending device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// Stamped by the gateway.
    pub sender: Sender,
    /// Time left for the whole request when it was sent; the router starts no compare-and-set after it.
    pub budget: Millis,
    /// The payloads that entries refer to by index.
    pub payloads: Vec<Bytes>,
    /// At most one list per mailbox.
    pub lists: Vec<SubmitList>,
}

/// The ordered entries of one sender for one mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitList {
    /// Where to.
    pub mailbox: MailboxId,
    /// A head bucket that the gateway learned before the first transmission of every entry; `None`: look back 2 days.
    pub base: Option<Bucket>,
    /// In the order in which they must stand in the log.
    pub entries: Vec<SubmitEntry>,
}

/// One envelope to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitEntry {
    /// The submit it belongs to.
    pub submit_id: SubmitId,
    /// Its number there.
    pub number: u32,
    /// For which devices.
    pub devices: DeviceFilter,
    /// The version of the device set that the sender knew.
    pub device_set_version: Option<u64>,
    /// Index into [`Submit::payloads`].
    pub payload: usize,
    /// How long the payload may be kept.
    pub ttl: Millis,
    /// How soon it matters.
    pub urgency: Urgency,
}

/// What became of one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListReply {
    /// The mailbox.
    pub mailbox: MailboxId,
    /// Its head bucket as the router knows it: a `base` for later submits.
    pub head_bucket: Option<Bucket>,
    /// One result per entry, in order.
    pub results: Vec<EntryResult>,
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryResult {
    /// Its envelope.
    pub envelope_id: EnvelopeId,
    /// Its fate.
    pub outcome: Outcome,
}

/// The fate of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// In the log, durable.
    Accepted,
    /// Final: nobody has that name.
    UnknownUser,
    /// Final: no live device is targeted.
    NoDevice,
    /// Final: the sender's device set is stale; here is the present one.
    DevicesChanged {
        /// The present version.
        version: u64,
        /// The live devices.
        devices: Vec<DeviceId>,
    },
    /// Final for now: the mailbox is full.
    Quota,
    /// Certainly not written: retry under the same id.
    Unavailable,
    /// Something before it in its list is undecided.
    NotAttempted,
    /// Perhaps written: retry under the same id.
    Unknown,
}

impl Outcome {
    /// Committed, duplicate or finally refused: what follows in the list may be attempted.
    pub fn is_decided(&self) -> bool {
        match self {
            Self::Accepted
            | Self::UnknownUser
            | Self::NoDevice
            | Self::DevicesChanged { .. }
            | Self::Quota => true,
            Self::Unavailable | Self::NotAttempted | Self::Unknown => false,
        }
    }

    /// Every word of [`Outcome::word`].
    pub const WORDS: [&'static str; 8] = [
        "accepted",
        "unknown_user",
        "no_device",
        "devices_changed",
        "quota",
        "unavailable",
        "not_attempted",
        "unknown",
    ];

    /// The word for it in metrics and in output.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::UnknownUser => "unknown_user",
            Self::NoDevice => "no_device",
            Self::DevicesChanged { .. } => "devices_changed",
            Self::Quota => "quota",
            Self::Unavailable => "unavailable",
            Self::NotAttempted => "not_attempted",
            Self::Unknown => "unknown",
        }
    }
}

/// A payload for devices that are attached now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EphemeralSubmit {
    /// Stamped by the gateway.
    pub sender: Sender,
    /// Mailbox, its devices, index into `payloads`.
    pub targets: Vec<(MailboxId, DeviceFilter, usize)>,
    /// Opaque bytes.
    pub payloads: Vec<Bytes>,
    /// How soon it matters.
    pub urgency: Urgency,
}

/// What a gateway knows of its sessions' mailboxes; at most 500 at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Wall time (the store's) of the last answer; the router looks from 2 minutes before it. `None`: all heads outright.
    pub as_of: Option<UnixMillis>,
    /// Mailbox and known head.
    pub known: Vec<(MailboxId, Seq)>,
}

/// What is news to the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReply {
    /// For the next probe's `as_of`.
    pub as_of: UnixMillis,
    /// Mailboxes that grew or whose sessions changed.
    pub news: Vec<MailboxNews>,
}

/// News of one mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxNews {
    /// Which.
    pub mailbox: MailboxId,
    /// Its head; what the gateway knew, if it was erased.
    pub head: Seq,
    /// Its user was erased: no session of it may go on.
    pub erased: bool,
    /// Its devices' newest sessions.
    pub devices: Vec<DeviceNews>,
}

/// The newest session of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNews {
    /// Which.
    pub device: DeviceId,
    /// Newest epoch.
    pub epoch: Epoch,
    /// Its connection, the tie-break.
    pub connection: ConnectionId,
    /// May not be served any more.
    pub revoked: bool,
}

/// A device has attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its mailbox.
    pub mailbox: MailboxId,
    /// Its newest session.
    pub news: DeviceNews,
}

/// Best-effort notice of a router to a gateway. May be lost, repeated, reordered, late; no promise rests on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doorbell {
    /// Which mailbox.
    pub mailbox: MailboxId,
    /// What happened.
    pub ring: Ring,
}

/// What a doorbell says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ring {
    /// A slot was committed; with the slot itself if its payload has at most [`Doorbell::PAYLOAD_BYTES_MAX`].
    Grew {
        /// Its place.
        seq: Seq,
        /// The slot, for a gateway that needs exactly this one next.
        slot: Option<Slot>,
    },
    /// A device attached or was revoked: older sessions of it close.
    Session(DeviceNews),
    /// An ephemeral payload for the devices that pass the filter.
    Ephemeral {
        /// Stamped sender.
        sender: Sender,
        /// For which devices.
        devices: DeviceFilter,
        /// Opaque bytes.
        payload: Bytes,
        /// How soon it matters.
        urgency: Urgency,
    },
}

impl Doorbell {
    /// Larger payloads are read from the store.
    pub const PAYLOAD_BYTES_MAX: usize = 4096;
}

/// A router's hint to whoever wakes devices that are not attached: a mailbox grew. May be lost, repeated, reordered, late; what
/// must be woken stands in the store's `pending` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeHint {
    /// Which mailbox.
    pub mailbox: MailboxId,
    /// The first slot that it is about.
    pub from: Seq,
    /// The last one; not below `from`. Both are in the log.
    pub upto: Seq,
    /// The most urgent of them.
    pub urgency: Urgency,
    /// When the first was accepted: the mailbox's pending row is of this minute or later, as far as clocks agree.
    pub at: UnixMillis,
    /// When a device that has not acked them is to be woken; not before `at`.
    pub due: UnixMillis,
}

impl WakeHint {
    /// Takes in another hint of the same mailbox.
    pub fn merge(&mut self, other: &Self) {
        self.from = self.from.min(other.from);
        self.upto = self.upto.max(other.upto);
        self.urgency = self.urgency.max(other.urgency);
        self.at = self.at.min(other.at);
        self.due = self.due.min(other.due);
    }
}

/// Nodes of another major version do not understand each other.
pub const VERSION_MAJOR: u32 = 1;
/// Grows with fields that older nodes may ignore.
pub const VERSION_MINOR: u32 = 0;

/// Mailboxes of one message, and payloads of one.
pub const LISTS_MAX: usize = 4096;
/// Entries of one list.
pub const ENTRIES_MAX: usize = 1024;
/// Devices of one list.
pub const DEVICES_MAX: usize = 1024;

/// What stands on every request beside the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Time left for the whole request when it was sent. A submit's own budget is set from it.
    pub budget: Millis,
    /// The same in every log line about the request; zero if the sender gave none.
    pub trace: TraceId,
}

/// What comes back for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A router took it.
    Reply(Reply),
    /// This router did not: certainly nothing was done.
    Refused(Refusal),
}

/// Why a router did not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its bytes are no request, or a bound was exceeded: asking again does not help.
    #[error("the router could not read the request")]
    Invalid,
    /// The router ends: ask another.
    #[error("the router is ending")]
    Draining,
    /// Its budget was used up before the router read it.
    #[error("the request was too old when the router read it")]
    Stale,
    /// It is of another cluster: two clusters share one bus by mistake.
    #[error("the router is of another cluster")]
    Foreign,
    /// It is of another major version.
    #[error("the router speaks another version")]
    Version,
}

/// Whether a router takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterState {
    /// It does.
    Live,
    /// It finishes what it has and what still arrives.
    Draining,
    /// It answers nothing any more.
    Gone,
}

/// A router says that it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Its name on the bus: random per process.
    pub router: u64,
    /// Whether it takes requests.
    pub state: RouterState,
}

/// Why bytes from another node are of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InternodeError {
    /// They are of another cluster.
    #[error("the message is of another cluster")]
    Foreign,
    /// They are of another major version, this one.
    #[error("the message is of version {0}, this node speaks version {VERSION_MAJOR}")]
    Version(u32),
    /// Not protobuf.
    #[error("the bytes are no message between nodes")]
    Garbage,
    /// A kind that this version does not know.
    #[error("a message of a kind that this version does not know")]
    UnknownKind,
    /// A field is missing or out of its bounds; names the field.
    #[error("field {0} is missing or out of bounds")]
    Field(&'static str),
}

impl From<FrameError> for InternodeError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Garbage => Self::Garbage,
            // Only a device asks with a Request: no message between nodes holds one.
            FrameError::UnknownFrame | FrameError::Request { .. } => Self::UnknownKind,
            FrameError::Field(name) => Self::Field(name),
        }
    }
}
