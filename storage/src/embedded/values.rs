//! Values of the rows, as bytes with a checksum behind them.
//! **Invariant:** what was written reads back the same; bytes that were changed on the disk read back as [`Damaged`].

use crate::rows::{Floor, Head, SlotRow};
use crate::{Device, Entry, EntryPayload, User, Woken};
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;

/// A row's bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

/// Stands for the sender of an entry whose payload is gone: the name goes with the payload.
const FORGOTTEN: &str = "-";

/// Builds a value.
struct Out(Vec<u8>);

impl Out {
    fn new(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes + 4))
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    /// At most 255 bytes: names are bounded by their types (128 and 64).
    fn name(self, name: &str) -> Self {
        self.u8(name.len().to_le_bytes()[0]).raw(name.as_bytes())
    }
    fn done(mut self) -> Vec<u8> {
        // CRC-32C (RFC 3720, appendix B.4).
        let crc = crc32c::crc32c(&self.0);
        self.0.extend_from_slice(&crc.to_be_bytes());
        self.0
    }
}

/// Reads a value.
struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn open(value: &'a [u8]) -> Result<Self, Damaged> {
        let (body, crc) = value.split_last_chunk::<4>().ok_or(Damaged)?;
        if crc32c::crc32c(body) == u32::from_be_bytes(*crc) { Ok(Self(body)) } else { Err(Damaged) }
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Damaged)?;
        self.0 = rest;
        Ok(*first)
    }
    fn u8(&mut self) -> Result<u8, Damaged> {
        Ok(self.array::<1>()?[0])
    }
    fn u64(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn name(&mut self) -> Result<&'a str, Damaged> {
        let length = usize::from(self.u8()?);
        let (name, rest) = self.0.split_at_checked(length).ok_or(Damaged)?;
        self.0 = rest;
        core::str::from_utf8(name).map_err(|_| Damaged)
    }
    fn device(&mut self) -> Result<DeviceId, Damaged> {
        DeviceId::new(self.name()?).map_err(|_| Damaged)
    }
    fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}

pub(super) fn number(value: u64) -> Vec<u8> {
    Out::new(8).u64(value).done()
}

pub(super) fn read_number(value: &[u8]) -> Result<u64, Damaged> {
    In::open(value)?.u64()
}

pub(super) fn id16(value: [u8; 16]) -> Vec<u8> {
    Out::new(16).raw(&value).done()
}

pub(super) fn read_id16(value: &[u8]) -> Result<[u8; 16], Damaged> {
    In::open(value)?.array()
}

/// The journal's secret.
pub(super) fn key(value: [u8; 32]) -> Vec<u8> {
    Out::new(32).raw(&value).done()
}

pub(super) fn read_key(value: &[u8]) -> Result<[u8; 32], Damaged> {
    In::open(value)?.array()
}

/// A head, and when its partition must be looked at next for what has ended (0: never).
pub(super) fn head(head: Head, due: UnixMillis) -> Vec<u8> {
    Out::new(32).u64(head.seq.0).u64(head.opened_at.0).u64(head.bytes_total).u64(due.0).done()
}

pub(super) fn read_head(value: &[u8]) -> Result<(Head, UnixMillis), Damaged> {
    let mut read = In::open(value)?;
    let head = Head { seq: Seq(read.u64()?), opened_at: UnixMillis(read.u64()?), bytes_total: read.u64()? };
    Ok((head, UnixMillis(read.u64()?)))
}

/// Where an id stands, and since when.
pub(super) fn id(seq: Seq, at: UnixMillis) -> Vec<u8> {
    Out::new(16).u64(seq.0).u64(at.0).done()
}

pub(super) fn read_id(value: &[u8]) -> Result<(Seq, UnixMillis), Damaged> {
    let mut read = In::open(value)?;
    Ok((Seq(read.u64()?), UnixMillis(read.u64()?)))
}

pub(super) fn floor(floor: Floor) -> Vec<u8> {
    Out::new(16).u64(floor.bucket.0).u64(floor.bytes_total).done()
}

pub(super) fn read_floor(value: &[u8]) -> Result<Floor, Damaged> {
    let mut read = In::open(value)?;
    Ok(Floor { bucket: Bucket(read.u64()?), bytes_total: read.u64()? })
}

/// A device, without its name, and the time of its last session write.
pub(super) fn device(device: &Device, written: UnixMillis) -> Vec<u8> {
    Out::new(41)
        .u64(device.since.0)
        .u8(u8::from(device.revoked))
        .u64(device.epoch.0)
        .raw(&device.connection.0)
        .u64(written.0)
        .done()
}

pub(super) fn read_device(name: DeviceId, value: &[u8]) -> Result<(Device, UnixMillis), Damaged> {
    let mut read = In::open(value)?;
    let device = Device {
        device: name,
        since: Seq(read.u64()?),
        revoked: read.u8()? == 1,
        epoch: Epoch(read.u64()?),
        connection: ConnectionId(read.array()?),
    };
    Ok((device, UnixMillis(read.u64()?)))
}

pub(super) fn user(user: User) -> Vec<u8> {
    Out::new(17).raw(&user.mailbox.0).u8(u8::from(user.erased)).done()
}

pub(super) fn read_user(value: &[u8]) -> Result<User, Damaged> {
    let mut read = In::open(value)?;
    Ok(User { mailbox: MailboxId(read.array()?), erased: read.u8()? == 1 })
}

/// A shared payload and its end.
pub(super) fn payload(expires_at: UnixMillis, bytes: &[u8]) -> Vec<u8> {
    Out::new(8 + bytes.len()).u64(expires_at.0).raw(bytes).done()
}

pub(super) fn read_payload(value: &[u8]) -> Result<(UnixMillis, Bytes), Damaged> {
    let mut read = In::open(value)?;
    Ok((UnixMillis(read.u64()?), Bytes::copy_from_slice(read.rest())))
}

/// Sealed push targets.
pub(super) fn push(sealed: &[u8]) -> Vec<u8> {
    Out::new(sealed.len()).raw(sealed).done()
}

pub(super) fn read_push(value: &[u8]) -> Result<Bytes, Damaged> {
    Ok(Bytes::copy_from_slice(In::open(value)?.rest()))
}

pub(super) fn woken(woken: Woken) -> Vec<u8> {
    Out::new(17).u64(woken.seq.0).u8(woken.attempt).u64(woken.at.0).done()
}

pub(super) fn read_woken(value: &[u8]) -> Result<Woken, Damaged> {
    let mut read = In::open(value)?;
    Ok(Woken { seq: Seq(read.u64()?), attempt: read.u8()?, at: UnixMillis(read.u64()?) })
}

const GONE: u8 = 1;
const LOST: u8 = 2;
const REF: u8 = 4;

/// A slot's row. A row whose payload is gone keeps neither payload nor sender.
pub(super) fn slot(entry: &Entry, payload_gone: bool, lost: bool) -> Vec<u8> {
    let inline = match &entry.payload {
        EntryPayload::Inline(bytes) => bytes.len(),
        EntryPayload::Ref { .. } => 20,
    };
    let flags = if payload_gone { GONE } else { 0 }
        | if lost { LOST } else { 0 }
        | if matches!(entry.payload, EntryPayload::Ref { .. }) { REF } else { 0 };
    let urgency = match entry.urgency {
        Urgency::Background => 0,
        Urgency::Message => 1,
        Urgency::Call => 2,
    };
    let mut out = Out::new(96 + inline)
        .u8(flags)
        .raw(&entry.envelope_id.0)
        .u64(entry.at.0)
        .u64(entry.expires_at.0)
        .u8(urgency);
    out = filter(out, &entry.devices);
    if !payload_gone {
        out = out.name(entry.sender.user.as_str()).name(entry.sender.device.as_str());
    }
    match &entry.payload {
        EntryPayload::Inline(_) if payload_gone => out.done(),
        EntryPayload::Inline(bytes) => out.raw(bytes).done(),
        EntryPayload::Ref { id, bytes } => out.raw(&id.0).raw(&bytes.to_be_bytes()).done(),
    }
}

fn filter(out: Out, filter: &DeviceFilter) -> Out {
    let (tag, devices) = match filter {
        DeviceFilter::All => (0, &[][..]),
        DeviceFilter::Only(devices) => (1, &devices[..]),
        DeviceFilter::AllBut(devices) => (2, &devices[..]),
    };
    let count = u32::try_from(devices.len()).unwrap_or(u32::MAX);
    let out = out.u8(tag).raw(&count.to_be_bytes());
    devices.iter().fold(out, |out, device| out.name(device.as_str()))
}

fn read_filter(read: &mut In<'_>) -> Result<DeviceFilter, Damaged> {
    let tag = read.u8()?;
    let count = u32::from_be_bytes(read.array()?);
    let devices = (0..count).map(|_| read.device()).collect::<Result<Vec<_>, _>>()?;
    match tag {
        0 => Ok(DeviceFilter::All),
        1 => Ok(DeviceFilter::Only(devices)),
        2 => Ok(DeviceFilter::AllBut(devices)),
        _ => Err(Damaged),
    }
}

/// Reads a slot's row as it stands on the disk; the caller looks at the clock.
pub(super) fn read_slot(seq: Seq, value: &[u8]) -> Result<SlotRow, Damaged> {
    let mut read = In::open(value)?;
    let flags = read.u8()?;
    let payload_gone = flags & GONE != 0;
    let envelope_id = EnvelopeId(read.array()?);
    let at = UnixMillis(read.u64()?);
    let expires_at = UnixMillis(read.u64()?);
    let urgency = match read.u8()? {
        0 => Urgency::Background,
        1 => Urgency::Message,
        2 => Urgency::Call,
        _ => return Err(Damaged),
    };
    let devices = read_filter(&mut read)?;
    let (user, device) = if payload_gone { (FORGOTTEN, FORGOTTEN) } else { (read.name()?, read.name()?) };
    let sender = Sender {
        user: UserId::new(user).map_err(|_| Damaged)?,
        device: DeviceId::new(device).map_err(|_| Damaged)?,
    };
    let payload = if flags & REF != 0 {
        EntryPayload::Ref { id: PayloadId(read.array()?), bytes: u32::from_be_bytes(read.array()?) }
    } else {
        EntryPayload::Inline(Bytes::copy_from_slice(read.rest()))
    };
    let entry = Entry { envelope_id, sender, devices, at, expires_at, urgency, payload };
    Ok(SlotRow { seq, entry, payload_gone, lost: flags & LOST != 0 })
}

/// The row of a slot that was lost without a trace.
pub(super) fn lost_slot() -> Result<Vec<u8>, Damaged> {
    let entry = Entry {
        envelope_id: EnvelopeId::default(),
        sender: Sender {
            user: UserId::new(FORGOTTEN).map_err(|_| Damaged)?,
            device: DeviceId::new(FORGOTTEN).map_err(|_| Damaged)?,
        },
        devices: DeviceFilter::All,
        at: UnixMillis::default(),
        expires_at: UnixMillis::default(),
        urgency: Urgency::default(),
        payload: EntryPayload::Inline(Bytes::new()),
    };
    Ok(slot(&entry, true, true))
}
