//! The frames of `chappe.v1` with checked fields. **Invariant:** whatever a peer sends becomes one of these or a [`FrameError`]; never a panic.

mod decode;
mod deliver;
mod encode;
mod push;
pub(crate) mod shape;

use crate::close::ErrorFrame;
use crate::envelope::{DeviceFilter, Sender, Urgency};
use crate::id::{ConnectionId, CursorTag, DeviceId, EnvelopeId, Epoch, Seq, SubmitId, UserId};
use crate::internode::Outcome;
use crate::push::PushSettings;
use crate::time::{Millis, UnixMillis};
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// The longest resume token, in bytes.
pub const RESUME_TOKEN_BYTES_MAX: usize = 512;
/// Devices in one list.
pub const DEVICES_MAX: usize = 256;
/// Targets, and payloads, that a Submit may hold at all; `Limits::targets_max` is what a gateway allows.
pub const TARGETS_HARD_MAX: usize = 65_536;
/// Results in one answer.
pub const RESULTS_MAX: usize = TARGETS_HARD_MAX;
/// Endpoints in one `GoAway`.
pub const ENDPOINTS_MAX: usize = 16;

/// What a device sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// First frame of a connection.
    Hello(Hello),
    /// Puts envelopes into mailboxes.
    Submit(Submit),
    /// Everything up to here is persisted.
    Ack {
        /// Contiguous.
        upto: Seq,
    },
    /// Asks for a [`ServerFrame::Pong`].
    Ping {
        /// Comes back.
        nonce: u64,
    },
    /// A fresh token.
    Refresh {
        /// The token.
        token: Secret,
    },
    /// Asks for something; answered by a [`ServerFrame::Reply`].
    Request {
        /// Comes back.
        id: u64,
        /// What.
        request: Request,
    },
}

/// What a device asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Replaces where and when this device is woken. `PushTarget::registered_at` does not travel: it is 0 here, and the
    /// gateway stamps it.
    SetPush(PushSettings),
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The push settings are durable.
    PushSet,
    /// Of no effect, or, if retryable, perhaps.
    Error(ErrorFrame),
}

/// What a gateway sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// The answer to a good Hello.
    Welcome(Welcome),
    /// One envelope.
    Deliver(Deliver),
    /// Everything that was there at attach has been delivered.
    BacklogEnd {
        /// Position last told.
        upto: Seq,
    },
    /// Slots that cannot be delivered any more.
    Truncated {
        /// First slot.
        from: Seq,
        /// Last slot; the position last told.
        to: Seq,
        /// Why.
        why: TruncatedReason,
    },
    /// The answer to a Submit.
    SubmitResult(SubmitResult),
    /// An envelope that was never stored.
    Ephemeral {
        /// Stamped sender.
        sender: Option<Sender>,
        /// Opaque bytes.
        payload: Bytes,
        /// How soon it matters.
        urgency: Urgency,
    },
    /// Please reconnect.
    GoAway(GoAway),
    /// An error as data.
    Error(ErrorFrame),
    /// The answer to a Ping.
    Pong {
        /// From the Ping.
        nonce: u64,
        /// Position last told.
        upto: Seq,
    },
    /// The answer to a Request.
    Reply {
        /// From the Request.
        id: u64,
        /// What became of it.
        reply: Reply,
    },
}

/// A token in flight: prints as `Secret(…)`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How a device attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// The one session of the device.
    #[default]
    Main,
    /// A glance beside it.
    Peek,
}

/// A position as a client keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Mailbox and store incarnation.
    pub tag: CursorTag,
    /// Everything up to here is persisted or not for this device.
    pub seq: Seq,
}

/// The first frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// JSON Web Token.
    pub token: Secret,
    /// Must equal the token's claim.
    pub device: DeviceId,
    /// From an earlier Welcome; empty: none.
    pub resume_token: Bytes,
    /// Absent: the stored one.
    pub cursor: Option<Cursor>,
    /// Main or peek.
    pub role: Role,
}

/// One addressee.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Entry number, unique within the submit.
    pub number: u32,
    /// Whom.
    pub user: UserId,
    /// Which devices.
    pub devices: DeviceFilter,
    /// The device set that the sender knew.
    pub device_set_version: Option<u64>,
    /// Index into the payloads.
    pub payload: usize,
}

/// Puts envelopes into mailboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submit {
    /// The same on every retry.
    pub submit_id: SubmitId,
    /// From 1.
    pub attempt: u32,
    /// Opaque bytes.
    pub payloads: Vec<Bytes>,
    /// At least one; numbers unique; payload indexes in range.
    pub targets: Vec<Target>,
    /// 0: the server's maximum.
    pub ttl: Millis,
    /// How soon it matters.
    pub urgency: Urgency,
    /// Never stored.
    pub ephemeral: bool,
}

/// What the server allows; the defaults are those of a fresh installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes of one envelope.
    pub envelope_bytes_max: u32,
    /// Bytes of one frame.
    pub frame_bytes_max: u32,
    /// Targets of one submit.
    pub targets_max: u32,
    /// Time to live.
    pub ttl_max: Millis,
    /// Envelopes delivered and not acked.
    pub window_envelopes_max: u32,
    /// Their bytes.
    pub window_bytes_max: u32,
    /// Frames per second from a client, sustained.
    pub frames_per_second_max: u32,
    /// Frames at once.
    pub frames_burst_max: u32,
    /// The client pings at least so often.
    pub ping_every: Millis,
    /// Submits sent and not answered.
    pub submits_in_flight_max: u32,
    /// Payload bytes of one ephemeral; at most those of a router (16 KiB). 0: the server does not tell.
    pub ephemeral_bytes_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            envelope_bytes_max: 96 * 1024,
            frame_bytes_max: 1024 * 1024,
            targets_max: 1024,
            ttl_max: Millis::from_secs(30 * 24 * 3600),
            window_envelopes_max: 256,
            window_bytes_max: 1024 * 1024,
            frames_per_second_max: 50,
            frames_burst_max: 200,
            ping_every: Millis::from_secs(25),
            submits_in_flight_max: 64,
            ephemeral_bytes_max: 16 * 1024,
        }
    }
}

/// The answer to a good Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Names the session in logs.
    pub session: ConnectionId,
    /// The session's number.
    pub epoch: Epoch,
    /// The first `prev`.
    pub from: Seq,
    /// For the client's cursor.
    pub tag: CursorTag,
    /// For the next Hello.
    pub resume_token: Bytes,
    /// What is allowed.
    pub limits: Limits,
    /// The resume token was taken.
    pub resumed: bool,
    /// The server's wall clock.
    pub server_time: UnixMillis,
}

/// One envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deliver {
    /// Its place.
    pub seq: Seq,
    /// The position last told on this connection.
    pub prev: Seq,
    /// Key of de-duplication.
    pub envelope_id: EnvelopeId,
    /// Stamped sender.
    pub sender: Option<Sender>,
    /// When it was accepted.
    pub at: UnixMillis,
    /// When the payload goes.
    pub expires_at: UnixMillis,
    /// Opaque bytes.
    pub payload: Bytes,
    /// How soon it matters.
    pub urgency: Urgency,
}

/// Why slots are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TruncatedReason {
    /// Past its time.
    Expired,
    /// The device was silent too long.
    Trimmed,
    /// The store lost it.
    Lost,
    /// The cursor is of another incarnation.
    ForeignCursor,
}

/// The fate of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetResult {
    /// Entry number.
    pub number: u32,
    /// Its fate.
    pub outcome: Outcome,
    /// With `Accepted`.
    pub envelope_id: Option<EnvelopeId>,
}

/// The answer to a Submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitResult {
    /// Which submit.
    pub submit_id: SubmitId,
    /// Which attempt.
    pub attempt: u32,
    /// One per target.
    pub results: Vec<TargetResult>,
}

/// Why a client is asked to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GoAwayClass {
    /// The gateway ends.
    Drain,
    /// The gateway is too full.
    Shed,
    /// Another gateway is emptier.
    Rebalance,
    /// An operator said so.
    Kick,
}

/// Please reconnect after `retry_after` plus a random part of `jitter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoAway {
    /// Why.
    pub class: GoAwayClass,
    /// Wait at least.
    pub retry_after: Millis,
    /// And at most so much more.
    pub jitter: Millis,
    /// Where to; empty: the same address.
    pub endpoints: Vec<String>,
}

/// Bytes that are no good frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not protobuf.
    #[error("the bytes are not a protobuf message of chappe.v1")]
    Garbage,
    /// No known frame in it: ignore it, it may come from a newer peer.
    #[error("a frame of a kind that this version does not know")]
    UnknownFrame,
    /// A field is missing or out of its bounds; names the field.
    #[error("field {0} is missing or out of bounds")]
    Field(&'static str),
    /// A Request that cannot be served: answer it with a Reply, and go on.
    #[error("request {id}: {why}")]
    Request {
        /// Which.
        id: u64,
        /// Why not.
        why: RequestError,
    },
}

/// What is wrong with a Request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No known body: it may come from a newer peer.
    #[error("of a kind that this version does not know")]
    Unknown,
    /// A field is missing or out of its bounds; names the field.
    #[error("field {0} is missing or out of bounds")]
    Field(&'static str),
}
