//! Which devices of a mailbox are to be woken, and when. **Invariant:** it reads and decides and changes nothing, and what it
//! decides rests on the store: a device is woken for slots that target it, that it has not acked and was not woken for.
//!
//! Presence only holds a wake back (a device whose lease was renewed a moment ago is its gateway's to care for); where it does
//! not answer, what is old enough is woken all the same.

use crate::clock::StoreClock;
use crate::schedule::{self, Intervals};
use chappe_protocol::envelope::{PageEnd, Slot, SlotBody, Urgency};
use chappe_protocol::id::{DeviceId, MailboxId, Seq};
use chappe_protocol::push::PushSettings;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_router::presence::{DeviceLease, Presence};
use chappe_storage::sealed::PushKeys;
use chappe_storage::{Device, Result, Store, Woken};
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A slot that no hint told of is woken for when it is so old: until then its gateway may have it acked.
pub const ACK_TIME: Millis = Millis::from_secs(20);
/// A lease renewed within this shows life: gateways renew every 20 s.
const LIFE: Millis = Millis::from_secs(23);
/// A device whose lease shows life though it has not acked is looked at again after this.
const LOOK_AGAIN: Millis = Millis::from_secs(4);
/// Slots that one look reads; a device with more behind its cursor is woken for all of them.
const SLOTS_MAX: usize = 1024;
/// Slots and bytes of one read.
const PAGE: (usize, usize) = (128, 256 * 1024);
/// Rows of one mailbox that are read at once.
const READS_MAX: usize = 8;
/// The provider gives a wake up after this, however long its envelope lives: there is another by then.
const WAKE_LIFE: Millis = Millis::from_secs(24 * 3600);
/// A call that is not taken by then rings nowhere any more.
const CALL_LIFE: Millis = Millis::from_secs(45);

/// What looks need.
pub struct Eyes {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Who is attached.
    pub presence: Arc<dyn Presence>,
    /// Opens push targets.
    pub keys: Arc<PushKeys>,
    /// The least time between two wakes of one device.
    pub intervals: Intervals,
    /// The store's clock.
    pub clock: Arc<StoreClock>,
}

/// What a look is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Whose devices.
    pub mailbox: MailboxId,
    /// Slots up to this one were told of by a hint that is due: no waiting for acks of devices that nobody leases.
    pub hinted: Seq,
}

/// A device to be woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sleeper {
    /// Which.
    pub device: DeviceId,
    /// For the slots up to this one, of which it is the last that targets the device.
    pub upto: Seq,
    /// Which attempt for these slots, from 0.
    pub attempt: u8,
    /// The highest of those slots.
    pub urgency: Urgency,
    /// When the first of those slots was accepted.
    pub since: UnixMillis,
    /// The provider gives up then.
    pub expires_at: UnixMillis,
    /// Not before: quotas and quiet hours.
    pub due: UnixMillis,
    /// Where it is reached.
    pub settings: PushSettings,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    /// The head at the start.
    pub head: Seq,
    /// Devices to be woken, by id.
    pub sleepers: Vec<Sleeper>,
    /// Look again then: acks that are due, repeats.
    pub again: Option<UnixMillis>,
    /// Devices that are held back since their leases show life.
    pub alive: usize,
    /// Devices with something to fetch that have registered nothing to be woken through.
    pub unreachable: usize,
    /// Devices whose targets do not open: a key is missing.
    pub sealed: usize,
}

/// A device with slots behind its cursor, and where it is reached.
struct Behind {
    device: Device,
    cursor: Seq,
    settings: PushSettings,
    /// Its last wake, if it has not acked what that was for.
    woken: Option<Woken>,
    /// When its last wake was, acked or not.
    last: Option<UnixMillis>,
    fresh: Fresh,
}

/// What is known of a device before any slot is read. Slots that wait for a device which cannot be reached are not read: every hint of
/// its mailbox would have them read anew.
enum Standing {
    /// It has everything.
    Ahead,
    Behind(Box<Behind>),
    /// It has registered nothing to be woken through.
    Unreachable,
    /// Its targets do not open.
    Sealed,
}

/// What a device was not woken for yet.
#[derive(Default)]
struct Fresh {
    upto: Option<Seq>,
    urgency: Urgency,
    since: Option<UnixMillis>,
    expires_at: UnixMillis,
    /// Some slot is old enough.
    aged: bool,
    /// Some slot was hinted.
    hinted: bool,
    /// When the first that is not old enough will be.
    ripens: Option<UnixMillis>,
}

impl Fresh {
    fn take(&mut self, slot: &Slot, hinted: Seq, now: UnixMillis) {
        self.urgency = if self.upto.is_some() { self.urgency.max(slot.urgency) } else { slot.urgency };
        self.upto = Some(slot.seq);
        hasten(&mut self.since, slot.at);
        self.expires_at = self.expires_at.max(slot.expires_at);
        self.hinted |= slot.seq <= hinted;
        let ripe = slot.at + ACK_TIME;
        if ripe <= now {
            self.aged = true;
        } else {
            hasten(&mut self.ripens, ripe);
        }
    }
}

/// Makes it this one, unless an earlier one is there.
fn hasten(time: &mut Option<UnixMillis>, other: UnixMillis) {
    *time = Some(time.map_or(other, |time| time.min(other)));
}

impl Eyes {
    /// Looks at all devices of a mailbox.
    pub async fn look(&self, ask: Ask) -> Result<Look> {
        let mailbox = ask.mailbox;
        let head = self.store.head(mailbox, false).await?;
        let mut look = Look { head, ..Look::default() };
        if head == Seq(0) {
            return Ok(look);
        }
        let devices = self.store.devices(mailbox).await?.devices;
        let candidates = devices.into_iter().filter(|device| !device.revoked && device.since < head);
        let standing = stream::iter(candidates.map(|device| self.standing(mailbox, head, device)));
        let standing: Vec<Standing> = standing.buffered(READS_MAX).try_collect().await?;
        let mut behind = Vec::new();
        for one in standing {
            match one {
                Standing::Ahead => {}
                Standing::Behind(one) => behind.push(*one),
                Standing::Unreachable => look.unreachable += 1,
                Standing::Sealed => look.sealed += 1,
            }
        }
        if behind.is_empty() {
            return Ok(look);
        }
        let now = self.clock.now();
        self.read(&mut behind, ask, head, now).await?;
        let mut leases = None;
        for one in behind {
            let Some((due, attempt)) = one.due(mailbox, now) else { continue };
            if due > now {
                hasten(&mut look.again, due);
                continue;
            }
            let leases = match &leases {
                Some(leases) => leases,
                None => leases.insert(self.presence.devices(mailbox).await),
            };
            if let Some(again) = one.wait(leases.as_deref(), now) {
                look.alive += usize::from(one.is_alive(leases.as_deref()));
                hasten(&mut look.again, again);
                continue;
            }
            self.reach(&mut look, ask, one, attempt, now).await?;
        }
        Ok(look)
    }

    async fn standing(&self, mailbox: MailboxId, head: Seq, device: Device) -> Result<Standing> {
        let cursor = self.store.cursor(mailbox, &device.device).await?.max(device.since);
        if cursor >= head {
            return Ok(Standing::Ahead);
        }
        let Some(sealed) = self.store.push_targets(mailbox, &device.device).await? else {
            return Ok(Standing::Unreachable);
        };
        let settings = match self.keys.open(&sealed, mailbox, &device.device) {
            Ok(settings) if settings.targets.is_empty() => return Ok(Standing::Unreachable),
            Ok(settings) => settings,
            Err(error) => {
                tracing::error!("push_sealed: {error}");
                return Ok(Standing::Sealed);
            }
        };
        let woken = self.store.woken(mailbox, &device.device).await?;
        let last = woken.map(|woken| woken.at);
        let woken = woken.filter(|woken| woken.seq > cursor);
        let behind = Behind { device, cursor, settings, woken, last, fresh: Fresh::default() };
        Ok(Standing::Behind(Box::new(behind)))
    }

    /// Reads what the devices were not woken for yet.
    async fn read(&self, behind: &mut [Behind], ask: Ask, head: Seq, now: UnixMillis) -> Result<()> {
        let Some(mut after) = behind.iter().map(Behind::known).min() else { return Ok(()) };
        let mut rows = 0;
        while after < head {
            let page = self.store.read(ask.mailbox, after, PAGE.0, PAGE.1).await?;
            for slot in &page.slots {
                after = slot.seq;
                rows += 1;
                for one in behind.iter_mut() {
                    if one.is_for(slot, one.known(), now) {
                        one.fresh.take(slot, ask.hinted, now);
                    }
                }
            }
            match page.end {
                PageEnd::Head(_) => break,
                PageEnd::Limit => {}
                PageEnd::Truncated(upto) => after = after.max(upto),
            }
            if rows >= SLOTS_MAX {
                // What lies further is not read for a wake: it says nothing but "sync".
                for one in behind.iter_mut().filter(|one| one.fresh.upto.is_some()) {
                    one.fresh.upto = Some(head);
                }
                break;
            }
        }
        Ok(())
    }

    /// What is still to be fetched of what a device was woken for: the highest urgency and the last expiry; `None`: nothing.
    async fn left(&self, one: &Behind, mailbox: MailboxId, now: UnixMillis) -> Result<Option<Fresh>> {
        let page = self.store.read(mailbox, one.cursor, PAGE.0, PAGE.1).await?;
        let mut left = Fresh::default();
        for slot in page.slots.iter().filter(|slot| one.is_for(slot, one.cursor, now)) {
            left.take(slot, slot.seq, now);
        }
        Ok(left.upto.is_some().then_some(left))
    }

    async fn reach(
        &self,
        look: &mut Look,
        ask: Ask,
        mut one: Behind,
        attempt: u8,
        now: UnixMillis,
    ) -> Result<()> {
        let mut upto = one.fresh.upto;
        if upto.is_none() {
            let Some(left) = self.left(&one, ask.mailbox, now).await? else { return Ok(()) };
            upto = one.woken.map(|woken| woken.seq);
            one.fresh = left;
        }
        let Behind { device: Device { device, .. }, settings, .. } = one;
        let urgency = one.fresh.urgency;
        // Never later than an interval from now: whoever wrote that time may have had a clock far ahead. One that came is woken
        // anew at once for what a person notices; what nobody notices waits, since providers count it.
        let interval = self.intervals.of(urgency);
        let last = if urgency == Urgency::Background { one.last } else { one.woken.map(|woken| woken.at) };
        let rested = last.map_or(now, |at| now.max((at + interval).min(now + interval)));
        let due = settings.quiet.due(urgency, rested);
        let life = if urgency == Urgency::Call { CALL_LIFE } else { WAKE_LIFE };
        let (Some(upto), Some(since)) = (upto, one.fresh.since) else { return Ok(()) };
        let expires_at = one.fresh.expires_at.min(due + life);
        look.sleepers.push(Sleeper { device, upto, attempt, urgency, since, expires_at, due, settings });
        Ok(())
    }
}

impl Behind {
    /// What it was woken for, or has.
    fn known(&self) -> Seq {
        self.woken.map_or(self.cursor, |woken| woken.seq)
    }

    fn is_for(&self, slot: &Slot, after: Seq, now: UnixMillis) -> bool {
        slot.seq > after
            && slot.devices.targets(&self.device.device, self.device.since, slot.seq)
            && slot.expires_at > now
            && matches!(slot.body, SlotBody::Present(_))
    }

    /// When it is to be woken, and which attempt that is; `None`: not at all.
    fn due(&self, mailbox: MailboxId, now: UnixMillis) -> Option<(UnixMillis, u8)> {
        let fresh = &self.fresh;
        if fresh.aged || fresh.hinted {
            return Some((now, 0));
        }
        let again = self.woken.and_then(|woken| {
            let at = repeat(mailbox, &self.device.device, woken)?;
            Some((at.max(now), woken.attempt + 1))
        });
        let ripens = fresh.ripens.map(|at| (at, 0));
        match (again, ripens) {
            (Some(again), Some(ripens)) => Some(if again.0 <= ripens.0 { again } else { ripens }),
            (again, ripens) => again.or(ripens),
        }
    }

    fn is_alive(&self, leases: Option<&[DeviceLease]>) -> bool {
        let mine = leases.unwrap_or_default().iter().filter(|lease| lease.device == self.device.device);
        mine.into_iter().any(|lease| lease.age <= LIFE)
    }

    /// When to look again, if it is not to be woken now: its lease shows life, or nobody knows and its slots are young.
    fn wait(&self, leases: Option<&[DeviceLease]>, now: UnixMillis) -> Option<UnixMillis> {
        let held = self.is_alive(leases) || (leases.is_none() && !self.fresh.aged);
        let repeats = self.fresh.upto.is_none();
        if !held || (repeats && leases.is_none()) {
            return None;
        }
        let soon = now + LOOK_AGAIN;
        Some(if self.fresh.aged || repeats { soon } else { self.fresh.ripens.unwrap_or(soon) })
    }
}

/// When the next wake after this one is due, alike in every pusher.
pub(crate) fn repeat(mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Option<UnixMillis> {
    let digest = Sha256::new()
        .chain_update(mailbox.as_bytes())
        .chain_update(device.as_str())
        .chain_update([woken.attempt])
        .finalize();
    let spread = digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    schedule::repeat(woken.attempt, woken.at, spread)
}

/// Where a device is reached, if it still is to be woken: it has neither acked these slots nor been woken for them.
pub(crate) async fn still(
    eyes: &Eyes,
    mailbox: MailboxId,
    device: &DeviceId,
    upto: Seq,
    attempt: u8,
) -> Result<Option<PushSettings>> {
    let (cursor, woken, sealed) = tokio::try_join!(
        eyes.store.cursor(mailbox, device),
        eyes.store.woken(mailbox, device),
        eyes.store.push_targets(mailbox, device)
    )?;
    if cursor >= upto || woken.is_some_and(|woken| (woken.seq, woken.attempt) >= (upto, attempt)) {
        return Ok(None);
    }
    Ok(sealed.and_then(|sealed| eyes.keys.open(&sealed, mailbox, device).ok()))
}
