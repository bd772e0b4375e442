//! What a law works with: a backend, a clock that it sets, routers that try again. **Invariant:** nothing here is random
//! but by a fixed seed.

use crate::error::{Result, StoreError};
use crate::planted::Planted;
use crate::rows::{Partition, Rows};
use crate::slotlog::{LogConfig, SlotLog};
use crate::{
    AppendReply, Attach, Attached, DeviceSet, Entry, EntryPayload, PendingFrom, PendingPage, Store, Trimmed,
    User, Woken,
};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Page, PageEnd, Sender, Slot, Urgency};
use chappe_protocol::id::{
    Bucket, BucketShape, ConnectionId, CursorTag, DeviceId, EnvelopeId, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use std::sync::Arc;

/// A database under test.
#[async_trait]
pub trait Backend: Sized + Send + Sync {
    /// Its rows.
    type Rows: Rows;

    /// A fresh, empty one, whose clock is this world's.
    async fn open(world: Arc<dyn World>) -> Self;

    /// The rows.
    fn rows(&self) -> Arc<Self::Rows>;

    /// Closes it in an orderly or disorderly way, and opens the same data again. The clones of the old rows are gone by then.
    async fn reopen(self, world: Arc<dyn World>) -> Self;

    /// Whether calls fail now and then: laws do not expect best-effort writes of it.
    fn fails() -> bool {
        false
    }

    /// For a backend whose benches share one database: a number that no other bench of it has, from 1 on. Each such bench
    /// has mailboxes, users, payloads, randomness and a year of its own. 0: this bench is alone.
    fn bench_number() -> u64 {
        0
    }

    /// So much time has passed for the rows of this mailbox and for this payload: removes what has ended meanwhile.
    /// Databases that look at the world's clock have nothing to do.
    async fn elapse(&self, _mailbox: MailboxId, _payload: PayloadId, _by: Millis) {}
}

/// A backend on the bench, with one mailbox to work with.
pub struct Bench<B: Backend> {
    /// The clock.
    pub world: Arc<TestWorld>,
    /// The mailbox of user `anna`.
    pub mailbox: MailboxId,
    /// A defect of the logs over it.
    pub planted: Option<Planted>,
    number: u64,
    backend: B,
}

/// 1990-01-01.
const BENCHES_BEGIN: UnixMillis = UnixMillis(631_152_000_000);

/// The byte 16 times, or before the bench's number.
fn id16(byte: u8, number: u64) -> [u8; 16] {
    let mut id = [byte; 16];
    if number > 0 {
        id[8..].copy_from_slice(&number.to_be_bytes());
    }
    id
}

/// Days to milliseconds.
pub(super) const DAY: Millis = Millis::from_secs(24 * 3600);

impl<B: Backend> Bench<B> {
    /// A fresh backend.
    pub async fn open() -> Self {
        Self::open_seeded(7).await
    }

    /// A fresh backend in a world of its own.
    pub async fn open_seeded(seed: u64) -> Self {
        let number = B::bench_number();
        let world = Arc::new(TestWorld::new(seed ^ (number << 32)));
        if number > 0 {
            // Long ago, so that no timestamp of these days lies ahead of a real database's; 100 days for each bench.
            world.set_wall(UnixMillis(BENCHES_BEGIN.0 + number * 100 * DAY.0));
        }
        let backend = B::open(world.clone()).await;
        Self { world, mailbox: MailboxId(id16(0x11, number)), planted: None, number, backend }
    }

    /// So much time passes.
    pub async fn elapse(&self, by: Millis) {
        self.world.advance(by);
        self.backend.elapse(self.mailbox, self.payload(), by).await;
    }

    /// Another mailbox; those of lesser numbers stand before it, the bench's own behind it.
    pub fn other(&self, n: u8) -> MailboxId {
        MailboxId(id16(n, self.number))
    }

    /// A shared payload's id.
    pub fn payload(&self) -> PayloadId {
        PayloadId(id16(5, self.number))
    }

    /// A user.
    pub fn user(&self, name: &str) -> UserId {
        match self.number {
            0 => UserId::new(name).unwrap(),
            number => UserId::new(&format!("{name} {number}")).unwrap(),
        }
    }

    /// The rows.
    pub fn rows(&self) -> Arc<B::Rows> {
        self.backend.rows()
    }

    /// A router's store with an empty cache.
    pub fn log(&self) -> Patient<B::Rows> {
        self.log_with(|_| ())
    }

    /// A router's store with other settings.
    pub fn log_with(&self, change: impl FnOnce(&mut LogConfig)) -> Patient<B::Rows> {
        let mut config = LogConfig { shape: SHAPE, planted: self.planted, ..LogConfig::default() };
        change(&mut config);
        Patient(SlotLog::new(self.rows(), self.world.clone(), config))
    }

    /// The process ends and starts again.
    pub async fn reopen(self) -> Self {
        let backend = self.backend.reopen(self.world.clone()).await;
        Self { backend, ..self }
    }

    /// The wall clock.
    pub fn world_now(&self) -> UnixMillis {
        self.world.wall()
    }

    /// The partition of a bucket of the bench's mailbox.
    pub fn partition(&self, bucket: u64) -> Partition {
        Partition { mailbox: self.mailbox, bucket: Bucket(bucket) }
    }

    /// Entry number `n`, whose payload lives a day.
    pub fn entry(&self, n: u64) -> Entry {
        self.entry_for(n, DAY)
    }

    /// Entry number `n` whose payload lives that long.
    pub fn entry_for(&self, n: u64, ttl: Millis) -> Entry {
        let at = self.world.wall();
        Entry {
            envelope_id: id(n),
            sender: Sender { user: UserId::new("ben").unwrap(), device: DeviceId::new("phone").unwrap() },
            devices: DeviceFilter::All,
            at,
            expires_at: at + ttl,
            urgency: Urgency::Message,
            payload: EntryPayload::Inline(Bytes::from(n.to_be_bytes().to_vec())),
        }
    }

    /// Appends the entries of these numbers one by one.
    pub async fn fill(&self, log: &Patient<B::Rows>, numbers: std::ops::RangeInclusive<u64>) {
        for n in numbers {
            log.append(self.mailbox, &[self.entry(n)], None).await.unwrap();
        }
    }

    /// The numbers of the entries in the log, read with small pages from the first slot above the floor.
    pub async fn numbers(&self, log: &Patient<B::Rows>) -> Vec<u64> {
        let ids = self.slots(log).await.into_iter().map(|slot| slot.envelope_id);
        ids.map(|id| u64::from_be_bytes(id.0[..8].try_into().unwrap())).collect()
    }

    /// All slots above the floor.
    pub async fn slots(&self, log: &Patient<B::Rows>) -> Vec<Slot> {
        let (mut after, mut all) = (Seq::ZERO, Vec::<Slot>::new());
        for _ in 0..10_000 {
            let page = log.read(self.mailbox, after, 3, 1 << 20).await.unwrap();
            for slot in page.slots {
                assert_eq!(slot.seq, after.next(), "a page is contiguous");
                after = slot.seq;
                all.push(slot);
            }
            match page.end {
                PageEnd::Head(head) => {
                    assert_eq!(after, head, "a page that ends at the head ends there");
                    return all;
                }
                PageEnd::Limit => assert!(!all.is_empty(), "a page holds at least one slot"),
                PageEnd::Truncated(upto) => {
                    assert!(upto > after, "a truncation moves on");
                    after = upto;
                }
            }
        }
        panic!("reading never ends");
    }

    /// Attaches the device of that name, by the connection of that number.
    pub async fn attach(
        &self,
        log: &Patient<B::Rows>,
        name: &str,
        connection: u8,
        cursor: Option<u64>,
    ) -> Attached {
        let attach = Attach { connection: ConnectionId([connection; 16]), cursor: cursor.map(Seq) };
        log.attach(self.mailbox, &device(name), attach).await.unwrap()
    }
}

/// Buckets of 4.
pub(super) const SHAPE: BucketShape = BucketShape { shift: 2 };

/// The id of entry number `n`.
pub(super) fn id(n: u64) -> EnvelopeId {
    let mut id = [0xEE; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    EnvelopeId(id)
}

/// A device by name.
pub(super) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

/// Calls until it is decided, as a caller may.
pub async fn again<T, F, C>(mut call: C) -> Result<T>
where
    C: FnMut() -> F,
    F: Future<Output = Result<T>>,
{
    let mut tries = 0;
    loop {
        match call().await {
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) if tries < 1000 => tries += 1,
            decided => return decided,
        }
    }
}

/// A store whose calls are repeated until they are decided.
pub struct Patient<R>(
    /// The store that fails at once.
    pub SlotLog<R>,
);

#[async_trait]
impl<R: Rows> Store for Patient<R> {
    async fn user(&self, user: &UserId) -> Result<Option<User>> {
        again(|| self.0.user(user)).await
    }

    async fn create_user(&self, user: &UserId) -> Result<User> {
        again(|| self.0.create_user(user)).await
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<DeviceSet> {
        again(|| self.0.devices(mailbox)).await
    }

    async fn attach(&self, mailbox: MailboxId, device: &DeviceId, attach: Attach) -> Result<Attached> {
        again(|| self.0.attach(mailbox, device, attach.clone())).await
    }

    async fn glance(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        cursor: Option<Seq>,
    ) -> Result<Option<Attached>> {
        again(|| self.0.glance(mailbox, device, cursor)).await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        again(|| self.0.revoke(mailbox, device)).await
    }

    async fn append(
        &self,
        mailbox: MailboxId,
        entries: &[Entry],
        base: Option<Bucket>,
    ) -> Result<AppendReply> {
        again(|| self.0.append(mailbox, entries, base)).await
    }

    async fn find(
        &self,
        mailbox: MailboxId,
        ids: &[EnvelopeId],
        base: Option<Bucket>,
    ) -> Result<Vec<Option<Seq>>> {
        again(|| self.0.find(mailbox, ids, base)).await
    }

    async fn head(&self, mailbox: MailboxId, serial: bool) -> Result<Seq> {
        again(|| self.0.head(mailbox, serial)).await
    }

    async fn read(&self, mailbox: MailboxId, after: Seq, rows_max: usize, bytes_max: usize) -> Result<Page> {
        again(|| self.0.read(mailbox, after, rows_max, bytes_max)).await
    }

    async fn advance(&self, mailbox: MailboxId, device: &DeviceId, upto: Seq) -> Result<()> {
        again(|| self.0.advance(mailbox, device, upto)).await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        again(|| self.0.cursor(mailbox, device)).await
    }

    async fn trim(&self, mailbox: MailboxId) -> Result<Trimmed> {
        again(|| self.0.trim(mailbox)).await
    }

    async fn erase(&self, user: &UserId) -> Result<()> {
        again(|| self.0.erase(user)).await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        again(|| self.0.put_payload(id, bytes.clone(), expires_at)).await
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        again(|| self.0.add_pending(mailbox)).await
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        again(|| self.0.add_pending_at(mailbox, at)).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        again(|| self.0.pending_since(since)).await
    }

    async fn push_targets(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        again(|| self.0.push_targets(mailbox, device)).await
    }

    async fn set_push_targets(&self, mailbox: MailboxId, device: &DeviceId, sealed: Bytes) -> Result<bool> {
        again(|| self.0.set_push_targets(mailbox, device, sealed.clone())).await
    }

    async fn replace_push_targets(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        again(|| self.0.replace_push_targets(mailbox, device, old, new.clone())).await
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        again(|| self.0.woken(mailbox, device)).await
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        again(|| self.0.raise_woken(mailbox, device, woken)).await
    }

    async fn pending_in_shard(&self, shard: u16, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        again(|| self.0.pending_in_shard(shard, from, rows_max)).await
    }

    async fn swept(&self, shard: u16) -> Result<Option<UnixMillis>> {
        again(|| self.0.swept(shard)).await
    }

    async fn raise_swept(&self, shard: u16, upto: UnixMillis) -> Result<()> {
        again(|| self.0.raise_swept(shard, upto)).await
    }

    fn cursor_tag(&self, mailbox: MailboxId) -> CursorTag {
        self.0.cursor_tag(mailbox)
    }
}
