//! A database that fails as real ones do: slow, down, silent after the write, or writing long after it was given up.
//! **Invariant:** `Unavailable` means that nothing was written, now or later; everything follows from the seed.

use crate::error::{Result, StoreError};
use crate::rows::{Applied, Batch, Floor, Head, Partition, Rows, SlotRow};
use crate::{Device, Entry, PendingFrom, PendingPage, User, Woken};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Appends that may be under way to the database though their caller has given up; more are lost instead.
const LATE_MAX: usize = 16;
/// Calls after which a late append arrives at the latest.
const LATE_CALLS_MAX: u64 = 40;

/// How often what goes wrong, in thousandths of the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// Each call waits up to this long before and after, in milliseconds of tokio's clock; 0: not at all.
    pub delay_ms_max: u64,
    /// The call does nothing and says so.
    pub unavailable: u64,
    /// The write happens, its reply is lost.
    pub lost_reply: u64,
    /// The append happens some calls later; until then, and to its caller for ever, its outcome is unknown.
    pub late: u64,
    /// A read of slots that is not SERIAL misses a row.
    pub stale: u64,
}

impl Faults {
    /// Nothing: the calls are only counted.
    pub const NONE: Self = Self { delay_ms_max: 0, unavailable: 0, lost_reply: 0, late: 0, stale: 0 };
    /// Everything now and then.
    pub const MANY: Self = Self { delay_ms_max: 20, unavailable: 30, lost_reply: 30, late: 30, stale: 30 };
}

/// An append that its caller has given up.
struct Late {
    calls_left: u64,
    partition: Partition,
    expected: Option<Seq>,
    to: Head,
    slots: Vec<(Seq, Entry)>,
}

/// Wraps any rows.
pub struct Faulty<R> {
    rows: Arc<R>,
    faults: Faults,
    on: AtomicBool,
    random: TestWorld,
    late: Mutex<VecDeque<Late>>,
    calls: Mutex<BTreeMap<&'static str, u64>>,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    Unavailable,
    LostReply,
    Late,
}

impl<R: Rows> Faulty<R> {
    /// Faults from a seed, switched on.
    pub fn new(rows: Arc<R>, seed: u64, faults: Faults) -> Self {
        let random = TestWorld::new(seed);
        Self {
            rows,
            faults,
            on: AtomicBool::new(true),
            random,
            late: Mutex::default(),
            calls: Mutex::default(),
        }
    }

    /// Switches faults on or off. What is under way stays so.
    pub fn switch(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// The calls since this was asked last, by the names of the methods.
    pub fn take_calls(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows beneath.
    pub fn inner(&self) -> &Arc<R> {
        &self.rows
    }

    /// Lets everything arrive that is under way.
    pub async fn settle(&self) {
        while let Some(late) = self.next_late(u64::MAX) {
            self.arrive(late).await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Late>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_late(&self, calls: u64) -> Option<Late> {
        let mut queue = self.queue();
        let due = queue.iter().position(|late| late.calls_left <= calls)?;
        queue.remove(due)
    }

    async fn arrive(&self, late: Late) {
        let slots = late.slots.iter().map(|(seq, entry)| (*seq, entry)).collect();
        let batch = Batch { expected: late.expected, to: late.to, slots };
        // Nobody waits for the answer.
        drop(self.rows.compare_and_append(late.partition, batch).await);
    }

    async fn delay(&self) {
        if self.on.load(Ordering::SeqCst) && self.faults.delay_ms_max > 0 {
            let ms = self.random.random_below(self.faults.delay_ms_max + 1);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    fn happens(&self, per_mille: u64) -> bool {
        self.on.load(Ordering::SeqCst) && self.random.random_below(1000) < per_mille
    }

    /// Before each call: late ones arrive, time passes, the fate is drawn.
    async fn begin(&self, name: &'static str) -> Fate {
        *self.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        for late in self.queue().iter_mut() {
            late.calls_left = late.calls_left.saturating_sub(1);
        }
        while let Some(late) = self.next_late(0) {
            self.arrive(late).await;
        }
        self.delay().await;
        let Faults { delay_ms_max: _, unavailable, lost_reply, late, stale: _ } = self.faults;
        if self.happens(unavailable) {
            Fate::Unavailable
        } else if self.happens(lost_reply) {
            Fate::LostReply
        } else if self.happens(late) {
            Fate::Late
        } else {
            Fate::Pass
        }
    }

    async fn call<T>(&self, name: &'static str, act: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match self.begin(name).await {
            Fate::Unavailable => Err(down()),
            Fate::LostReply | Fate::Late => {
                drop(act.await);
                self.delay().await;
                Err(StoreError::Unknown("the reply was lost".into()))
            }
            Fate::Pass => {
                let answer = act.await;
                self.delay().await;
                answer
            }
        }
    }
}

fn down() -> StoreError {
    StoreError::Unavailable("the database is down".into())
}

#[async_trait]
impl<R: Rows> Rows for Faulty<R> {
    async fn head(&self, partition: Partition) -> Result<Option<Head>> {
        self.call("head", self.rows.head(partition)).await
    }

    async fn compare_and_append(&self, partition: Partition, batch: Batch<'_>) -> Result<Applied> {
        let fate = self.begin("compare_and_append").await;
        let lost = || Err(StoreError::Unknown("the reply was lost".into()));
        match fate {
            Fate::Unavailable => return Err(down()),
            Fate::Late => {
                let calls_left = 1 + self.random.random_below(LATE_CALLS_MAX);
                let slots = batch.slots.iter().map(|(seq, entry)| (*seq, (*entry).clone())).collect();
                let late = Late { calls_left, partition, expected: batch.expected, to: batch.to, slots };
                let mut queue = self.queue();
                if queue.len() < LATE_MAX {
                    queue.push_back(late);
                }
                return lost();
            }
            Fate::Pass | Fate::LostReply => {}
        }
        let answer = self.rows.compare_and_append(partition, batch).await;
        self.delay().await;
        if fate == Fate::LostReply { lost() } else { answer }
    }

    async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool> {
        self.call("seal", self.rows.seal(partition, expected)).await
    }

    async fn find_ids(&self, partition: Partition, ids: &[EnvelopeId]) -> Result<Vec<Option<Seq>>> {
        self.call("find_ids", self.rows.find_ids(partition, ids)).await
    }

    async fn slots(
        &self,
        partition: Partition,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
        serial: bool,
    ) -> Result<Vec<SlotRow>> {
        let mut rows =
            self.call("slots", self.rows.slots(partition, after, rows_max, bytes_max, serial)).await?;
        if !serial && !rows.is_empty() && self.happens(self.faults.stale) {
            let missed = self.random.random_below(rows.len() as u64);
            rows.remove(usize::try_from(missed).unwrap_or(0));
        }
        Ok(rows)
    }

    async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool> {
        self.call("mark_lost", self.rows.mark_lost(partition, seq)).await
    }

    async fn delete_slots(&self, partition: Partition) -> Result<()> {
        self.call("delete_slots", self.rows.delete_slots(partition)).await
    }

    async fn hint(&self, mailbox: MailboxId) -> Result<Bucket> {
        self.call("hint", self.rows.hint(mailbox)).await
    }

    async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()> {
        self.call("raise_hint", self.rows.raise_hint(mailbox, bucket)).await
    }

    async fn floor(&self, mailbox: MailboxId) -> Result<Floor> {
        self.call("floor", self.rows.floor(mailbox)).await
    }

    async fn raise_floor(&self, mailbox: MailboxId, floor: Floor) -> Result<Floor> {
        self.call("raise_floor", self.rows.raise_floor(mailbox, floor)).await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        self.call("cursor", self.rows.cursor(mailbox, device)).await
    }

    async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()> {
        self.call("raise_cursor", self.rows.raise_cursor(mailbox, device, seq)).await
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<(u64, Vec<(Device, UnixMillis)>)> {
        self.call("devices", self.rows.devices(mailbox)).await
    }

    async fn device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Device>> {
        self.call("device", self.rows.device(mailbox, device)).await
    }

    async fn create_device(&self, mailbox: MailboxId, device: &DeviceId, since: Seq) -> Result<Device> {
        self.call("create_device", self.rows.create_device(mailbox, device, since)).await
    }

    async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool> {
        self.call("add_device", self.rows.add_device(mailbox, device, since, version)).await
    }

    async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()> {
        self.call("raise_session", self.rows.raise_session(mailbox, device, epoch, connection)).await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        self.call("revoke", self.rows.revoke(mailbox, device)).await
    }

    async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        self.call("push", self.rows.push(mailbox, device)).await
    }

    async fn set_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool> {
        self.call("set_push", self.rows.set_push(mailbox, device, push)).await
    }

    async fn replace_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        self.call("replace_push", self.rows.replace_push(mailbox, device, old, new)).await
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        self.call("woken", self.rows.woken(mailbox, device)).await
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        self.call("raise_woken", self.rows.raise_woken(mailbox, device, woken)).await
    }

    async fn delete_devices(&self, mailbox: MailboxId) -> Result<()> {
        self.call("delete_devices", self.rows.delete_devices(mailbox)).await
    }

    async fn user(&self, user: &UserId, serial: bool) -> Result<Option<User>> {
        self.call("user", self.rows.user(user, serial)).await
    }

    async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<User> {
        self.call("create_user", self.rows.create_user(user, mailbox)).await
    }

    async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()> {
        self.call("mark_erased", self.rows.mark_erased(user, mailbox)).await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        self.call("put_payload", self.rows.put_payload(id, bytes, expires_at)).await
    }

    async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>> {
        self.call("payload", self.rows.payload(id)).await
    }

    async fn delete_payload(&self, id: PayloadId) -> Result<()> {
        self.call("delete_payload", self.rows.delete_payload(id)).await
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        self.call("add_pending", self.rows.add_pending(mailbox)).await
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.call("add_pending_at", self.rows.add_pending_at(mailbox, at)).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        self.call("pending_since", self.rows.pending_since(since)).await
    }

    async fn pending_page(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        self.call("pending_page", self.rows.pending_page(shard, from, rows_max)).await
    }

    async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>> {
        self.call("swept", self.rows.swept(shard)).await
    }

    async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        self.call("raise_swept", self.rows.raise_swept(shard, upto)).await
    }

    fn now(&self) -> UnixMillis {
        self.rows.now()
    }

    fn incarnation(&self) -> [u8; 16] {
        self.rows.incarnation()
    }
}
