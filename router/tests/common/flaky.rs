//! A store that answers late, wrongly told, twice or never, by script or by seed; it never lies about what is committed.

use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::envelope::Page;
use chappe_protocol::id::{Bucket, CursorTag, DeviceId, EnvelopeId, MailboxId, PayloadId, Seq, UserId};
use chappe_protocol::testing::Rng;
use chappe_protocol::time::UnixMillis;
use chappe_storage::{
    AppendReply, Attach, Attached, DeviceSet, Entry, PendingFrom, PendingPage, Result, Store, StoreError,
    Trimmed, User, Woken,
};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, but it takes so many milliseconds.
    Slow(u64),
    /// Not written, and said so.
    Unavailable,
    /// Not written, nobody knows.
    Lost,
    /// Written, nobody knows.
    LostReply,
    /// Written by a later call, nobody knows.
    Zombie,
    /// Never answered, not written.
    Hang,
    /// Not written: the mailbox is full at this moment.
    Full,
}

/// What one append asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub ids: Vec<EnvelopeId>,
    pub entries: Vec<Entry>,
    pub base: Option<Bucket>,
}

/// An append that arrives later.
type Buried = (MailboxId, Vec<Entry>, Option<Bucket>);

pub struct Flaky {
    pub inner: Arc<dyn Store>,
    /// For the next appends, in order.
    pub appends: Mutex<VecDeque<Fault>>,
    /// For the next reads of devices.
    pub device_reads: Mutex<VecDeque<Fault>>,
    /// For the next pending rows.
    pub pending: Mutex<VecDeque<Fault>>,
    /// For the next shared payloads.
    pub payloads: Mutex<VecDeque<Fault>>,
    /// For the next heads.
    pub heads: Mutex<VecDeque<Fault>>,
    /// For the next finds.
    pub finds: Mutex<VecDeque<Fault>>,
    /// Of 100 appends without a script, so many have a fault.
    pub percent: Mutex<u64>,
    rng: Mutex<Rng>,
    limbo: Mutex<Vec<Buried>>,
    pub asked: Mutex<Vec<Asked>>,
    /// Shared payloads written.
    pub puts: Mutex<Vec<(PayloadId, Bytes)>>,
    /// Pending rows asked for.
    pub notes: Mutex<usize>,
}

impl Flaky {
    pub fn new(inner: Arc<dyn Store>, seed: u64) -> Self {
        Self {
            inner,
            appends: Mutex::default(),
            device_reads: Mutex::default(),
            pending: Mutex::default(),
            payloads: Mutex::default(),
            heads: Mutex::default(),
            finds: Mutex::default(),
            percent: Mutex::new(0),
            rng: Mutex::new(Rng::new(seed ^ 0x5eed)),
            limbo: Mutex::default(),
            asked: Mutex::default(),
            puts: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    pub fn script(&self, faults: &[Fault]) {
        self.appends.lock().unwrap().extend(faults);
    }

    fn next_append_fault(&self) -> Fault {
        if let Some(fault) = self.appends.lock().unwrap().pop_front() {
            return fault;
        }
        let percent = *self.percent.lock().unwrap();
        let mut rng = self.rng.lock().unwrap();
        if !rng.percent(percent) {
            return Fault::Slow(rng.below(4));
        }
        let faults = [Fault::Unavailable, Fault::Lost, Fault::LostReply, Fault::Zombie, Fault::Slow(40)];
        *rng.pick(&faults).unwrap()
    }

    /// Appends of the past that arrive now.
    async fn bury_zombies(&self) {
        let zombies = std::mem::take(&mut *self.limbo.lock().unwrap());
        for (mailbox, entries, base) in zombies {
            let _ = self.inner.append(mailbox, &entries, base).await;
        }
    }
}

async fn pass(script: &Mutex<VecDeque<Fault>>) -> Result<()> {
    let fault = script.lock().unwrap().pop_front();
    match fault {
        None => Ok(()),
        Some(Fault::Slow(ms)) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(())
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Unavailable) => Err(StoreError::Unavailable("by script".into())),
        Some(Fault::Full) => Err(StoreError::Quota),
        Some(Fault::Lost | Fault::LostReply | Fault::Zombie) => Err(StoreError::Unknown("by script".into())),
    }
}

#[async_trait]
impl Store for Flaky {
    async fn user(&self, user: &UserId) -> Result<Option<User>> {
        self.inner.user(user).await
    }

    async fn create_user(&self, user: &UserId) -> Result<User> {
        self.inner.create_user(user).await
    }

    async fn devices(&self, mailbox: MailboxId) -> Result<DeviceSet> {
        pass(&self.device_reads).await?;
        self.inner.devices(mailbox).await
    }

    async fn attach(&self, mailbox: MailboxId, device: &DeviceId, attach: Attach) -> Result<Attached> {
        self.inner.attach(mailbox, device, attach).await
    }

    async fn glance(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        cursor: Option<Seq>,
    ) -> Result<Option<Attached>> {
        self.inner.glance(mailbox, device, cursor).await
    }

    async fn revoke(&self, mailbox: MailboxId, device: &DeviceId) -> Result<()> {
        self.inner.revoke(mailbox, device).await
    }

    async fn append(
        &self,
        mailbox: MailboxId,
        entries: &[Entry],
        base: Option<Bucket>,
    ) -> Result<AppendReply> {
        let ids = entries.iter().map(|entry| entry.envelope_id).collect();
        self.asked.lock().unwrap().push(Asked { ids, entries: entries.to_vec(), base });
        match self.next_append_fault() {
            Fault::Slow(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                if ms % 2 == 1 {
                    self.bury_zombies().await;
                }
                self.inner.append(mailbox, entries, base).await
            }
            Fault::Unavailable => Err(StoreError::Unavailable("by script".into())),
            Fault::Lost => Err(StoreError::Unknown("by script".into())),
            Fault::LostReply => {
                let _ = self.inner.append(mailbox, entries, base).await;
                Err(StoreError::Unknown("by script".into()))
            }
            Fault::Zombie => {
                self.limbo.lock().unwrap().push((mailbox, entries.to_vec(), base));
                Err(StoreError::Unknown("by script".into()))
            }
            Fault::Hang => std::future::pending().await,
            Fault::Full => Err(StoreError::Quota),
        }
    }

    async fn find(
        &self,
        mailbox: MailboxId,
        ids: &[EnvelopeId],
        base: Option<Bucket>,
    ) -> Result<Vec<Option<Seq>>> {
        pass(&self.finds).await?;
        self.inner.find(mailbox, ids, base).await
    }

    async fn head(&self, mailbox: MailboxId, serial: bool) -> Result<Seq> {
        pass(&self.heads).await?;
        self.inner.head(mailbox, serial).await
    }

    async fn read(&self, mailbox: MailboxId, after: Seq, rows_max: usize, bytes_max: usize) -> Result<Page> {
        self.inner.read(mailbox, after, rows_max, bytes_max).await
    }

    async fn advance(&self, mailbox: MailboxId, device: &DeviceId, upto: Seq) -> Result<()> {
        self.inner.advance(mailbox, device, upto).await
    }

    async fn cursor(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Seq> {
        self.inner.cursor(mailbox, device).await
    }

    async fn trim(&self, mailbox: MailboxId) -> Result<Trimmed> {
        self.inner.trim(mailbox).await
    }

    async fn erase(&self, user: &UserId) -> Result<()> {
        self.inner.erase(user).await
    }

    async fn put_payload(&self, id: PayloadId, bytes: Bytes, expires_at: UnixMillis) -> Result<()> {
        pass(&self.payloads).await?;
        self.puts.lock().unwrap().push((id, bytes.clone()));
        self.inner.put_payload(id, bytes, expires_at).await
    }

    async fn add_pending(&self, mailbox: MailboxId) -> Result<()> {
        *self.notes.lock().unwrap() += 1;
        pass(&self.pending).await?;
        self.inner.add_pending(mailbox).await
    }

    async fn add_pending_at(&self, mailbox: MailboxId, at: UnixMillis) -> Result<()> {
        self.inner.add_pending_at(mailbox, at).await
    }

    async fn pending_since(&self, since: UnixMillis) -> Result<(Vec<MailboxId>, UnixMillis)> {
        self.inner.pending_since(since).await
    }

    async fn push_targets(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Bytes>> {
        self.inner.push_targets(mailbox, device).await
    }

    async fn set_push_targets(&self, mailbox: MailboxId, device: &DeviceId, sealed: Bytes) -> Result<bool> {
        self.inner.set_push_targets(mailbox, device, sealed).await
    }

    async fn replace_push_targets(
        &self,
        mailbox: MailboxId,
        device: &DeviceId,
        old: &Bytes,
        new: Option<Bytes>,
    ) -> Result<bool> {
        self.inner.replace_push_targets(mailbox, device, old, new).await
    }

    async fn woken(&self, mailbox: MailboxId, device: &DeviceId) -> Result<Option<Woken>> {
        self.inner.woken(mailbox, device).await
    }

    async fn raise_woken(&self, mailbox: MailboxId, device: &DeviceId, woken: Woken) -> Result<()> {
        self.inner.raise_woken(mailbox, device, woken).await
    }

    async fn pending_in_shard(&self, shard: u16, from: PendingFrom, rows_max: usize) -> Result<PendingPage> {
        self.inner.pending_in_shard(shard, from, rows_max).await
    }

    async fn swept(&self, shard: u16) -> Result<Option<UnixMillis>> {
        self.inner.swept(shard).await
    }

    async fn raise_swept(&self, shard: u16, upto: UnixMillis) -> Result<()> {
        self.inner.raise_swept(shard, upto).await
    }

    fn cursor_tag(&self, mailbox: MailboxId) -> CursorTag {
        self.inner.cursor_tag(mailbox)
    }
}
