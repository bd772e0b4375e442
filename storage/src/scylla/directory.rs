//! Everything that is not the log: hints, floors, cursors, devices, users, payloads.
//! **Invariant:** what only grows is written so that the database itself keeps the greatest: by timestamp or by transaction.

use super::append::ttl_s;
use super::database::{Database, damaged, rows};
use super::values::{Damaged, Value, big, from_big, read_session, session};
use crate::error::{Result, StoreError};
use crate::rows::Floor;
use crate::{Device, User};
use bytes::Bytes;
use chappe_protocol::id::{Bucket, ConnectionId, DeviceId, Epoch, MailboxId, PayloadId, Seq, UserId};
use chappe_protocol::time::UnixMillis;
use tokio::sync::SemaphorePermit;

/// Tries of a transaction on a row that others change too. Each refusal means that another one succeeded.
const ROUNDS_MAX: usize = 50;
/// Devices that one statement reads.
const DEVICES_PAGE: usize = 512;
/// What is written to an erased mailbox within this time stays deleted. ScyllaDB takes up to three days.
const ERASED_AHEAD_US: u64 = 24 * 3_600_000_000;

/// A device and the times of its conditional writes.
type TimeColumns<'a> = (Option<&'a str>, Option<i64>, Option<i64>, Option<i64>);
type DeviceColumns<'a> = (Option<i64>, Option<bool>, Option<&'a [u8]>);

fn device_row(device: &DeviceId, columns: DeviceColumns<'_>) -> Result<Option<Device>, Damaged> {
    let (since, revoked, session) = columns;
    // A session alone makes no device.
    let Some(since) = since else { return Ok(None) };
    let (epoch, connection) = read_session(session)?;
    let revoked = revoked.unwrap_or_default();
    Ok(Some(Device { device: device.clone(), since: Seq(from_big(since)?), revoked, epoch, connection }))
}

pub(super) fn limit(rows: usize) -> Value<'static> {
    Value::Int(i32::try_from(rows).unwrap_or(i32::MAX))
}

fn too_busy() -> StoreError {
    StoreError::Unavailable("too many others change this row".into())
}

impl Database {
    pub(super) async fn hint(&self, mailbox: MailboxId) -> Result<Bucket> {
        let answer = rows(self.run(&self.statements.hint, &[Value::Blob(mailbox.as_bytes())]).await?)?;
        let row = answer.maybe_first_row::<(Option<i64>,)>().map_err(damaged)?;
        Ok(Bucket(row.and_then(|(bucket,)| bucket).map_or(Ok(0), from_big)?))
    }

    pub(super) async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()> {
        if bucket.0 == 0 {
            return Ok(());
        }
        let values = [big(bucket.0), big(bucket.0), Value::Blob(mailbox.as_bytes())];
        self.run(&self.statements.raise_hint, &values).await.map(drop)
    }

    pub(super) async fn floor(&self, mailbox: MailboxId, serial: bool) -> Result<Floor> {
        let statement = if serial { &self.statements.floor_serial } else { &self.statements.floor };
        let answer = rows(self.run(statement, &[Value::Blob(mailbox.as_bytes())]).await?)?;
        let row = answer.maybe_first_row::<(Option<i64>, Option<i64>)>().map_err(damaged)?;
        let (bucket, bytes_total) = row.unwrap_or_default();
        Ok(Floor {
            bucket: Bucket(bucket.map_or(Ok(0), from_big)?),
            bytes_total: bytes_total.map_or(Ok(0), from_big)?,
        })
    }

    pub(super) async fn raise_floor(&self, mailbox: MailboxId, to: Floor) -> Result<Floor> {
        for _ in 0..ROUNDS_MAX {
            let found = self.floor(mailbox, true).await?;
            if found.bucket >= to.bucket {
                return Ok(found);
            }
            // Bucket 0 is never written: there is no row.
            let before = if found.bucket.0 == 0 { Value::Null } else { big(found.bucket.0) };
            let values = [big(to.bucket.0), big(to.bytes_total), Value::Blob(mailbox.as_bytes()), before];
            if self.run_if(&self.statements.raise_floor, &values).await? {
                return Ok(to);
            }
        }
        Err(too_busy())
    }

    pub(super) async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        let values = [Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
        let answer = rows(self.run(&self.statements.cursor, &values).await?)?;
        let row = answer.maybe_first_row::<(Option<i64>,)>().map_err(damaged)?;
        Ok(Seq(row.and_then(|(seq,)| seq).map_or(Ok(0), from_big)?))
    }

    /// The timestamp is the value: the greatest stands, in whatever order they come.
    pub(super) async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()> {
        if seq == Seq::ZERO {
            return Ok(());
        }
        let device = Value::Text(device.as_str());
        let values = [big(seq.0), big(seq.0), Value::Blob(mailbox.as_bytes()), device];
        self.run(&self.statements.raise_cursor, &values).await.map(drop)
    }

    pub(super) async fn devices(
        &self,
        place: SemaphorePermit<'_>,
        mailbox: MailboxId,
    ) -> Result<(u64, Vec<(Device, UnixMillis)>)> {
        type Columns<'a> = (
            Option<i64>,
            Option<&'a str>,
            Option<i64>,
            Option<bool>,
            Option<i64>,
            Option<&'a [u8]>,
            Option<i64>,
        );
        // The version is the first page's: one that is newer than the first rows would hide what changed in between for good.
        let (mut version, mut all, mut after, mut place) = (None, Vec::new(), String::new(), Some(place));
        loop {
            let values = [Value::Blob(mailbox.as_bytes()), Value::Text(&after), limit(DEVICES_PAGE)];
            let place = match place.take() {
                Some(place) => place,
                None => self.place().await?,
            };
            let answer = rows(self.run_placed(place, &self.statements.devices, &values).await?)?;
            let mut last = None;
            for row in answer.rows::<Columns<'_>>().map_err(damaged)? {
                let (set, device, since, revoked, created_at, session, session_at) = row.map_err(damaged)?;
                if version.is_none() {
                    version = Some(set.map_or(Ok(0), from_big)?);
                }
                let Some(device) = device else { continue };
                last = Some(device.to_owned());
                let device = DeviceId::new(device).map_err(damaged)?;
                let Some(device) = device_row(&device, (since, revoked, session))? else { continue };
                let at = created_at.unwrap_or_default().max(session_at.unwrap_or_default());
                all.push((device, UnixMillis(from_big(at)?)));
            }
            match last {
                Some(last) if answer.rows_num() == DEVICES_PAGE => after = last,
                Some(_) | None => return Ok((version.unwrap_or_default(), all)),
            }
        }
    }

    pub(super) async fn device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        serial: bool,
    ) -> Result<Option<Device>> {
        let statement = if serial { &self.statements.device_serial } else { &self.statements.device };
        let values = [Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
        let answer = rows(self.run(statement, &values).await?)?;
        let Some(row) = answer.maybe_first_row::<DeviceColumns<'_>>().map_err(damaged)? else {
            return Ok(None);
        };
        Ok(device_row(device, row)?)
    }

    async fn set_version(&self, mailbox: MailboxId) -> Result<Option<i64>> {
        let answer = self.run(&self.statements.set_version, &[Value::Blob(mailbox.as_bytes())]).await?;
        let answer = rows(answer)?;
        let row = answer.maybe_first_row::<(&[u8], Option<i64>)>().map_err(damaged)?;
        Ok(row.and_then(|(_, version)| version))
    }

    /// Raises the version of the set, as last read, together with what `change` and `values` do to one device; `false`: refused.
    async fn change_set(
        &self,
        mailbox: MailboxId,
        version: Option<i64>,
        change: &super::statements::Statement,
        values: Vec<Value<'_>>,
    ) -> Result<bool> {
        let next = Value::Big(version.unwrap_or_default().saturating_add(1));
        let before = version.map_or(Value::Null, Value::Big);
        let raise = vec![next, Value::Blob(mailbox.as_bytes()), before];
        self.run_batch_if(&[&self.statements.raise_set_version, change], &[raise, values]).await
    }

    pub(super) async fn create_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
    ) -> Result<Device> {
        for _ in 0..ROUNDS_MAX {
            if let Some(found) = self.device(mailbox, device, true).await? {
                return Ok(found);
            }
            let version = self.set_version(mailbox).await?;
            if self.insert_device(mailbox, device, since, version).await? {
                return Ok(Device::fresh(device, since));
            }
        }
        Err(too_busy())
    }

    async fn insert_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: Option<i64>,
    ) -> Result<bool> {
        let now = big(self.clock.now().0);
        let values = vec![big(since.0), now, Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
        self.change_set(mailbox, version, &self.statements.create_device, values).await
    }

    pub(super) async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool> {
        // No version is written as 0.
        let version = i64::try_from(version).ok().filter(|version| *version > 0);
        self.insert_device(mailbox, device, since, version).await
    }

    /// The greatest (epoch, connection) stands: the epoch is the timestamp, and of equal ones the greater value counts.
    pub(super) async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()> {
        let values = [
            big(epoch.0),
            Value::Owned(session(epoch, connection)),
            big(self.clock.now().0),
            Value::Blob(mailbox.as_bytes()),
            Value::Text(device.as_str()),
        ];
        self.run(&self.statements.raise_session, &values).await.map(drop)
    }

    pub(super) async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            match self.device(mailbox, device, true).await? {
                Some(found) if !found.revoked => {}
                Some(_) | None => return Ok(()),
            }
            let values = vec![Value::Blob(mailbox.as_bytes()), Value::Text(device.as_str())];
            let version = self.set_version(mailbox).await?;
            if self.change_set(mailbox, version, &self.statements.revoke_device, values).await? {
                return Ok(());
            }
        }
        Err(too_busy())
    }

    /// The mailbox is erased and its id is never used again, so whatever comes late may die as well.
    pub(super) async fn delete_devices(&self, mailbox: MailboxId) -> Result<()> {
        let mut newest = self.clock.now().0.saturating_mul(1000);
        let mut after = String::new();
        loop {
            let values = [Value::Blob(mailbox.as_bytes()), Value::Text(&after), limit(DEVICES_PAGE)];
            let answer = rows(self.run(&self.statements.device_times, &values).await?)?;
            let mut last = None;
            for row in answer.rows::<TimeColumns<'_>>().map_err(damaged)? {
                let (device, since, revoked, push) = row.map_err(damaged)?;
                let written = since.max(revoked).max(push).unwrap_or_default();
                newest = newest.max(from_big(written)?);
                last = device.map(str::to_owned);
            }
            match last {
                Some(last) if answer.rows_num() == DEVICES_PAGE => after = last,
                Some(_) | None => break,
            }
        }
        let beyond = || big(newest.saturating_add(ERASED_AHEAD_US));
        let mailbox = mailbox.as_bytes();
        self.run(&self.statements.delete_devices, &[beyond(), Value::Blob(mailbox)]).await?;
        self.run(&self.statements.delete_cursors, &[beyond(), Value::Blob(mailbox)]).await?;
        self.run(&self.statements.delete_wokens, &[beyond(), Value::Blob(mailbox)]).await?;
        Ok(())
    }

    pub(super) async fn user(&self, user: &UserId, serial: bool) -> Result<Option<User>> {
        let statement = if serial { &self.statements.user_serial } else { &self.statements.user };
        let answer = rows(self.run(statement, &[Value::Text(user.as_str())]).await?)?;
        let row = answer.maybe_first_row::<(Option<&[u8]>, Option<bool>)>().map_err(damaged)?;
        let Some((Some(mailbox), erased)) = row else { return Ok(None) };
        let mailbox = MailboxId::from_slice(mailbox).ok_or(Damaged("a mailbox's id"))?;
        Ok(Some(User { mailbox, erased: erased.unwrap_or_default() }))
    }

    pub(super) async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<User> {
        let fresh = User { mailbox, erased: false };
        for _ in 0..ROUNDS_MAX {
            // Who asks for this has mostly looked before: nobody has the name.
            let name = || Value::Text(user.as_str());
            let new = || Value::Blob(mailbox.as_bytes());
            if self.run_if(&self.statements.create_user, &[name(), new()]).await? {
                return Ok(fresh);
            }
            match self.user(user, true).await? {
                Some(found) if !found.erased => return Ok(found),
                Some(old) => {
                    let old = Value::Blob(old.mailbox.as_bytes());
                    if self.run_if(&self.statements.replace_user, &[new(), name(), old]).await? {
                        return Ok(fresh);
                    }
                }
                None => {}
            }
        }
        Err(too_busy())
    }

    pub(super) async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()> {
        let values = [Value::Text(user.as_str()), Value::Blob(mailbox.as_bytes())];
        // Refused: it has another mailbox by now.
        self.run_if(&self.statements.mark_erased, &values).await.map(drop)
    }

    pub(super) async fn put_payload(
        &self,
        id: PayloadId,
        bytes: &Bytes,
        expires_at: UnixMillis,
    ) -> Result<()> {
        let ttl = Value::Int(ttl_s(self.clock.now(), expires_at)?);
        let values = [Value::Blob(id.as_bytes()), Value::Blob(bytes), ttl];
        // Refused: an earlier attempt has written it.
        self.run_if(&self.statements.put_payload, &values).await.map(drop)
    }

    pub(super) async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>> {
        let answer = rows(self.run(&self.statements.payload, &[Value::Blob(id.as_bytes())]).await?)?;
        let row = answer.maybe_first_row::<(Option<&[u8]>,)>().map_err(damaged)?;
        Ok(row.and_then(|(bytes,)| bytes).map(Bytes::copy_from_slice))
    }

    pub(super) async fn delete_payload(&self, id: PayloadId) -> Result<()> {
        self.run_if(&self.statements.delete_payload, &[Value::Blob(id.as_bytes())]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_alone_makes_no_device() {
        let phone = DeviceId::new("phone").unwrap();
        let newest = session(Epoch(3), ConnectionId([1; 16]));
        assert_eq!(device_row(&phone, (None, None, Some(&newest))), Ok(None));
        let row = device_row(&phone, (Some(4), Some(false), Some(&newest))).unwrap().unwrap();
        assert_eq!((row.since, row.epoch, row.revoked), (Seq(4), Epoch(3), false));
    }
}
