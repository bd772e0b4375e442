//! How the rest of the gateway reaches a connection's task: a small inbox and a waker.
//! **Invariant:** an inbox is bounded in items and bytes; what does not fit is dropped except for the highest head.

use crate::transport::Carrier;
use chappe_protocol::close::CloseCode;
use chappe_protocol::envelope::{DeviceFilter, Sender, Slot, Urgency};
use chappe_protocol::frame::{GoAway, Role};
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, GatewayId, MailboxId, Seq};
use chappe_protocol::internode::DeviceNews;
use chappe_protocol::time::Millis;
use chappe_router::presence::Lease;
use futures_util::task::AtomicWaker;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Bells that wait for one connection.
pub(crate) const INBOX_ITEMS_MAX: usize = 32;
/// Their bytes, by [`Slot::cost`].
pub(crate) const INBOX_BYTES_MAX: usize = 64 * 1024;

/// Where a session stands: told to the connection's task, which does the rest.
pub(crate) struct Handle {
    pub(crate) mailbox: MailboxId,
    pub(crate) device: DeviceId,
    pub(crate) role: Role,
    pub(crate) carrier: Carrier,
    pub(crate) epoch: Epoch,
    pub(crate) connection: ConnectionId,
    pub(crate) resumes: u32,
    known_head: AtomicU64,
    inbox: Mutex<Inbox>,
    waker: AtomicWaker,
}

/// An ephemeral payload on its way to the devices that pass its filter.
#[derive(Debug, Clone)]
pub(crate) struct Whisper {
    pub(crate) sender: Sender,
    pub(crate) devices: DeviceFilter,
    pub(crate) payload: bytes::Bytes,
    pub(crate) urgency: Urgency,
}

/// What waits for a connection's task.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Slots that rode on doorbells, in the order in which they were heard.
    pub(crate) slots: Vec<Slot>,
    pub(crate) whispers: Vec<Whisper>,
    bytes: usize,
    /// The highest head heard of.
    pub(crate) head: Option<Seq>,
    /// The newest session of this device, or its revocation.
    pub(crate) news: Option<Box<DeviceNews>>,
    pub(crate) timer: bool,
    /// And how long it may stay.
    pub(crate) go_away: Option<Box<(GoAway, Millis)>>,
    pub(crate) close: Option<CloseCode>,
    /// Drop the connection as it is.
    pub(crate) kill: bool,
}

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
            && self.whispers.is_empty()
            && self.head.is_none()
            && self.news.is_none()
            && !self.timer
            && self.go_away.is_none()
            && self.close.is_none()
            && !self.kill
    }

    fn fits(&self, bytes: usize) -> bool {
        self.slots.len() + self.whispers.len() < INBOX_ITEMS_MAX && self.bytes + bytes <= INBOX_BYTES_MAX
    }
}

impl Handle {
    pub(crate) fn new(
        mailbox: MailboxId,
        device: DeviceId,
        (role, carrier): (Role, Carrier),
        (epoch, connection, resumes): (Epoch, ConnectionId, u32),
        head: Seq,
    ) -> Self {
        Self {
            mailbox,
            device,
            role,
            carrier,
            epoch,
            connection,
            resumes,
            known_head: AtomicU64::new(head.0),
            inbox: Mutex::default(),
            waker: AtomicWaker::new(),
        }
    }

    /// The greater is the newer session of a device.
    pub(crate) fn order(&self) -> (Epoch, ConnectionId) {
        (self.epoch, self.connection)
    }

    pub(crate) fn lease(&self, gateway: GatewayId) -> Lease {
        Lease {
            mailbox: self.mailbox,
            device: self.device.clone(),
            gateway,
            epoch: self.epoch,
            resumes: self.resumes,
            connection: self.connection,
        }
    }

    pub(crate) fn known_head(&self) -> Seq {
        Seq(self.known_head.load(Ordering::Relaxed))
    }

    pub(crate) fn set_known_head(&self, head: Seq) {
        self.known_head.store(head.0, Ordering::Relaxed);
    }

    /// A slot was committed; `false` if its payload was dropped and only the head kept.
    pub(crate) fn ring(&self, seq: Seq, slot: Option<Slot>) -> bool {
        self.tell(|inbox| match slot {
            Some(slot) if inbox.fits(slot.cost()) => {
                inbox.bytes += slot.cost();
                inbox.slots.push(slot);
                true
            }
            Some(_) => {
                inbox.head = inbox.head.max(Some(seq));
                false
            }
            None => {
                inbox.head = inbox.head.max(Some(seq));
                true
            }
        })
    }

    /// `false` if there was no room for it.
    pub(crate) fn whisper(&self, whisper: Whisper) -> bool {
        self.tell(|inbox| {
            let bytes = 64 + whisper.payload.len();
            let fits = inbox.fits(bytes);
            if fits {
                inbox.bytes += bytes;
                inbox.whispers.push(whisper);
            }
            fits
        })
    }

    pub(crate) fn raise_head(&self, head: Seq) {
        self.tell(|inbox| inbox.head = inbox.head.max(Some(head)));
    }

    /// News of this device's sessions; the newest and a revocation are kept.
    pub(crate) fn news(&self, news: &DeviceNews) {
        self.tell(|inbox| {
            let newer = inbox.news.as_ref().is_none_or(|old| {
                news.revoked || (!old.revoked && (news.epoch, news.connection) > (old.epoch, old.connection))
            });
            if newer {
                inbox.news = Some(Box::new(news.clone()));
            }
        });
    }

    pub(crate) fn fire(&self) {
        self.tell(|inbox| inbox.timer = true);
    }

    /// Asks for a move; the session is closed after `grace`.
    pub(crate) fn go_away(&self, go_away: GoAway, grace: Millis) {
        self.tell(|inbox| inbox.go_away = Some(Box::new((go_away, grace))));
    }

    /// Asks for a close; the first reason stays.
    pub(crate) fn close(&self, code: CloseCode) {
        self.tell(|inbox| inbox.close = inbox.close.or(Some(code)));
    }

    /// Asks for the connection to be dropped as it is.
    pub(crate) fn kill(&self) {
        self.tell(|inbox| inbox.kill = true);
    }

    /// What has come since the last call; the task is woken for whatever comes later.
    pub(crate) fn take(&self, waker: &Waker) -> Inbox {
        self.waker.register(waker);
        std::mem::take(&mut *self.lock())
    }

    fn tell<T>(&self, tell: impl FnOnce(&mut Inbox) -> T) -> T {
        let told = tell(&mut self.lock());
        self.waker.wake();
        told
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use chappe_protocol::envelope::SlotBody;
    use chappe_protocol::id::{EnvelopeId, UserId};
    use chappe_protocol::time::UnixMillis;

    fn handle() -> Handle {
        let device = DeviceId::new("phone").unwrap();
        let order = (Epoch(1), ConnectionId([1; 16]), 0);
        Handle::new(MailboxId([1; 16]), device, (Role::Main, Carrier::WebSocket), order, Seq(0))
    }

    fn slot(seq: u64, bytes: usize) -> Slot {
        Slot {
            seq: Seq(seq),
            envelope_id: EnvelopeId([0; 16]),
            sender: None,
            devices: DeviceFilter::All,
            at: UnixMillis(0),
            expires_at: UnixMillis(1),
            urgency: Urgency::Message,
            body: SlotBody::Present(Bytes::from(vec![0; bytes])),
        }
    }

    #[test]
    fn a_full_inbox_keeps_the_head_and_drops_payloads() {
        let handle = handle();
        for seq in 1..=1000 {
            handle.ring(Seq(seq), Some(slot(seq, 4000)));
        }
        let inbox = handle.take(Waker::noop());
        assert!(inbox.slots.len() <= INBOX_ITEMS_MAX);
        assert!(inbox.slots.iter().map(Slot::cost).sum::<usize>() <= INBOX_BYTES_MAX);
        assert_eq!(inbox.head, Some(Seq(1000)), "the head is never dropped");
        assert!(handle.take(Waker::noop()).is_empty());
    }

    #[test]
    fn an_inbox_is_bounded_in_items_however_small_and_whispers_count() {
        let handle = handle();
        for seq in 1..=1000 {
            handle.ring(Seq(seq), Some(slot(seq, 1)));
        }
        assert!(handle.take(Waker::noop()).slots.len() <= INBOX_ITEMS_MAX);
        let sender = Sender { user: UserId::new("ada").unwrap(), device: DeviceId::new("laptop").unwrap() };
        let payload = Bytes::from(vec![0; 4000]);
        let whisper = Whisper { sender, devices: DeviceFilter::All, payload, urgency: Urgency::Message };
        let taken = (0..1000).filter(|_| handle.whisper(whisper.clone())).count();
        let inbox = handle.take(Waker::noop());
        assert_eq!(inbox.whispers.len(), taken);
        assert!(inbox.whispers.iter().map(|whisper| whisper.payload.len()).sum::<usize>() <= INBOX_BYTES_MAX);
    }

    #[test]
    fn the_highest_head_and_the_first_reason_to_close_stay() {
        let handle = handle();
        for seq in [5, 3] {
            handle.ring(Seq(seq), None);
        }
        handle.close(CloseCode::ConnectedElsewhere);
        handle.close(CloseCode::Drained);
        let inbox = handle.take(Waker::noop());
        assert_eq!((inbox.head, inbox.close), (Some(Seq(5)), Some(CloseCode::ConnectedElsewhere)));
    }

    #[test]
    fn the_newest_session_and_a_revocation_stay() {
        let handle = handle();
        let news = |epoch, revoked| DeviceNews {
            device: DeviceId::new("phone").unwrap(),
            epoch: Epoch(epoch),
            connection: ConnectionId([0; 16]),
            revoked,
        };
        handle.news(&news(3, false));
        handle.news(&news(2, false));
        assert_eq!(handle.take(Waker::noop()).news.unwrap().epoch, Epoch(3));
        handle.news(&news(1, true));
        handle.news(&news(9, false));
        assert!(handle.take(Waker::noop()).news.unwrap().revoked, "a revocation is final");
    }
}
