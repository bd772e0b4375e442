//! Devices, their sessions and cursors. **Invariant:** a device's first cursor is the head at SERIAL, written before the
//! device can be addressed; a cursor is only raised, and never beyond a head that was seen.

use super::SlotLog;
use super::cache::Known;
use super::stats::add;
use crate::error::{Result, StoreError};
use crate::rows::Rows;
use crate::{Attach, Attached, Device, Store, every_device};
use chappe_protocol::id::{DeviceId, Epoch, MailboxId, Seq};
use chappe_protocol::time::Millis;

/// A cursor or a wake is written beside a remembered head that is no older: so long another router's erase may go unseen.
const ERASED_UNSEEN_MAX: Millis = Millis(60_000);

impl<R: Rows> SlotLog<R> {
    pub(super) async fn attach_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        attach: Attach,
    ) -> Result<Attached> {
        if *device == every_device() {
            return Err(StoreError::Revoked);
        }
        let head = self.open_head(mailbox, true).await?;
        let found = self.rows.device(mailbox, device).await?;
        let (mut row, added) = match found {
            Some(row) if row.epoch > Epoch::default() || row.revoked => (row, false),
            Some(_) => (self.first_session(mailbox, device, head).await?, false),
            None => self.add_device(mailbox, device, head).await?,
        };
        if row.revoked {
            return Err(StoreError::Revoked);
        }
        self.check_cursor(attach.cursor, head)?;
        // Probes read heads and sessions of pending mailboxes only.
        self.add_pending(mailbox).await?;
        (row.epoch, row.connection) = (Epoch(row.epoch.0 + 1), attach.connection);
        self.rows.raise_session(mailbox, device, row.epoch, row.connection).await?;
        if let Some(cursor) = attach.cursor {
            self.rows.raise_cursor(mailbox, device, cursor).await?;
        }
        // One that was added by this very call has no cursor of its own.
        let cursor = if added { Some(attach.cursor.unwrap_or(row.since)) } else { attach.cursor };
        let from = self.start(mailbox, &row, cursor).await?;
        Ok(Attached { device: row, from, head })
    }

    pub(super) async fn glance_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        cursor: Option<Seq>,
    ) -> Result<Option<Attached>> {
        let head = self.open_head(mailbox, true).await?;
        let Some(row) = self.rows.device(mailbox, device).await? else {
            return if self.is_barred(mailbox).await? { Err(StoreError::Revoked) } else { Ok(None) };
        };
        if row.revoked {
            return Err(StoreError::Revoked);
        }
        self.check_cursor(cursor, head)?;
        let from = self.start(mailbox, &row, cursor).await?;
        Ok(Some(Attached { device: row, from, head }))
    }

    pub(super) async fn revoke_device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        if self.rows.device(mailbox, device).await?.is_none() {
            // It never attached, and never shall.
            let head = self.open_head(mailbox, true).await?;
            self.rows.create_device(mailbox, device, head).await?;
        }
        self.rows.revoke(mailbox, device).await?;
        self.add_pending(mailbox).await
    }

    pub(super) async fn advance_cursor(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        upto: Seq,
    ) -> Result<()> {
        let head = self.head_beyond(mailbox, upto).await?;
        self.check_cursor(Some(upto), head)?;
        self.rows.raise_cursor(mailbox, device, upto).await
    }

    /// A head that is at least `upto`, else the one at SERIAL; no cursor or wake is written beside an older one.
    pub(super) async fn head_beyond(&self, mailbox: MailboxId, upto: Seq) -> Result<Seq> {
        let now = self.world.now();
        let usable = |known: &Known| upto <= known.seq() && now - known.at <= ERASED_UNSEEN_MAX;
        match self.cache.known(mailbox).filter(usable) {
            Some(known) if known.erased() => Err(StoreError::Erased),
            Some(known) => Ok(known.seq()),
            None => self.open_head(mailbox, true).await,
        }
    }

    /// The end of every call that writes devices, cursors or wakes. An erase that went on beside it may have deleted the rows
    /// before this call, or an earlier try of it, wrote one: then nothing of it is left, whatever became of the call.
    pub(super) async fn unless_erased<T>(&self, mailbox: MailboxId, done: Result<T>) -> Result<T> {
        if self.cache.known(mailbox).is_some_and(|known| known.erased()) {
            self.rows.delete_devices(mailbox).await?;
            return Err(StoreError::Erased);
        }
        done
    }

    /// A device that is not in the set, and whether this call has added it. The set is compared, so neither a bar nor one device too
    /// many slips in between.
    async fn add_device(&self, mailbox: MailboxId, device: &DeviceId, head: Seq) -> Result<(Device, bool)> {
        let (version, rows) = self.rows.devices(mailbox).await?;
        if rows.iter().any(|(row, _)| row.revoked && row.device == every_device()) {
            return Err(StoreError::Revoked);
        }
        if rows.iter().filter(|(row, _)| !row.revoked).count() >= self.config.devices_max {
            return Err(StoreError::Quota);
        }
        if self.rows.add_device(mailbox, device, head, version).await? {
            return Ok((Device::fresh(device, head), true));
        }
        Ok((self.first_session(mailbox, device, head).await?, false))
    }

    /// A device without a session so far. Its creation may have stopped half-way, and a trim that misses the row would not wait for
    /// it: no session was written before a creation was answered.
    async fn first_session(&self, mailbox: MailboxId, device: &DeviceId, head: Seq) -> Result<Device> {
        let row = self.rows.create_device(mailbox, device, head).await?;
        // A bar that was set meanwhile may have missed this row.
        if self.is_barred(mailbox).await? {
            self.rows.revoke(mailbox, device).await?;
            return Err(StoreError::Revoked);
        }
        Ok(row)
    }

    async fn is_barred(&self, mailbox: MailboxId) -> Result<bool> {
        Ok(self.rows.device(mailbox, &every_device()).await?.is_some_and(|row| row.revoked))
    }

    fn check_cursor(&self, cursor: Option<Seq>, head: Seq) -> Result<()> {
        match cursor {
            Some(cursor) if cursor > head => {
                add(&self.counters.cursors_ahead, 1);
                tracing::error!(cursor = cursor.0, head = head.0, "a cursor lies beyond the head: refused");
                Err(StoreError::CursorAhead { cursor, head })
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn start(&self, mailbox: MailboxId, row: &Device, cursor: Option<Seq>) -> Result<Seq> {
        let cursor = match cursor {
            Some(cursor) => cursor,
            None => self.rows.cursor(mailbox, &row.device).await?,
        };
        Ok(cursor.max(row.since))
    }
}
