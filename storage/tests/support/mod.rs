//! What the tests of the embedded store share: a world, entries, and one mailbox's appends by hand.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod disk;

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{Bucket, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::time::{Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_storage::rows::{Applied, Batch, Head, Partition, Rows};
use chappe_storage::{Entry, EntryPayload, StoreError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Where the wall clock of a [`Clock`] starts.
pub(crate) const START: u64 = 1_800_000_000_000;
/// One day in milliseconds.
pub(crate) const DAY: u64 = 24 * 3_600_000;

/// A seeded world whose clocks move by hand.
pub(crate) struct Clock {
    now: AtomicU64,
    rng: Mutex<SmallRng>,
}

impl Clock {
    /// At [`START`].
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { now: AtomicU64::new(0), rng: Mutex::new(SmallRng::seed_from_u64(seed)) })
    }

    /// Moves both clocks on.
    pub(crate) fn advance(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }
}

impl World for Clock {
    fn now(&self) -> Time {
        Time(self.now.load(Ordering::SeqCst))
    }
    fn wall(&self) -> UnixMillis {
        UnixMillis(START + self.now.load(Ordering::SeqCst))
    }
    fn fill_random(&self, bytes: &mut [u8]) {
        self.rng.lock().unwrap().fill_bytes(bytes);
    }
}

/// A partition of mailbox `number`.
pub(crate) fn partition(number: u8, bucket: u64) -> Partition {
    Partition { mailbox: MailboxId([number; 16]), bucket: Bucket(bucket) }
}

/// An id made of two numbers.
pub(crate) fn id(mailbox: u8, seq: u64) -> EnvelopeId {
    let mut id = [mailbox; 16];
    id[8..].copy_from_slice(&seq.to_be_bytes());
    EnvelopeId(id)
}

/// An entry of `bytes` bytes that ends a week after [`START`].
pub(crate) fn entry(mailbox: u8, seq: u64, bytes: usize) -> Entry {
    let fill = id(mailbox, seq).0[15] ^ mailbox;
    Entry {
        envelope_id: id(mailbox, seq),
        sender: Sender { user: UserId::new("anna").unwrap(), device: DeviceId::new("phone").unwrap() },
        devices: DeviceFilter::All,
        at: UnixMillis(START),
        expires_at: UnixMillis(START + 7 * DAY),
        urgency: Urgency::Message,
        payload: EntryPayload::Inline(Bytes::from(vec![fill; bytes])),
    }
}

/// A head of bucket 0.
pub(crate) fn head(seq: u64) -> Head {
    Head { seq: Seq(seq), opened_at: UnixMillis(START), bytes_total: 0 }
}

/// Appends `entries` behind `after` in one partition.
pub(crate) async fn append(
    rows: &impl Rows,
    of: Partition,
    after: u64,
    entries: &[Entry],
) -> Result<Applied, StoreError> {
    let slots: Vec<_> = entries.iter().zip(after + 1..).map(|(entry, seq)| (Seq(seq), entry)).collect();
    let expected = (after > 0).then_some(Seq(after));
    let batch = Batch { expected, to: head(after + entries.len() as u64), slots };
    rows.compare_and_append(of, batch).await
}

/// The seqs and ids of a partition, checked to be dense from 1, each with its own id and payload.
pub(crate) async fn dense(rows: &impl Rows, mailbox: u8) -> u64 {
    let of = partition(mailbox, 0);
    let slots = rows.slots(of, Seq::ZERO, usize::MAX, usize::MAX, true).await.unwrap();
    for (slot, seq) in slots.iter().zip(1..) {
        assert_eq!(slot.seq, Seq(seq), "mailbox {mailbox}: a hole or a duplicate");
        let EntryPayload::Inline(payload) = &slot.entry.payload else { panic!("another payload") };
        assert_eq!(slot.entry, entry(mailbox, seq, payload.len()), "mailbox {mailbox}, slot {seq}");
        assert_eq!(rows.find_ids(of, &[id(mailbox, seq)]).await.unwrap(), [Some(Seq(seq))]);
    }
    let top = slots.len() as u64;
    assert_eq!(
        rows.head(of).await.unwrap().map_or(0, |head| head.seq.0),
        top,
        "mailbox {mailbox}: head and slots differ"
    );
    top
}
