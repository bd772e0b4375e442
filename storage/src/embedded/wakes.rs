//! Push targets, wakes and the scan of notes, in the embedded store. **Invariant:** push targets stand only beside a device
//! that is not revoked; one call of the scan reads a bounded number of rows.

use super::EmbeddedRows;
use super::keys;
use super::table::Reads;
use super::values::{self, Damaged};
use crate::error::Result;
use crate::rows::Rows;
use crate::wakes::{last_minute, note_minute};
use crate::{PendingFrom, PendingPage, Woken};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId};
use chappe_protocol::time::UnixMillis;
use std::collections::BTreeSet;

/// Notes that one page looks at. Those of all shards lie together: a scan of one shard passes the others.
const LOOKED_AT_MAX: usize = 65_536;

impl EmbeddedRows {
    pub(super) async fn put_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool> {
        let device = device.clone();
        self.write(push.len(), move |tables| {
            let stored = tables.read_device(mailbox, &device)?;
            if stored.is_none_or(|(device, _)| device.revoked) {
                return Ok(false);
            }
            tables.put(keys::push(mailbox, &device), values::push(&push));
            Ok(true)
        })
        .await
    }

    pub(super) async fn swap_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        let (device, old) = (device.clone(), old.clone());
        self.write(new.as_ref().map_or(0, Bytes::len), move |tables| {
            if tables.read_push(mailbox, &device)?.as_ref() != Some(&old) {
                return Ok(false);
            }
            let key = keys::push(mailbox, &device);
            match new {
                Some(new) => tables.put(key, values::push(&new)),
                None => tables.remove(key),
            }
            Ok(true)
        })
        .await
    }

    pub(super) async fn put_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        woken.stamp()?;
        let device = device.clone();
        self.write(0, move |tables| {
            if Some(woken) > tables.read_woken(mailbox, &device)? {
                tables.put(keys::woken(mailbox, &device), values::woken(woken));
            }
            Ok(())
        })
        .await
    }

    /// Durable when answered, unlike a note of the present: nobody writes behind it.
    pub(super) async fn note_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        let minute = note_minute(at, self.now());
        self.note_in(mailbox, minute).await
    }

    pub(super) async fn note_in(&self, mailbox: MailboxId, minute: u64) -> Result<()> {
        self.write(0, move |tables| {
            tables.put(keys::pending(minute, mailbox), Bytes::new());
            Ok(())
        })
        .await
    }

    pub(super) async fn noted_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        let now = self.now();
        let (first, end) = (PendingFrom::since(since).kept(now).minute(), last_minute(now) + 1);
        if first >= end {
            return Ok((Vec::new(), now));
        }
        // The notes before the rows: a note leaves the one after it came to the other.
        let come = (first, MailboxId::default())..(end, MailboxId::default());
        let waiting = self.shared.notes().range(come).map(|(_, mailbox)| *mailbox).collect();
        let range = (keys::pending_from(first), keys::pending_from(end));
        self.read_aside(range, move |rows, from, to| {
            let mut mailboxes: BTreeSet<MailboxId> = waiting;
            rows.visit(from, to, |key, _| {
                mailboxes.insert(keys::read_pending(key).ok_or(Damaged)?.1);
                Ok(true)
            })?;
            Ok((mailboxes.into_iter().collect(), now))
        })
        .await
    }

    pub(super) async fn put_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        self.write(0, move |tables| {
            if Some(upto) > tables.read_swept(shard)? {
                tables.put(keys::swept(shard), values::number(upto.0));
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn noted(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        let now = self.now();
        let from = from.kept(now);
        let (first, end) = ((from.minute(), from.after().unwrap_or_default()), last_minute(now) + 1);
        if first.0 >= end {
            return Ok(PendingPage { mailboxes: Vec::new(), next: None, as_of: now });
        }
        // The notes before the rows: a note leaves the one after it came to the other.
        let waiting = self.shared.notes().range(first..).copied().collect();
        let range = (keys::pending(first.0, first.1), keys::pending_from(end));
        self.read_aside(range, move |rows, begin, end| {
            let mut notes: BTreeSet<(u64, MailboxId)> = waiting;
            let (mut looked_at, mut reached) = (0, None);
            rows.visit(begin, end, |key, _| {
                let note = keys::read_pending(key).ok_or(Damaged)?;
                looked_at += 1;
                if looked_at > LOOKED_AT_MAX {
                    return Ok(false);
                }
                reached = Some(note);
                if note.1.shard() == shard {
                    notes.insert(note);
                }
                Ok(true)
            })?;
            // What waits behind the last row that was looked at comes with the next page.
            let reached = reached.filter(|_| looked_at > LOOKED_AT_MAX);
            let in_reach = |note: &(u64, MailboxId)| {
                note.1.shard() == shard && reached.is_none_or(|reached| *note <= reached)
            };
            let page = PendingPage::cut(notes.into_iter().filter(in_reach), from, rows_max, now);
            let next = page.next.or(reached.map(PendingFrom::behind));
            Ok(PendingPage { next, ..page })
        })
        .await
    }
}
