//! What a replica stores: cells with timestamps, in rows, in partitions, and how two copies become one.
//! **Invariant:** merging is commutative, associative and idempotent: the newest cell wins, a deletion wins a tie, and of two
//! values with one timestamp the greater wins. So the order in which copies meet decides nothing.

use crate::rows::{Floor, Head, Partition};
use crate::{Entry, User, Woken};
use bytes::Bytes;
use chappe_protocol::envelope::Sender;
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Microseconds of some clock, or whatever a max-register writes as its timestamp.
pub(super) type Stamp = u64;

/// A partition key, with its table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Log(Partition),
    Hint(MailboxId),
    Floor(MailboxId),
    Cursors(MailboxId),
    Devices(MailboxId),
    Wokens(MailboxId),
    User(UserId),
    Payload(PayloadId),
    /// A shard's watermark.
    Swept(u8),
    /// One partition here; sharded by mailbox and minute in CQL, where no two of them are written together either.
    Pending,
}

/// A row within a partition.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    /// The static columns, or the only row of a table without clustering.
    Static,
    Slot(Seq),
    Id(EnvelopeId),
    Device(DeviceId),
    Minute(u64, MailboxId),
}

/// A column that is written for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Column {
    /// What the row is about.
    Value,
    /// Of a slot: sender and inline payload, with the payload's time.
    Payload,
    /// Of a slot.
    Lost,
    /// Of a device: epoch, connection and when.
    Session,
    Revoked,
    /// Of a device: its sealed push targets.
    Push,
    /// Static of the devices.
    Version,
}

/// What a cell holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Head(Head),
    /// A slot without its payload and sender.
    Form(Arc<Entry>),
    Payload(Sender, Bytes),
    /// And the end of its time.
    Bytes(Bytes, UnixMillis),
    Seq(Seq),
    Bucket(Bucket),
    Push(Bytes),
    Woken(Woken),
    Floor(Floor),
    User(User),
    /// `since` and when the device was created.
    Device(Seq, UnixMillis),
    Session(Epoch, ConnectionId, UnixMillis),
    Count(u64),
    Yes,
}

impl Value {
    /// The order of values with one timestamp. Conditional writes never share one; only max-registers do.
    fn rank(&self) -> (u64, [u8; 16], u64) {
        match self {
            Self::Session(epoch, connection, at) => (epoch.0, connection.0, at.0),
            Self::Seq(Seq(n)) | Self::Bucket(Bucket(n)) | Self::Count(n) => (*n, [0; 16], 0),
            // Slot and attempt are the timestamp: `Woken::stamp`.
            Self::Woken(woken) => (woken.at.0, [0; 16], 0),
            Self::Push(_)
            | Self::Head(_)
            | Self::Form(_)
            | Self::Payload(..)
            | Self::Bytes(..)
            | Self::Floor(_)
            | Self::User(_)
            | Self::Device(..)
            | Self::Yes => (0, [0; 16], 0),
        }
    }
}

/// One cell. `None`: deleted.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    pub(super) at: Stamp,
    pub(super) value: Option<Value>,
    /// Past this, by the clock of the coordinator that reads, the cell is as good as deleted.
    pub(super) until: Option<UnixMillis>,
}

impl Cell {
    fn beats(&self, other: &Self) -> bool {
        let rank = |cell: &Self| (cell.value.is_none(), cell.value.as_ref().map(Value::rank), cell.until);
        (self.at, rank(self)) > (other.at, rank(other))
    }
}

/// What one write changes in one partition.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mutation {
    pub(super) key: Key,
    pub(super) writes: Vec<Write>,
}

/// A part of a mutation. Without a timestamp of its own it takes that of the ballot.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    Cell {
        row: Row,
        column: Column,
        value: Option<Value>,
        at: Option<Stamp>,
        until: Option<UnixMillis>,
    },
    /// All slot rows up to and including this timestamp.
    Slots(Stamp),
    /// The whole partition.
    Partition(Stamp),
}

impl Write {
    /// A cell that lives for ever.
    pub(super) fn set(row: Row, column: Column, value: Value) -> Self {
        Self::Cell { row, column, value: Some(value), at: None, until: None }
    }

    /// No cell any more.
    pub(super) fn unset(row: Row, column: Column) -> Self {
        Self::Cell { row, column, value: None, at: None, until: None }
    }

    /// A cell that ends.
    pub(super) fn set_until(row: Row, column: Column, value: Value, until: UnixMillis) -> Self {
        Self::Cell { row, column, value: Some(value), at: None, until: Some(until) }
    }

    /// A max-register: the value is its own timestamp.
    pub(super) fn raise(row: Row, column: Column, value: Value, at: Stamp) -> Self {
        Self::Cell { row, column, value: Some(value), at: Some(at), until: None }
    }
}

/// A partition as one replica has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Cells {
    by_place: BTreeMap<(Row, Column), Cell>,
    slots_deleted: Option<Stamp>,
    deleted: Option<Stamp>,
}

impl Cells {
    /// Takes a mutation; `at` is for the writes that bring no timestamp.
    pub(super) fn apply(&mut self, mutation: &Mutation, at: Stamp) {
        for write in &mutation.writes {
            match write {
                Write::Slots(upto) => self.slots_deleted = self.slots_deleted.max(Some(*upto)),
                Write::Partition(upto) => self.deleted = self.deleted.max(Some(*upto)),
                Write::Cell { row, column, value, at: own, until } => {
                    let cell = Cell { at: own.unwrap_or(at), value: value.clone(), until: *until };
                    self.put((row.clone(), *column), cell);
                }
            }
        }
    }

    /// Takes another replica's copy.
    pub(super) fn merge(&mut self, other: &Self) {
        self.slots_deleted = self.slots_deleted.max(other.slots_deleted);
        self.deleted = self.deleted.max(other.deleted);
        for (place, cell) in &other.by_place {
            self.put(place.clone(), cell.clone());
        }
    }

    fn put(&mut self, place: (Row, Column), cell: Cell) {
        match self.by_place.get_mut(&place) {
            Some(old) if !cell.beats(old) => {}
            Some(old) => *old = cell,
            None => drop(self.by_place.insert(place, cell)),
        }
    }
}

/// A partition as a client sees it: what is alive at some time.
#[derive(Debug, Clone)]
pub(super) struct View {
    cells: Arc<Cells>,
    now: UnixMillis,
}

impl View {
    pub(super) fn new(cells: Arc<Cells>, now: UnixMillis) -> Self {
        Self { cells, now }
    }

    fn alive<'a>(&self, row: &Row, cell: &'a Cell) -> Option<&'a Value> {
        let gone = match row {
            Row::Slot(_) => self.cells.deleted.max(self.cells.slots_deleted),
            Row::Static | Row::Id(_) | Row::Device(_) | Row::Minute(..) => self.cells.deleted,
        };
        let ended = cell.until.is_some_and(|until| until <= self.now);
        cell.value.as_ref().filter(|_| !ended && gone.is_none_or(|gone| cell.at > gone))
    }

    pub(super) fn get(&self, row: &Row, column: Column) -> Option<&Value> {
        let cell = self.cells.by_place.get(&(row.clone(), column))?;
        self.alive(row, cell)
    }

    /// The rows that have a cell of this column, in their order.
    pub(super) fn rows(&self, column: Column) -> impl Iterator<Item = (&Row, &Value)> {
        let cells = self.cells.by_place.iter().filter(move |((_, of), _)| *of == column);
        cells.filter_map(|((row, _), cell)| Some((row, self.alive(row, cell)?)))
    }

    /// The timestamp of a log's head (CQL: WRITETIME).
    pub(super) fn head_written(&self) -> Option<Stamp> {
        self.cells.by_place.get(&(Row::Static, Column::Value)).map(|cell| cell.at)
    }

    /// The greatest timestamp of a slot's cell that is alive.
    pub(super) fn slots_written(&self) -> Option<Stamp> {
        let slots = self.cells.by_place.iter().filter(|((row, _), _)| matches!(row, Row::Slot(_)));
        slots.filter(|((row, _), cell)| self.alive(row, cell).is_some()).map(|(_, cell)| cell.at).max()
    }
}
