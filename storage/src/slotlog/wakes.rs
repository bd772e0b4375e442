//! What a pusher writes. **Invariant:** a wake is noted only for a slot that is there, in a mailbox that was not erased; no
//! watermark hides notes of minutes to come.

use super::SlotLog;
use crate::error::{Result, StoreError};
use crate::rows::Rows;
use crate::wakes::{AHEAD, PENDING_MS};
use crate::{PUSH_BYTES_MAX, Woken};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId};
use chappe_protocol::time::UnixMillis;

/// Refuses what is too long.
pub(super) fn check_push(sealed: Option<&Bytes>) -> Result<()> {
    match sealed {
        Some(sealed) if sealed.len() > PUSH_BYTES_MAX => {
            Err(StoreError::Invalid("sealed push targets have at most 16 KiB"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses a shard that there is not.
pub(super) fn known(shard: u16) -> Result<u8> {
    let known = u8::try_from(shard).ok().filter(|shard| *shard < MailboxId::SHARDS);
    known.ok_or(StoreError::Invalid("there is no such shard"))
}

/// Whether a watermark is older than every note.
fn is_over(upto: UnixMillis, now: UnixMillis) -> bool {
    upto.0 < now.0.saturating_sub(PENDING_MS)
}

impl<R: Rows> SlotLog<R> {
    pub(super) async fn swept_lately(&self, shard: u16) -> Result<Option<UnixMillis>> {
        let stored = self.rows.swept(known(shard)?).await?;
        let now = self.rows.now();
        // One that lies ahead was written by a clock that was set back since. It cannot be lowered, but it need not be believed.
        Ok(stored.filter(|upto| !is_over(*upto, now) && *upto <= now + AHEAD))
    }

    pub(super) async fn raise_swept_seen(&self, shard: u16, upto: UnixMillis) -> Result<()> {
        let (shard, now) = (known(shard)?, self.rows.now());
        if upto > now + AHEAD {
            return Err(StoreError::Invalid("a watermark ahead of the store's clock"));
        }
        if is_over(upto, now) {
            return Ok(());
        }
        self.rows.raise_swept(shard, upto).await
    }

    pub(super) async fn raise_woken_seen(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        woken: Woken,
    ) -> Result<()> {
        woken.stamp()?;
        // One that lies too high would keep the device asleep until the log gets there.
        if woken.seq > self.head_beyond(mailbox, woken.seq).await? {
            return Err(StoreError::Invalid("a wake for a slot that is not there"));
        }
        self.rows.raise_woken(mailbox, device, woken).await
    }
}
