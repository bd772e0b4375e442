//! Values of the columns. **Invariant:** what was written reads back the same; a value that nobody here wrote is [`Damaged`].

use crate::error::StoreError;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, Seq, UserId};
use scylla::cluster::metadata::ColumnType;
use scylla::serialize::SerializationError;
use scylla::serialize::value::SerializeValue;
use scylla::serialize::writers::{CellWriter, WrittenCellProof};

/// A column holds what nobody here wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged(pub(super) &'static str);

impl From<Damaged> for StoreError {
    fn from(damaged: Damaged) -> Self {
        Self::Unavailable(format!("the database holds a value that cannot be read: {}", damaged.0))
    }
}

/// Stands for the sender of an entry whose payload is gone: the name goes with the payload.
const FORGOTTEN: &str = "-";

/// `kind` of the row of an id; 0 is a slot.
pub(super) const KIND_ID: i8 = 1;

/// `form` of a slot whose payload stands in table `payload`; 0: in the slot.
pub(super) const FORM_REF: i8 = 1;
/// Found missing, and told.
pub(super) const FORM_LOST: i8 = 3;

/// A value bound to a statement.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// `bigint`.
    Big(i64),
    /// `int`, and what stands behind USING TTL.
    Int(i32),
    /// `tinyint`.
    Tiny(i8),
    /// `text`.
    Text(&'a str),
    /// `blob`.
    Blob(&'a [u8]),
    /// `blob`, short.
    Owned(Vec<u8>),
    /// `list<blob>`, behind IN.
    Blobs(Vec<&'a [u8]>),
    /// Nothing is there.
    Null,
}

impl SerializeValue for Value<'_> {
    fn serialize<'b>(
        &self,
        typ: &ColumnType<'_>,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        match self {
            Self::Big(value) => value.serialize(typ, writer),
            Self::Int(value) => value.serialize(typ, writer),
            Self::Tiny(value) => value.serialize(typ, writer),
            Self::Text(value) => value.serialize(typ, writer),
            Self::Blob(value) => value.serialize(typ, writer),
            Self::Owned(value) => value.serialize(typ, writer),
            Self::Blobs(value) => value.serialize(typ, writer),
            Self::Null => Option::<i64>::None.serialize(typ, writer),
        }
    }
}

/// An unsigned number in a `bigint`; the greatest of one is the greatest of the other.
pub(super) fn big(value: u64) -> Value<'static> {
    Value::Big(to_big(value))
}

/// As [`big`].
pub(super) fn to_big(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The number back.
pub(super) fn from_big(value: i64) -> Result<u64, Damaged> {
    if value == i64::MAX {
        return Ok(u64::MAX);
    }
    u64::try_from(value).map_err(|_| Damaged("a negative number"))
}

/// The key of a slot.
pub(super) fn slot_key(seq: Seq) -> Value<'static> {
    Value::Owned(seq.0.to_be_bytes().to_vec())
}

/// The slot of a key.
pub(super) fn read_slot_key(k: &[u8]) -> Result<Seq, Damaged> {
    k.try_into().map(|k| Seq(u64::from_be_bytes(k))).map_err(|_| Damaged("the key of a slot"))
}

/// As the column holds it.
pub(super) fn urgency(urgency: Urgency) -> i8 {
    match urgency {
        Urgency::Background => 0,
        Urgency::Message => 1,
        Urgency::Call => 2,
    }
}

/// And back.
pub(super) fn read_urgency(value: i8) -> Result<Urgency, Damaged> {
    match value {
        0 => Ok(Urgency::Background),
        1 => Ok(Urgency::Message),
        2 => Ok(Urgency::Call),
        _ => Err(Damaged("an urgency")),
    }
}

/// A byte of length, then the name; names have at most 128 bytes.
fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(name.len().to_le_bytes()[0]);
    out.extend_from_slice(name.as_bytes());
}

fn take_name<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    *bytes = rest;
    core::str::from_utf8(name).ok()
}

/// User, then device.
pub(super) fn sender(sender: &Sender) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + sender.user.as_str().len() + sender.device.as_str().len());
    put_name(&mut out, sender.user.as_str());
    put_name(&mut out, sender.device.as_str());
    out
}

/// And back; nobody, if the column's time has run out.
pub(super) fn read_sender(bytes: Option<&[u8]>) -> Result<Sender, Damaged> {
    let damaged = Damaged("a sender");
    let (user, device) = match bytes {
        None => (FORGOTTEN, FORGOTTEN),
        Some(mut bytes) => {
            let names = (take_name(&mut bytes).ok_or(damaged)?, take_name(&mut bytes).ok_or(damaged)?);
            if !bytes.is_empty() {
                return Err(damaged);
            }
            names
        }
    };
    Ok(Sender {
        user: UserId::new(user).map_err(|_| damaged)?,
        device: DeviceId::new(device).map_err(|_| damaged)?,
    })
}

/// A tag, then the names up to the end.
pub(super) fn filter(filter: &DeviceFilter) -> Vec<u8> {
    let (tag, devices) = match filter {
        DeviceFilter::All => (0, &[][..]),
        DeviceFilter::Only(devices) => (1, &devices[..]),
        DeviceFilter::AllBut(devices) => (2, &devices[..]),
    };
    let mut out = vec![tag];
    for device in devices {
        put_name(&mut out, device.as_str());
    }
    out
}

/// And back.
pub(super) fn read_filter(bytes: &[u8]) -> Result<DeviceFilter, Damaged> {
    let damaged = Damaged("a filter");
    let (tag, mut rest) = bytes.split_first().ok_or(damaged)?;
    let mut devices = Vec::new();
    while !rest.is_empty() {
        let name = take_name(&mut rest).ok_or(damaged)?;
        devices.push(DeviceId::new(name).map_err(|_| damaged)?);
    }
    match tag {
        0 if devices.is_empty() => Ok(DeviceFilter::All),
        1 => Ok(DeviceFilter::Only(devices)),
        2 => Ok(DeviceFilter::AllBut(devices)),
        _ => Err(damaged),
    }
}

/// Epoch, then connection, big-endian: of two the greater bytes are the newer session.
pub(super) fn session(epoch: Epoch, connection: ConnectionId) -> Vec<u8> {
    let mut out = epoch.0.to_be_bytes().to_vec();
    out.extend_from_slice(&connection.0);
    out
}

/// And back; the first, if there was none.
pub(super) fn read_session(bytes: Option<&[u8]>) -> Result<(Epoch, ConnectionId), Damaged> {
    let Some(bytes) = bytes else { return Ok((Epoch::default(), ConnectionId::default())) };
    let damaged = Damaged("a session");
    let (epoch, connection) = bytes.split_first_chunk::<8>().ok_or(damaged)?;
    let connection = ConnectionId::from_slice(connection).ok_or(damaged)?;
    Ok((Epoch(u64::from_be_bytes(*epoch)), connection))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(names: &[&str]) -> Vec<DeviceId> {
        names.iter().map(|name| DeviceId::new(name).unwrap()).collect()
    }

    #[test]
    fn what_was_written_reads_back() {
        for number in [0, 1, 1 << 40, u64::MAX] {
            assert_eq!(from_big(to_big(number)), Ok(number));
        }
        let longest = "x".repeat(128);
        let from = Sender { user: UserId::new(&longest).unwrap(), device: DeviceId::new("web").unwrap() };
        assert_eq!(read_sender(Some(&sender(&from))), Ok(from));
        for targets in [
            DeviceFilter::All,
            DeviceFilter::Only(vec![]),
            DeviceFilter::Only(devices(&["a", "b-2"])),
            DeviceFilter::AllBut(devices(&["phone"])),
            DeviceFilter::AllBut(vec![]),
        ] {
            assert_eq!(read_filter(&filter(&targets)), Ok(targets));
        }
        for value in [Urgency::Background, Urgency::Message, Urgency::Call] {
            assert_eq!(read_urgency(urgency(value)), Ok(value));
        }
        let newest = (Epoch(9), ConnectionId([7; 16]));
        assert_eq!(read_session(Some(&session(newest.0, newest.1))), Ok(newest));
        assert_eq!(read_session(None), Ok((Epoch(0), ConnectionId([0; 16]))));
    }

    #[test]
    fn the_newer_session_has_the_greater_bytes() {
        let rising = [(1, 255), (2, 0), (2, 1), (256, 0)];
        for pair in rising.windows(2) {
            let [old, new] = [pair[0], pair[1]].map(|(e, c)| session(Epoch(e), ConnectionId([c; 16])));
            assert!(old < new, "{pair:?}");
        }
    }

    #[test]
    fn nobody_reads_what_nobody_wrote() {
        assert!(from_big(-1).is_err());
        for bytes in [&[][..], &[1], &[1, b'a'], &[0, 0], &[1, b'a', 1, b'b', 0], &[2, 0xff, 0xff, 1, b'b']] {
            assert!(read_sender(Some(bytes)).is_err(), "{bytes:?}");
        }
        for bytes in [&[][..], &[9], &[0, 1, b'a'], &[1, 5, b'a'], &[1, 0]] {
            assert!(read_filter(bytes).is_err(), "{bytes:?}");
        }
        assert!(read_session(Some(&[0; 23])).is_err() && read_slot_key(&[0; 7]).is_err());
        assert!(read_urgency(3).is_err());
    }
}
