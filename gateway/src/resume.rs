//! Resume tokens: a device that was here minutes ago comes back without a write to the store.
//! **Invariant:** a token proves what it says to every gateway with the same key, and nothing once it is too old.

use crate::auth::Proof;
use aws_lc_rs::hmac;
use bytes::Bytes;
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, MailboxId};
use chappe_protocol::time::{Millis, UnixMillis};

/// Wall clocks of gateways may differ so much.
const SKEW: Millis = Millis::from_secs(60);
/// Version, mailbox, epoch, connection, resumes, time, proof; then the device; then the tag.
const FIXED: usize = 1 + 16 + 8 + 16 + 4 + 8 + Proof::BYTES;
const TAG: usize = 32;
const VERSION: u8 = 2;

/// What a resume token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) mailbox: MailboxId,
    pub(crate) device: DeviceId,
    pub(crate) epoch: Epoch,
    pub(crate) connection: ConnectionId,
    pub(crate) resumes: u32,
    pub(crate) issued_at: UnixMillis,
    /// Of the token that the session began with.
    pub(crate) proof: Proof,
}

/// Signs and checks tickets (HMAC-SHA256, RFC 2104).
pub(crate) struct ResumeKey(hmac::Key);

impl ResumeKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    pub(crate) fn seal(&self, ticket: &Ticket) -> Bytes {
        let device = ticket.device.as_str().as_bytes();
        let mut out = Vec::with_capacity(FIXED + device.len() + TAG);
        out.push(VERSION);
        out.extend_from_slice(&ticket.mailbox.0);
        out.extend_from_slice(&ticket.epoch.0.to_be_bytes());
        out.extend_from_slice(&ticket.connection.0);
        out.extend_from_slice(&ticket.resumes.to_be_bytes());
        out.extend_from_slice(&ticket.issued_at.0.to_be_bytes());
        out.extend_from_slice(ticket.proof.as_bytes());
        out.extend_from_slice(device);
        let tag = hmac::sign(&self.0, &out);
        out.extend_from_slice(tag.as_ref());
        Bytes::from(out)
    }

    /// The ticket, if it was signed with this key for this device within the last `age_max`. Whose mailbox it is for is the caller's
    /// to look at: before the access token is judged, nobody knows the user.
    pub(crate) fn open(
        &self,
        token: &[u8],
        device: &DeviceId,
        now: UnixMillis,
        age_max: Millis,
    ) -> Option<Ticket> {
        if token.len() > FIXED + DeviceId::BYTES_MAX + TAG {
            return None;
        }
        let (said, tag) = token.split_at_checked(token.len().checked_sub(TAG)?)?;
        hmac::verify(&self.0, said, tag).ok()?;
        let (fixed, name) = said.split_at_checked(FIXED)?;
        let (version, fixed) = fixed.split_first()?;
        let ticket = Ticket {
            mailbox: MailboxId::from_slice(fixed.get(..16)?)?,
            epoch: Epoch(u64::from_be_bytes(fixed.get(16..24)?.try_into().ok()?)),
            connection: ConnectionId::from_slice(fixed.get(24..40)?)?,
            resumes: u32::from_be_bytes(fixed.get(40..44)?.try_into().ok()?),
            issued_at: UnixMillis(u64::from_be_bytes(fixed.get(44..52)?.try_into().ok()?)),
            proof: Proof::from_slice(fixed.get(52..)?)?,
            device: DeviceId::new(std::str::from_utf8(name).ok()?).ok()?,
        };
        let fresh = ticket.issued_at <= now + SKEW && ticket.issued_at + age_max >= now;
        let ours = *version == VERSION && ticket.device == *device;
        (fresh && ours).then_some(ticket)
    }
}

impl Ticket {
    /// The id of the socket that resumes at `now` and was `minted` there: greater than that of the one it follows, and than
    /// that of an earlier resume by the same ticket, so that the newer socket wins without a new epoch. Where the clock of
    /// this gateway is behind that of the last one, `minted` alone would not do. `None`: ids are used up.
    pub(crate) fn next_connection(&self, now: UnixMillis, minted: ConnectionId) -> Option<ConnectionId> {
        let elapsed = now.0.saturating_sub(self.issued_at.0).saturating_add(1);
        let minted = u128::from_be_bytes(minted.0);
        let step = (u128::from(elapsed) << 32) | (minted & u128::from(u32::MAX));
        let next = u128::from_be_bytes(self.connection.0).checked_add(step)?;
        Some(ConnectionId(next.max(minted).to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            mailbox: MailboxId([1; 16]),
            device: DeviceId::new("phone").unwrap(),
            epoch: Epoch(7),
            connection: ConnectionId([2; 16]),
            resumes: 3,
            issued_at: UnixMillis(1_000_000),
            proof: Proof::from_slice(&[4; 16]).unwrap(),
        }
    }

    const AGE: Millis = Millis::from_secs(300);

    #[test]
    fn a_ticket_is_honoured_for_five_minutes_by_whoever_has_the_key() {
        let (t, key) = (ticket(), ResumeKey::new(&[9; 32]));
        let token = key.seal(&t);
        let open = |key: &ResumeKey, at| key.open(&token, &t.device, UnixMillis(at), AGE);
        assert_eq!(open(&key, 1_000_000), Some(t.clone()));
        assert_eq!(open(&ResumeKey::new(&[9; 32]), 1_300_000), Some(t.clone()));
        assert_eq!(open(&key, 1_300_001), None, "too old");
        assert_eq!(open(&key, 0), None, "from the future");
        assert_eq!(open(&ResumeKey::new(&[8; 32]), 1_000_000), None, "another key");
        let other = DeviceId::new("laptop").unwrap();
        assert_eq!(key.open(&token, &other, t.issued_at, AGE), None);
    }

    #[test]
    fn no_byte_of_a_ticket_can_be_changed_and_no_length_panics() {
        let (t, key) = (ticket(), ResumeKey::new(&[9; 32]));
        let token = key.seal(&t);
        for place in 0..token.len() {
            let mut bad = token.to_vec();
            bad[place] ^= 1;
            assert_eq!(key.open(&bad, &t.device, t.issued_at, AGE), None, "byte {place}");
            assert_eq!(key.open(&token[..place], &t.device, t.issued_at, AGE), None);
        }
        assert_eq!(key.open(&[0; 9000], &t.device, t.issued_at, AGE), None);
    }

    #[test]
    fn a_later_resume_has_the_greater_connection() {
        // Of a clock that is behind that of the gateway before: less than any id of the ticket's session.
        let (low, high) = (ConnectionId([0; 16]), ConnectionId([1; 16]));
        let t = ticket();
        let first = t.next_connection(UnixMillis(1_000_000), high).unwrap();
        let later = t.next_connection(UnixMillis(1_000_001), low).unwrap();
        assert!(t.connection < first && first < later);
        let last = Ticket { connection: ConnectionId([255; 16]), ..t };
        assert_eq!(last.next_connection(UnixMillis(0), low), None);
    }

    #[test]
    fn a_resume_is_as_new_as_an_attach_of_its_time() {
        let minted = ConnectionId([3; 16]);
        assert_eq!(ticket().next_connection(UnixMillis(1_000_001), minted), Some(minted));
    }
}
