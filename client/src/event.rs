//! What the application is told. **Invariant:** an envelope is handed out once, until it is dropped without an ack.

use crate::inbox::Ticket;
use bytes::Bytes;
use chappe_protocol::envelope::{Sender, Urgency};
use chappe_protocol::frame::TruncatedReason;
use chappe_protocol::id::{EnvelopeId, Seq};
use chappe_protocol::time::UnixMillis;

/// Something happened in the mailbox.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// An envelope; ack it when it is safe with you.
    Envelope(Envelope),
    /// Something that was never stored, for instance "is typing"; may be missing, never repeated.
    Ephemeral {
        /// Who sent it, stamped by the gateway.
        sender: Option<Sender>,
        /// Opaque bytes.
        payload: Bytes,
        /// How soon it matters.
        urgency: Urgency,
    },
    /// Everything that was in the mailbox when this connection began has been handed out.
    BacklogEnd,
    /// Slots that may have held envelopes for this device are gone: fetch what you miss by other ways, or say so.
    Truncated {
        /// First slot.
        from: Seq,
        /// Last slot.
        to: Seq,
        /// Why.
        why: TruncatedReason,
    },
}

/// An envelope for this device.
#[derive(Debug)]
pub struct Envelope {
    /// Names it for ever, also to the sender.
    pub id: EnvelopeId,
    /// Its slot.
    pub seq: Seq,
    /// Who sent it, as the gateway has checked it.
    pub sender: Option<Sender>,
    /// When the router accepted it.
    pub at: UnixMillis,
    /// When the payload goes.
    pub expires_at: UnixMillis,
    /// How soon it matters.
    pub urgency: Urgency,
    /// Opaque bytes.
    pub payload: Bytes,
    pub(crate) ticket: Ticket,
}

impl Envelope {
    /// The application has taken it (stored it, shown it): it is never handed out again, and the server may forget it.
    /// Acks may come in any order; the server is told the contiguous part. Dropped without an ack, an envelope is
    /// handed out again after the next connect, and until then it occupies the window.
    pub fn ack(self) {
        self.ticket.ack();
    }
}
