//! Push targets, wakes and the scan of notes, in memory. **Invariant:** push targets stand only beside a device that is not
//! revoked.

use super::{Due, MemoryRows};
use crate::error::Result;
use crate::wakes::{MINUTE_MS, PENDING_MS, last_minute, note_minute};
use crate::{PendingFrom, PendingPage, Woken};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId};
use chappe_protocol::time::UnixMillis;
use std::collections::BTreeSet;

impl MemoryRows {
    pub(super) fn push_of(&self, mailbox: MailboxId, device: &DeviceId) -> Option<Bytes> {
        self.tables().pushes.get(&(mailbox, device.clone())).cloned()
    }

    pub(super) fn put_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> bool {
        let (mut tables, _) = self.tables_mut();
        let row = tables.devices.get(&mailbox).and_then(|table| table.rows.get(device));
        let live = row.is_some_and(|(row, _)| !row.revoked);
        if live {
            tables.pushes.insert((mailbox, device.clone()), push);
        }
        live
    }

    pub(super) fn swap_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> bool {
        let (mut tables, _) = self.tables_mut();
        let key = (mailbox, device.clone());
        if tables.pushes.get(&key) != Some(old) {
            return false;
        }
        match new {
            Some(new) => drop(tables.pushes.insert(key, new)),
            None => drop(tables.pushes.remove(&key)),
        }
        true
    }

    pub(super) fn woken_of(&self, mailbox: MailboxId, device: &DeviceId) -> Option<Woken> {
        self.tables().wokens.get(&(mailbox, device.clone())).copied()
    }

    pub(super) fn put_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        woken.stamp()?;
        let (mut tables, _) = self.tables_mut();
        let stored = tables.wokens.entry((mailbox, device.clone())).or_insert(woken);
        *stored = woken.max(*stored);
        Ok(())
    }

    pub(super) fn note(&self, mailbox: MailboxId, at: UnixMillis) {
        let (mut tables, now) = self.tables_mut();
        let minute = note_minute(at, now);
        if tables.pending.insert((minute, mailbox)) {
            let until = UnixMillis(minute * MINUTE_MS + PENDING_MS);
            tables.due.insert((until, Due::Pending(minute, mailbox)));
        }
    }

    pub(super) fn noted_since(&self, since: UnixMillis) -> (Vec<MailboxId>, UnixMillis) {
        let now = self.world.wall();
        let first = PendingFrom::since(since).kept(now).minute();
        let tables = self.tables();
        let noted = tables.pending.range((first, MailboxId::default())..);
        let come = noted.take_while(|(minute, _)| *minute <= last_minute(now));
        let mailboxes: BTreeSet<_> = come.map(|(_, mailbox)| *mailbox).collect();
        (mailboxes.into_iter().collect(), now)
    }

    pub(super) fn put_swept(&self, shard: u8, upto: UnixMillis) {
        let (mut tables, _) = self.tables_mut();
        let stored = tables.swept.entry(shard).or_insert(upto);
        *stored = upto.max(*stored);
    }

    pub(super) fn noted(&self, shard: u8, from: PendingFrom, rows_max: usize) -> PendingPage {
        let now = self.world.wall();
        let tables = self.tables();
        let first = (from.kept(now).minute(), MailboxId::default());
        let come = tables.pending.range(first..).take_while(|(minute, _)| *minute <= last_minute(now));
        let noted = come.copied().filter(|(_, mailbox)| mailbox.shard() == shard);
        PendingPage::cut(noted, from, rows_max, now)
    }
}
