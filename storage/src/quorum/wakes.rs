//! Push targets, wakes and the scan of notes, on replicas. **Invariant:** push targets are written by transactions on the
//! device's partition only, and wakes with themselves as timestamps.

use super::cell::{Column, Key, Mutation, Row, Value, View, Write};
use super::paxos::Found;
use super::writes::device_of;
use super::{QuorumRows, TTL_SLACK};
use crate::error::Result;
use crate::rows::Rows;
use crate::wakes::{MINUTE_MS, PENDING_MS, last_minute, note_minute};
use crate::{PendingFrom, PendingPage, Woken};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId};
use chappe_protocol::time::{Millis, UnixMillis};
use std::collections::BTreeSet;

fn push_in<'a>(view: &'a View, device: &DeviceId) -> Option<&'a Bytes> {
    match view.get(&Row::Device(device.clone()), Column::Push) {
        Some(Value::Push(push)) => Some(push),
        Some(_) | None => None,
    }
}

impl QuorumRows {
    pub(super) async fn push_of(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        let view = self.read(&Key::Devices(mailbox)).await?;
        Ok(push_in(&view, device).cloned())
    }

    pub(super) async fn put_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool> {
        let key = Key::Devices(mailbox);
        let decide = |found: &Found<'_>| {
            if device_of(found.view, device).is_none_or(|(device, _)| device.revoked) {
                return (None, false);
            }
            let row = Row::Device(device.clone());
            let writes = vec![Write::set(row, Column::Push, Value::Push(push.clone()))];
            (Some(Mutation { key: key.clone(), writes }), true)
        };
        self.transact(&key, decide).await
    }

    pub(super) async fn swap_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        let key = Key::Devices(mailbox);
        let decide = |found: &Found<'_>| {
            if push_in(found.view, device) != Some(old) {
                return (None, false);
            }
            let row = Row::Device(device.clone());
            let write = match &new {
                Some(new) => Write::set(row, Column::Push, Value::Push(new.clone())),
                None => Write::unset(row, Column::Push),
            };
            (Some(Mutation { key: key.clone(), writes: vec![write] }), true)
        };
        self.transact(&key, decide).await
    }

    pub(super) async fn woken_of(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        let view = self.read(&Key::Wokens(mailbox)).await?;
        Ok(match view.get(&Row::Device(device.clone()), Column::Value) {
            Some(Value::Woken(woken)) => Some(*woken),
            Some(_) | None => None,
        })
    }

    pub(super) async fn put_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        let at = woken.stamp()?;
        let write = Write::raise(Row::Device(device.clone()), Column::Value, Value::Woken(woken), at);
        self.write(Mutation { key: Key::Wokens(mailbox), writes: vec![write] }, 0).await
    }

    pub(super) async fn note(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        let minute = note_minute(at, self.now());
        let until = UnixMillis(minute * MINUTE_MS + PENDING_MS) + TTL_SLACK + Millis(MINUTE_MS);
        let write = Write::set_until(Row::Minute(minute, mailbox), Column::Value, Value::Yes, until);
        self.write(Mutation { key: Key::Pending, writes: vec![write] }, self.now_stamp()).await
    }

    pub(super) async fn noted_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        let now = self.now();
        let come = PendingFrom::since(since).kept(now).minute()..=last_minute(now);
        let view = self.read(&Key::Pending).await?;
        let noted = |(row, _): (&Row, &Value)| match row {
            Row::Minute(minute, mailbox) if come.contains(minute) => Some(*mailbox),
            Row::Minute(..) | Row::Static | Row::Slot(_) | Row::Id(_) | Row::Device(_) => None,
        };
        let noted: BTreeSet<_> = view.rows(Column::Value).filter_map(noted).collect();
        Ok((noted.into_iter().collect(), now))
    }

    pub(super) async fn swept_of(&self, shard: u8) -> Result<Option<UnixMillis>> {
        let view = self.read(&Key::Swept(shard)).await?;
        Ok(match view.get(&Row::Static, Column::Value) {
            Some(Value::Count(upto)) => Some(UnixMillis(*upto)),
            Some(_) | None => None,
        })
    }

    pub(super) async fn put_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        let write = Write::raise(Row::Static, Column::Value, Value::Count(upto.0), upto.0);
        self.write(Mutation { key: Key::Swept(shard), writes: vec![write] }, 0).await
    }

    pub(super) async fn noted(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        let now = self.now();
        let view = self.read(&Key::Pending).await?;
        // The rows of a view are in order.
        let noted = view.rows(Column::Value).filter_map(|(row, _)| match row {
            Row::Minute(minute, mailbox) if mailbox.shard() == shard => Some((*minute, *mailbox)),
            Row::Minute(..) | Row::Static | Row::Slot(_) | Row::Id(_) | Row::Device(_) => None,
        });
        Ok(PendingPage::cut(noted, from, rows_max, now))
    }
}
