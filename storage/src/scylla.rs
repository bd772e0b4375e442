//! The rows in ScyllaDB or Cassandra, over CQL. **Invariant:** an append is one conditional batch in one partition, compared by
//! the database itself; what cannot be said for certain of a write is `Unknown`; nothing is retried that might be written twice.
//!
//! Lightweight transactions run at LOCAL_SERIAL and LOCAL_QUORUM, head registers are read at LOCAL_SERIAL, everything else at
//! LOCAL_QUORUM. The driver sends a failed read to one other node, and a write never again. The tables are in `schema/*.cql`.

mod append;
mod clock;
mod coalesce;
mod config;
mod connect;
mod database;
mod directory;
mod errors;
mod log;
mod refusal;
pub mod schema;
mod statements;
mod stats;
mod values;
mod wakes;

use crate::error::Result;
use crate::rows::{Applied, Batch, Floor, Head, Partition, Rows, SlotRow};
use crate::{Device, PendingFrom, PendingPage, User, Woken};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::id::{
    Bucket, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, PayloadId, Seq, UserId,
};
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use clock::Clock;
use coalesce::Coalesce;
pub use config::{Credentials, ScyllaConfig, UrlError};
pub use connect::{ConnectError, Durability};
use database::Database;
use statements::{Profiles, Statements};
pub use stats::ScyllaStats;
use std::sync::Arc;
use tokio::sync::SemaphorePermit;

/// A page: partition, behind which slot, rows, bytes.
type PageKey = (Partition, Seq, usize, usize);
type DeviceRows = (u64, Vec<(Device, UnixMillis)>);

/// The rows in a CQL database; any number of processes may use it at once.
pub struct ScyllaRows {
    database: Database,
    heads: Coalesce<Partition, Option<Head>>,
    pages: Coalesce<PageKey, Vec<SlotRow>>,
    devices: Coalesce<MailboxId, DeviceRows>,
    incarnation: [u8; 16],
    durability: Durability,
}

impl ScyllaRows {
    /// Connects, looks at the schema and prepares every statement. [`schema::apply`] must have run.
    pub async fn connect(config: ScyllaConfig, world: Arc<dyn World>) -> Result<Self, ConnectError> {
        let session = connect::open(&config).await?;
        schema::check_session(&session, &config.keyspace).await?;
        let (server, datacenter) = connect::server(&session).await?;
        let incarnation = schema::incarnation(&session, &config.keyspace).await?;
        let durability = connect::durability(&session, server).await;
        let datacenter = config.datacenter.as_deref().unwrap_or(&datacenter);
        let profiles = Profiles::new(Some(datacenter), config.request_timeout.to_std());
        let prepared = Statements::prepare(&session, &config.keyspace, &profiles).await;
        let statements =
            prepared.map_err(|error| connect::statement_error(&config.keyspace, &error.into()))?;
        #[cfg(feature = "testing")]
        let pinned = config.world_clock;
        #[cfg(not(feature = "testing"))]
        let pinned = false;
        let database = Database::new(session, statements, Clock::new(world, pinned), &config);
        if !pinned && !database.set_clock().await {
            return Err(ConnectError::Database("it does not tell its clock".into()));
        }
        Ok(Self {
            database,
            heads: Coalesce::new(),
            pages: Coalesce::new(),
            devices: Coalesce::new(),
            incarnation,
            durability,
        })
    }

    /// What was sent so far, for metrics.
    pub fn stats(&self) -> ScyllaStats {
        self.database.counters.snapshot()
    }

    /// Whether acknowledged rows survive a power cut, as far as the database tells; as it was at connect.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// One statement for all who ask for the same before it is sent.
    async fn once<'a, K, V, F>(
        &'a self,
        table: &Coalesce<K, V>,
        key: &K,
        read: impl FnOnce(SemaphorePermit<'a>) -> F,
    ) -> Result<V>
    where
        K: Ord + Clone,
        V: Clone,
        F: Future<Output = Result<V>>,
    {
        let (answer, joined) = table.read(key, self.database.place(), read).await;
        if joined {
            self.database.joined();
        }
        answer
    }
}

#[async_trait]
impl Rows for ScyllaRows {
    async fn head(&self, partition: Partition) -> Result<Option<Head>> {
        self.once(&self.heads, &partition, |place| self.database.head(place, partition)).await
    }

    async fn compare_and_append(&self, partition: Partition, batch: Batch<'_>) -> Result<Applied> {
        self.database.append(partition, &batch).await
    }

    async fn seal(&self, partition: Partition, expected: Option<Seq>) -> Result<bool> {
        self.database.seal(partition, expected).await
    }

    async fn find_ids(&self, partition: Partition, ids: &[EnvelopeId]) -> Result<Vec<Option<Seq>>> {
        self.database.find_ids(partition, ids).await
    }

    async fn slots(
        &self,
        partition: Partition,
        after: Seq,
        rows_max: usize,
        bytes_max: usize,
        serial: bool,
    ) -> Result<Vec<SlotRow>> {
        log::check_page(rows_max)?;
        let limits = (rows_max, bytes_max);
        if serial {
            let place = self.database.place().await?;
            return self.database.slots(place, partition, after, limits, true).await;
        }
        let read = |place| self.database.slots(place, partition, after, limits, false);
        self.once(&self.pages, &(partition, after, rows_max, bytes_max), read).await
    }

    async fn mark_lost(&self, partition: Partition, seq: Seq) -> Result<bool> {
        self.database.mark_lost(partition, seq).await
    }

    async fn delete_slots(&self, partition: Partition) -> Result<()> {
        self.database.delete_slots(partition).await
    }

    async fn hint(&self, mailbox: MailboxId) -> Result<Bucket> {
        self.database.hint(mailbox).await
    }

    async fn raise_hint(&self, mailbox: MailboxId, bucket: Bucket) -> Result<()> {
        self.database.raise_hint(mailbox, bucket).await
    }

    async fn floor(&self, mailbox: MailboxId) -> Result<Floor> {
        self.database.floor(mailbox, false).await
    }

    async fn raise_floor(&self, mailbox: MailboxId, floor: Floor) -> Result<Floor> {
        self.database.raise_floor(mailbox, floor).await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        self.database.cursor(mailbox, device).await
    }

    async fn raise_cursor(&self, mailbox: MailboxId, device: &DeviceId, seq: Seq) -> Result<()> {
        self.database.raise_cursor(mailbox, device, seq).await
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<(u64, Vec<(Device, UnixMillis)>)> {
        let read = |place| self.database.devices(place, mailbox);
        self.once(&self.devices, &mailbox, read).await
    }

    async fn device(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Device>> {
        self.database.device(mailbox, device, false).await
    }

    async fn create_device(&self, mailbox: MailboxId, device: &DeviceId, since: Seq) -> Result<Device> {
        self.database.create_device(mailbox, device, since).await
    }

    async fn add_device(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        since: Seq,
        version: u64,
    ) -> Result<bool> {
        self.database.add_device(mailbox, device, since, version).await
    }

    async fn raise_session(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        epoch: Epoch,
        connection: ConnectionId,
    ) -> Result<()> {
        self.database.raise_session(mailbox, device, epoch, connection).await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        self.database.revoke(mailbox, device).await
    }

    async fn push(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        self.database.push(mailbox, device).await
    }

    async fn set_push(&self, mailbox: MailboxId, device: &DeviceId, push: Bytes) -> Result<bool> {
        self.database.set_push(mailbox, device, &push).await
    }

    async fn replace_push(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        self.database.replace_push(mailbox, device, old, new.as_ref()).await
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        self.database.woken(mailbox, device).await
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        self.database.raise_woken(mailbox, device, woken).await
    }

    async fn delete_devices(&self, mailbox: MailboxId) -> Result<()> {
        self.database.delete_devices(mailbox).await
    }

    async fn user(&self, user: &UserId, serial: bool) -> Result<Option<User>> {
        self.database.user(user, serial).await
    }

    async fn create_user(&self, user: &UserId, mailbox: MailboxId) -> Result<User> {
        self.database.create_user(user, mailbox).await
    }

    async fn mark_erased(&self, user: &UserId, mailbox: MailboxId) -> Result<()> {
        self.database.mark_erased(user, mailbox).await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        self.database.put_payload(id, &bytes, expires_at).await
    }

    async fn payload(&self, id: PayloadId) -> Result<Option<Bytes>> {
        self.database.payload(id).await
    }

    async fn delete_payload(&self, id: PayloadId) -> Result<()> {
        self.database.delete_payload(id).await
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        self.database.add_pending(mailbox).await
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.database.add_pending_at(mailbox, at).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        self.database.pending_since(since).await
    }

    async fn pending_page(&self, shard: u8, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        self.database.pending_page(shard, from, rows_max).await
    }

    async fn swept(&self, shard: u8) -> Result<Option<UnixMillis>> {
        self.database.swept(shard).await
    }

    async fn raise_swept(&self, shard: u8, upto: UnixMillis) -> Result<()> {
        self.database.raise_swept(shard, upto).await
    }

    fn now(&self) -> UnixMillis {
        self.database.clock.now()
    }

    fn incarnation(&self) -> [u8; 16] {
        self.incarnation
    }
}
