//! Answers gateways that ask whether their mailboxes have grown: the bound on how long a lost doorbell can matter.
//! **Invariant:** `as_of` moves on only when every mailbox that may have news was read.
//!
//! A pending row precedes every append and follows every new session, so a mailbox without a row since the last probe
//! (less 2 minutes, for writes under way and for clocks) has no news, and its head need not be read.

use crate::Shared;
use crate::planted::PlantedBug;
use crate::submit::{in_parallel, refuse_invalid};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{DeviceNews, MailboxNews, Probe, ProbeReply, Reply};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_storage::{Result, Store, StoreError};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// How far behind a probe's `as_of` pending rows are looked for: for writes under way, and for clocks.
pub const LOOK_BACK: Millis = Millis(120_000);
/// With more pending mailboxes than this all heads are read outright; a store names at most one more.
pub const PENDING_MAX: usize = 1_000_000;
/// What one read of the pending rows covers beyond the probe that caused it.
const SHARED_SPAN: Millis = Millis(60_000);
/// A probe older than this reads all heads outright.
pub const AGE_MAX: Millis = Millis(15 * 60_000);

/// The pending mailboxes as last read, for the probes of the next few seconds.
#[derive(Default)]
pub(crate) struct PendingCache {
    last: Mutex<Option<Arc<Pending>>>,
}

struct Pending {
    since: UnixMillis,
    as_of: UnixMillis,
    read_at: Time,
    mailboxes: BTreeSet<MailboxId>,
}

/// Answers a probe; [`Reply::Unavailable`] if too many run or nothing can be said.
pub(crate) async fn answer(shared: &Arc<Shared>, probe: Probe) -> Reply {
    if probe.known.len() > shared.config.probe_mailboxes_max {
        return refuse_invalid(shared, "probe");
    }
    let Ok(_permit) = shared.probes.try_acquire() else {
        shared.metrics.refused_full.inc();
        return Reply::Unavailable;
    };
    shared.metrics.probes.inc();
    // Probes come as long as there are sessions: what waits for no submit is given back here.
    shared.device_sets.expire(shared.world.now());
    match answer_from_store(shared, probe).await {
        Ok(reply) => {
            shared.metrics.probe_news.inc_by(reply.news.len() as u64);
            Reply::Probe(reply)
        }
        Err(_) => Reply::Unavailable,
    }
}

async fn answer_from_store(shared: &Arc<Shared>, probe: Probe) -> Result<ProbeReply> {
    let Probe { as_of: asked_from, known } = probe;
    let (as_of, known) = match asked_from {
        Some(from) => match pending(shared, from - LOOK_BACK).await? {
            Some(pending) => {
                let listed = known.into_iter().filter(|(mailbox, _)| pending.mailboxes.contains(mailbox));
                (pending.as_of, listed.collect())
            }
            None => (store_clock(&*shared.store).await?, known),
        },
        None => (store_clock(&*shared.store).await?, known),
    };
    if shared.config.has_bug(PlantedBug::BlindProbe) {
        return Ok(ProbeReply { as_of, news: Vec::new() });
    }
    let read = |(mailbox, head)| {
        let store = Arc::clone(&shared.store);
        async move { look(&*store, mailbox, head).await }
    };
    let reads = known.into_iter().map(read).collect();
    let read = in_parallel(reads, shared.config.probe_parallel_max).await;
    let complete = read.iter().all(Result::is_ok);
    let news = read.into_iter().filter_map(Result::ok).flatten().collect();
    match (complete, asked_from) {
        (true, _) => Ok(ProbeReply { as_of, news }),
        // What could not be read is asked for again.
        (false, Some(from)) => Ok(ProbeReply { as_of: from, news }),
        (false, None) => Err(StoreError::Unavailable("some heads could not be read".into())),
    }
}

/// What there is to tell of a mailbox: its growth, or sessions that may be newer than the gateway's.
pub async fn look(store: &dyn Store, mailbox: MailboxId, known: Seq) -> Result<Option<MailboxNews>> {
    let (head, erased) = match store.head(mailbox, false).await {
        Ok(Seq::MAX) | Err(StoreError::Erased) => (known, true),
        Ok(head) => (head, false),
        Err(error) => return Err(error),
    };
    let set = store.devices(mailbox).await?;
    let devices: Vec<DeviceNews> = set
        .devices
        .into_iter()
        .map(|d| DeviceNews {
            device: d.device,
            epoch: d.epoch,
            connection: d.connection,
            revoked: d.revoked,
        })
        .collect();
    let news = erased || head > known || !devices.is_empty();
    Ok(news.then_some(MailboxNews { mailbox, head, erased, devices }))
}

/// The mailboxes with a pending row since `since`, read now or a few seconds ago; `None`: too many, or too long ago.
async fn pending(shared: &Arc<Shared>, since: UnixMillis) -> Result<Option<Arc<Pending>>> {
    let config = &shared.config;
    let read_at = shared.world.now();
    let last = shared.pending.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(last) = last {
        if last.since <= since && read_at - last.read_at < config.pending_fresh {
            return Ok(Some(last));
        }
        let now = last.as_of + (read_at - last.read_at);
        if now > since + AGE_MAX {
            return Ok(None);
        }
    }
    // A little more than was asked, so that the next probes find it too.
    let since = since - SHARED_SPAN;
    let (mailboxes, as_of) = shared.store.pending_since(since).await?;
    if mailboxes.len() > config.pending_mailboxes_max || as_of > since + AGE_MAX {
        return Ok(None);
    }
    let pending = Arc::new(Pending { since, as_of, read_at, mailboxes: mailboxes.into_iter().collect() });
    *shared.pending.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pending));
    Ok(Some(pending))
}

/// The store's clock, read before the heads are.
pub async fn store_clock(store: &dyn Store) -> Result<UnixMillis> {
    // No row is noted in the future, so this reads nothing but the clock.
    let (_, as_of) = store.pending_since(UnixMillis(u64::MAX)).await?;
    Ok(as_of)
}
