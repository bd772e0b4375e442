//! Which devices an entry would reach. **Invariant:** a final refusal rests on a device set that was read after the submit arrived,
//! and never hits an entry that stands in the log already.
//!
//! A set that is a second old may accept: a device that is new since then has a first cursor below the slot, so the slot
//! reaches it all the same. A sender that states the version it knows is always checked against a fresh set.

use crate::config::RouterConfig;
use chappe_protocol::envelope::DeviceFilter;
use chappe_protocol::id::{DeviceId, EnvelopeId, MailboxId, Seq};
use chappe_protocol::internode::{Outcome, SubmitEntry, SubmitList};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use chappe_storage::{DeviceSet, Result, Store, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A set older than this is read again.
const FRESH: Millis = Millis(1000);
/// Sets with more devices are not kept.
const KEPT_DEVICES_MAX: usize = 64;

/// Device sets read within the last second, in two generations of bounded size and age: what is too old to be used soon
/// takes no memory either.
#[derive(Default)]
pub(crate) struct DeviceSets {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    young: HashMap<MailboxId, Kept>,
    old: HashMap<MailboxId, Kept>,
    /// Since when the young one is filled.
    begun: Time,
}

#[derive(Clone)]
struct Kept {
    set: Arc<DeviceSet>,
    read_at: Time,
}

impl DeviceSets {
    /// Forgets a set that is known to have changed.
    pub(crate) fn forget(&self, mailbox: MailboxId) {
        let mut inner = self.lock();
        inner.young.remove(&mailbox);
        inner.old.remove(&mailbox);
    }

    fn get(&self, mailbox: MailboxId, now: Time) -> Option<Arc<DeviceSet>> {
        let inner = self.lock();
        let kept = inner.young.get(&mailbox).or_else(|| inner.old.get(&mailbox))?;
        (now - kept.read_at < FRESH).then(|| Arc::clone(&kept.set))
    }

    /// The live devices that one of these filters names, by a set that is some 2 s old at most; `None`: there is none at hand.
    pub(crate) fn named<'a>(
        &self,
        mailbox: MailboxId,
        filters: &(impl Iterator<Item = &'a DeviceFilter> + Clone),
    ) -> Option<Vec<DeviceId>> {
        let set = {
            let inner = self.lock();
            let kept = inner.young.get(&mailbox).or_else(|| inner.old.get(&mailbox))?;
            Arc::clone(&kept.set)
        };
        let live = set.devices.iter().filter(|device| !device.revoked).map(|device| &device.device);
        Some(live.filter(|device| filters.clone().any(|filter| filter.names(device))).cloned().collect())
    }

    fn keep(&self, now: Time, mailbox: MailboxId, kept: Kept, sets_max: usize) {
        if kept.set.devices.len() > KEPT_DEVICES_MAX {
            return;
        }
        let mut inner = self.lock();
        if inner.young.len() >= sets_max / 2 || now - inner.begun >= FRESH {
            inner.old = std::mem::take(&mut inner.young);
            inner.begun = now;
        }
        inner.young.insert(mailbox, kept);
    }

    /// Gives all memory back if every set is too old to be used: no submit may come for a long time.
    pub(crate) fn expire(&self, now: Time) {
        let mut inner = self.lock();
        if now - inner.begun >= Millis(2 * FRESH.0) {
            inner.young = HashMap::new();
            inner.old = HashMap::new();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads device sets, and says of each entry of a list whether it may be appended.
pub(crate) struct Checker<'a> {
    pub(crate) config: &'a RouterConfig,
    pub(crate) world: &'a dyn World,
    pub(crate) store: &'a dyn Store,
    pub(crate) sets: &'a DeviceSets,
}

impl Checker<'_> {
    /// Per entry, `None` if it may be appended, else what it comes to. Everything is `Unavailable` if the store does not answer.
    pub(crate) async fn check(&self, list: &SubmitList) -> Vec<Option<Outcome>> {
        let checked = self.try_check(list).await;
        checked.unwrap_or_else(|_| vec![Some(Outcome::Unavailable); list.entries.len()])
    }

    async fn try_check(&self, list: &SubmitList) -> Result<Vec<Option<Outcome>>> {
        let states_version = list.entries.iter().any(|entry| entry.device_set_version.is_some());
        let kept = if states_version { None } else { self.sets.get(list.mailbox, self.world.now()) };
        if let Some(set) = kept {
            let verdicts: Vec<_> = list.entries.iter().map(|entry| verdict(&set, entry)).collect();
            if verdicts.iter().all(Option::is_none) {
                return Ok(verdicts);
            }
        }
        let set = self.read(list.mailbox).await?;
        let mut verdicts: Vec<_> = list.entries.iter().map(|entry| verdict(&set, entry)).collect();
        if set.devices.is_empty() && self.is_erased(list.mailbox).await? {
            verdicts.fill(Some(Outcome::UnknownUser));
        } else {
            self.spare_committed(list, &mut verdicts).await?;
        }
        Ok(verdicts)
    }

    /// An entry that an earlier attempt has committed is not refused because the devices changed since: its append finds
    /// it in the log.
    async fn spare_committed(&self, list: &SubmitList, verdicts: &mut [Option<Outcome>]) -> Result<()> {
        let refused: Vec<usize> = (0..verdicts.len()).filter(|at| verdicts[*at].is_some()).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let id = |at: &usize| {
            let entry = &list.entries[*at];
            EnvelopeId::derive(entry.submit_id, list.mailbox, entry.number)
        };
        let ids: Vec<EnvelopeId> = refused.iter().map(id).collect();
        match self.store.find(list.mailbox, &ids, list.base).await {
            Ok(places) => {
                for (at, _) in refused.into_iter().zip(places).filter(|(_, place)| place.is_some()) {
                    verdicts[at] = None;
                }
            }
            Err(StoreError::Erased) => verdicts.fill(Some(Outcome::UnknownUser)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn read(&self, mailbox: MailboxId) -> Result<Arc<DeviceSet>> {
        let read_at = self.world.now();
        let set = Arc::new(self.store.devices(mailbox).await?);
        let kept = Kept { set: Arc::clone(&set), read_at };
        self.sets.keep(self.world.now(), mailbox, kept, self.config.device_sets_max);
        Ok(set)
    }

    /// An erased mailbox has no devices either, but its user is gone for good.
    async fn is_erased(&self, mailbox: MailboxId) -> Result<bool> {
        match self.store.head(mailbox, true).await {
            Ok(head) => Ok(head == Seq::MAX),
            Err(StoreError::Erased) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn verdict(set: &DeviceSet, entry: &SubmitEntry) -> Option<Outcome> {
    let live = || set.devices.iter().filter(|device| !device.revoked);
    if entry.device_set_version.is_some_and(|version| version != set.version) {
        let devices = live().map(|device| device.device.clone()).collect();
        return Some(Outcome::DevicesChanged { version: set.version, devices });
    }
    let reaches_one = live().any(|device| entry.devices.names(&device.device));
    (!reaches_one).then_some(Outcome::NoDevice)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use chappe_protocol::id::{ConnectionId, Epoch};
    use chappe_storage::Device;

    #[test]
    fn what_is_too_old_to_be_used_is_not_kept() {
        let sets = DeviceSets::default();
        for number in 0..100_u8 {
            let now = Time(u64::from(number) * 100);
            let kept = Kept { set: Arc::new(DeviceSet::default()), read_at: now };
            sets.keep(now, MailboxId([number; 16]), kept, 1_000);
        }
        assert!(sets.get(MailboxId([95; 16]), Time(10_000)).is_some());
        assert!(sets.get(MailboxId([90; 16]), Time(10_000)).is_none(), "a second old");
        let inner = sets.lock();
        assert!(inner.young.len() + inner.old.len() <= 20, "two seconds' worth at most");
    }

    #[test]
    fn the_number_of_sets_and_of_their_devices_is_bounded() {
        let device = |n: usize| Device {
            device: DeviceId::new(&n.to_string()).unwrap(),
            since: Seq(0),
            revoked: false,
            epoch: Epoch(1),
            connection: ConnectionId([0; 16]),
        };
        let of = |devices: usize| {
            let devices = (0..devices).map(device).collect();
            Kept { set: Arc::new(DeviceSet { version: 1, devices }), read_at: Time(0) }
        };
        let sets = DeviceSets::default();
        for number in 0..100_u8 {
            sets.keep(Time(0), MailboxId([number; 16]), of(1), 10);
        }
        sets.keep(Time(0), MailboxId([100; 16]), of(KEPT_DEVICES_MAX + 1), 10);
        assert!(sets.get(MailboxId([99; 16]), Time(0)).is_some());
        assert!(sets.get(MailboxId([100; 16]), Time(0)).is_none(), "too large to be kept");
        let inner = sets.lock();
        assert!(inner.young.len() + inner.old.len() <= 10);
    }

    #[test]
    fn nothing_is_left_of_traffic_that_stopped() {
        let sets = DeviceSets::default();
        for number in 0..100_u8 {
            let now = Time(u64::from(number) * 20);
            let kept = Kept { set: Arc::new(DeviceSet::default()), read_at: now };
            sets.keep(now, MailboxId([number; 16]), kept, 1_000);
        }
        sets.expire(Time(2_900));
        assert!(sets.get(MailboxId([99; 16]), Time(2_900)).is_some(), "not yet too old");
        sets.expire(Time(4_000));
        let inner = sets.lock();
        assert_eq!((inner.young.len() + inner.old.len(), inner.young.capacity()), (0, 0));
    }
}
