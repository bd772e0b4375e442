//! Keys of the one table: what belongs to one mailbox lies together, numbers are big-endian so that order is meaning.
//! **Invariant:** two different rows never share a key, and no key is a prefix of one in another section.

use crate::rows::Partition;
use chappe_protocol::id::{Bucket, DeviceId, EnvelopeId, MailboxId, PayloadId, Seq, UserId};
use chappe_protocol::time::UnixMillis;

/// What a mailbox section holds, in the order in which it lies on the disk.
#[derive(Clone, Copy)]
enum Section {
    Hint = 0,
    Floor = 1,
    DeviceVersion = 2,
    Device = 3,
    Cursor = 4,
    Log = 5,
    Push = 6,
    Woken = 7,
    End = 8,
}

/// What a partition of the log holds. The head lies behind the newest slot, so that an append changes both on one page.
#[derive(Clone, Copy)]
enum Kind {
    Slot = 0,
    Head = 1,
    Id = 2,
}

const META: u8 = b'a';
const MAILBOX: u8 = b'b';
const DUE: u8 = b'd';
const PENDING: u8 = b'n';
const PAYLOAD: u8 = b'p';
const SWEPT: u8 = b's';
const USER: u8 = b'u';

/// The range that holds this key alone.
pub(super) fn alone(key: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut behind = key.clone();
    behind.push(0);
    (key, behind)
}

/// The incarnation of the data.
pub(super) const INCARNATION: &[u8] = &[META, 0];
/// The secret under the journal's tags.
pub(super) const JOURNAL_KEY: &[u8] = &[META, 2];
/// The number of the last committed batch.
pub(super) const BATCH: &[u8] = &[META, 1];

fn mailbox(mailbox: MailboxId, section: Section) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(MAILBOX);
    key.extend_from_slice(mailbox.as_bytes());
    key.push(section as u8);
    key
}

fn partition(of: Partition, kind: Kind) -> Vec<u8> {
    let mut key = mailbox(of.mailbox, Section::Log);
    key.extend_from_slice(&of.bucket.0.to_be_bytes());
    key.push(kind as u8);
    key
}

pub(super) fn hint(of: MailboxId) -> Vec<u8> {
    mailbox(of, Section::Hint)
}

pub(super) fn floor(of: MailboxId) -> Vec<u8> {
    mailbox(of, Section::Floor)
}

pub(super) fn device_version(of: MailboxId) -> Vec<u8> {
    mailbox(of, Section::DeviceVersion)
}

pub(super) fn device(of: MailboxId, device: &DeviceId) -> Vec<u8> {
    let mut key = mailbox(of, Section::Device);
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

/// The devices of a mailbox: from (inclusive), to (exclusive), length of the prefix before the name.
pub(super) fn devices(of: MailboxId) -> (Vec<u8>, Vec<u8>, usize) {
    let from = mailbox(of, Section::Device);
    let prefix = from.len();
    (from, mailbox(of, Section::Cursor), prefix)
}

/// Devices and cursors of a mailbox.
pub(super) fn devices_and_cursors(of: MailboxId) -> (Vec<u8>, Vec<u8>) {
    (mailbox(of, Section::Device), mailbox(of, Section::Log))
}

/// Push targets and wakes of a mailbox.
pub(super) fn pushes_and_wakes(of: MailboxId) -> (Vec<u8>, Vec<u8>) {
    (mailbox(of, Section::Push), mailbox(of, Section::End))
}

pub(super) fn push(of: MailboxId, device: &DeviceId) -> Vec<u8> {
    let mut key = mailbox(of, Section::Push);
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

pub(super) fn woken(of: MailboxId, device: &DeviceId) -> Vec<u8> {
    let mut key = mailbox(of, Section::Woken);
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

pub(super) fn cursor(of: MailboxId, device: &DeviceId) -> Vec<u8> {
    let mut key = mailbox(of, Section::Cursor);
    key.extend_from_slice(device.as_str().as_bytes());
    key
}

pub(super) fn head(of: Partition) -> Vec<u8> {
    partition(of, Kind::Head)
}

pub(super) fn slot(of: Partition, seq: Seq) -> Vec<u8> {
    let mut key = partition(of, Kind::Slot);
    key.extend_from_slice(&seq.0.to_be_bytes());
    key
}

/// The slots behind `after` (exclusive) up to the end of the partition.
pub(super) fn slots_behind(of: Partition, after: Seq) -> (Vec<u8>, Vec<u8>) {
    (slot(of, after.next()), partition(of, Kind::Head))
}

/// All slots of a partition.
pub(super) fn slots(of: Partition) -> (Vec<u8>, Vec<u8>) {
    (partition(of, Kind::Slot), partition(of, Kind::Head))
}

/// The place in a slot's key.
pub(super) fn seq_of_slot(key: &[u8]) -> Option<Seq> {
    let (_, seq) = key.split_last_chunk::<8>()?;
    Some(Seq(u64::from_be_bytes(*seq)))
}

pub(super) fn id(of: Partition, id: EnvelopeId) -> Vec<u8> {
    let mut key = partition(of, Kind::Id);
    key.extend_from_slice(id.as_bytes());
    key
}

/// All ids of a partition.
pub(super) fn ids(of: Partition) -> (Vec<u8>, Vec<u8>) {
    let from = partition(of, Kind::Id);
    let mut to = from.clone();
    to.extend_from_slice(&[0xff; 17]);
    (from, to)
}

pub(super) fn user(user: &UserId) -> Vec<u8> {
    let mut key = vec![USER];
    key.extend_from_slice(user.as_str().as_bytes());
    key
}

pub(super) fn payload(id: PayloadId) -> Vec<u8> {
    let mut key = vec![PAYLOAD];
    key.extend_from_slice(id.as_bytes());
    key
}

/// A mailbox noted in a minute.
pub(super) fn pending(minute: u64, mailbox: MailboxId) -> Vec<u8> {
    let mut key = pending_from(minute);
    key.extend_from_slice(mailbox.as_bytes());
    key
}

/// Where the notes of a minute begin.
pub(super) fn pending_from(minute: u64) -> Vec<u8> {
    let mut key = vec![PENDING];
    key.extend_from_slice(&minute.to_be_bytes());
    key
}

/// The minute and the mailbox of a note.
pub(super) fn read_pending(key: &[u8]) -> Option<(u64, MailboxId)> {
    let (_, rest) = key.split_first()?;
    let (minute, mailbox) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*minute), MailboxId::from_slice(mailbox)?))
}

/// The watermark of a shard.
pub(super) fn swept(shard: u8) -> Vec<u8> {
    vec![SWEPT, shard]
}

/// What has an end: a partition with ids and payloads, or a shared payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mortal {
    /// Ids and payloads of a partition.
    Partition(Partition),
    /// A shared payload.
    Payload(PayloadId),
}

/// Says when something must be looked at.
pub(super) fn due(at: UnixMillis, what: Mortal) -> Vec<u8> {
    let mut key = due_from(at);
    match what {
        Mortal::Partition(partition) => {
            key.push(0);
            key.extend_from_slice(partition.mailbox.as_bytes());
            key.extend_from_slice(&partition.bucket.0.to_be_bytes());
        }
        Mortal::Payload(id) => {
            key.push(1);
            key.extend_from_slice(id.as_bytes());
        }
    }
    key
}

/// Where the rows due at a time begin.
pub(super) fn due_from(at: UnixMillis) -> Vec<u8> {
    let mut key = vec![DUE];
    key.extend_from_slice(&at.0.to_be_bytes());
    key
}

/// What is due.
pub(super) fn read_due(key: &[u8]) -> Option<Mortal> {
    match *key.get(9)? {
        0 => {
            let (mailbox, bucket) = key.get(10..)?.split_first_chunk::<16>()?;
            let bucket = Bucket(u64::from_be_bytes(bucket.try_into().ok()?));
            Some(Mortal::Partition(Partition { mailbox: MailboxId(*mailbox), bucket }))
        }
        1 => Some(Mortal::Payload(PayloadId::from_slice(key.get(10..)?)?)),
        _ => None,
    }
}
