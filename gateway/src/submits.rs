//! The submits of one connection on their way to the routers. **Invariant:** what got no answer is *unknown*, never
//! *unavailable*; only what certainly was not done may be called so.

use crate::bases::{Base, Bases};
use crate::lanes::{Batch, Finished, LaneList, Lanes};
use crate::shared::Gateway;
use bytes::Bytes;
use chappe_protocol::envelope::Sender;
use chappe_protocol::frame::{Submit, SubmitResult, TargetResult};
use chappe_protocol::id::{EnvelopeId, MailboxId, UserId};
use chappe_protocol::internode::{
    self, EntryResult, EphemeralSubmit, Outcome, Reply, Request, SubmitEntry, SubmitList,
};
use chappe_protocol::time::{Millis, Time};
use chappe_router::links::LinkError;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Names looked up, or head buckets asked for, at the same time for one request.
const LOOKUPS_MAX: usize = 16;
/// Ephemeral submits under way per connection; beyond it they are dropped.
const EPHEMERALS_MAX: usize = 16;

/// A batch and, per list, one result per entry.
type Sent = (Batch, Vec<Vec<EntryResult>>);

/// A request that ended.
enum Ended {
    Batch(Sent),
    Ephemeral(SubmitResult),
}

/// The lanes and the requests that are out.
pub(crate) struct Submits {
    gateway: Arc<Gateway>,
    sender: Sender,
    lanes: Lanes,
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    ephemerals: usize,
    ephemeral_results: Vec<SubmitResult>,
    gauged: (usize, usize),
}

impl Submits {
    pub(crate) fn new(gateway: Arc<Gateway>, sender: Sender) -> Self {
        let running = FuturesUnordered::new();
        Self {
            gateway,
            sender,
            lanes: Lanes::default(),
            running,
            ephemerals: 0,
            ephemeral_results: Vec::new(),
            gauged: (0, 0),
        }
    }

    /// Takes a submit whose limits were checked.
    pub(crate) fn admit(&mut self, now: Time, submit: Submit) {
        self.gateway.metrics.submits_total.inc();
        self.lanes.admit(now, submit);
        self.start();
    }

    /// Notes a submit that was refused for now, so that nothing overtakes it.
    pub(crate) fn owe(&mut self, now: Time, submit: &Submit) {
        self.lanes.owe(now, submit);
    }

    /// What became of ephemeral submits.
    pub(crate) fn take_ephemeral_results(&mut self) -> std::vec::IntoIter<SubmitResult> {
        std::mem::take(&mut self.ephemeral_results).into_iter()
    }

    /// Takes an ephemeral submit; `false` if too many are under way.
    pub(crate) fn admit_ephemeral(&mut self, submit: Submit) -> bool {
        if self.ephemerals >= EPHEMERALS_MAX {
            return false;
        }
        self.ephemerals += 1;
        let work = send_ephemeral(Arc::clone(&self.gateway), self.sender.clone(), submit);
        self.running.push(work.map(Ended::Ephemeral).boxed());
        true
    }

    /// Submits that are not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.jobs()
    }

    /// Their payload bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.lanes.bytes()
    }

    /// More is undecided than can be kept in order: the connection is to be closed.
    pub(crate) fn owes_too_much(&self) -> bool {
        self.lanes.owes_too_much()
    }

    /// Nothing is left to remember.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.lanes.is_idle() && self.ephemeral_results.is_empty()
    }

    /// Whether anything is under way.
    pub(crate) fn is_working(&self) -> bool {
        !self.running.is_empty()
    }

    /// Drives the requests; ready when one of them ended.
    pub(crate) fn poll_work(&mut self, now: Time, cx: &mut Context<'_>) -> Poll<()> {
        match self.running.poll_next_unpin(cx) {
            Poll::Ready(Some(Ended::Batch((batch, results)))) => {
                self.lanes.on_results(now, batch, results);
                self.start();
                Poll::Ready(())
            }
            Poll::Ready(Some(Ended::Ephemeral(result))) => {
                self.ephemerals -= 1;
                self.ephemeral_results.push(result);
                Poll::Ready(())
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// The next submit that is answered in full.
    pub(crate) fn poll_finished(&mut self) -> Option<Finished> {
        self.lanes.poll_finished()
    }

    fn start(&mut self) {
        while let Some(batch) = self.lanes.poll_batch() {
            let work = send(Arc::clone(&self.gateway), self.sender.clone(), batch);
            self.running.push(work.map(Ended::Batch).boxed());
        }
        self.measure(self.lanes.entries(), self.lanes.bytes());
    }

    fn measure(&mut self, entries: usize, bytes: usize) {
        let delta = |new: usize, old: usize| {
            i64::try_from(new).unwrap_or(i64::MAX) - i64::try_from(old).unwrap_or(i64::MAX)
        };
        self.gateway.metrics.submit_entries.add(delta(entries, self.gauged.0));
        self.gateway.metrics.submit_bytes.add(delta(bytes, self.gauged.1));
        self.gauged = (entries, bytes);
    }
}

impl Drop for Submits {
    fn drop(&mut self) {
        self.measure(0, 0);
    }
}

/// Resolves, finds bases and sends; per list one result per entry.
async fn send(gateway: Arc<Gateway>, sender: Sender, batch: Batch) -> Sent {
    let deadline = gateway.world.now() + gateway.config.request_budget;
    let resolved = resolve(&gateway, batch.lists.iter().map(|list| list.user.clone()).collect()).await;
    let mut results: Vec<Vec<EntryResult>> = Vec::with_capacity(batch.lists.len());
    let mut sent: Vec<(usize, MailboxId)> = Vec::new();
    for (index, (list, found)) in batch.lists.iter().zip(resolved).enumerate() {
        results.push(match found {
            Ok(mailbox) => {
                sent.push((index, mailbox));
                Vec::new()
            }
            Err(outcome) => same(list, None, &outcome),
        });
    }
    if let Some((_, first)) = sent.first().copied() {
        let lists: Vec<(&LaneList, MailboxId)> =
            sent.iter().filter_map(|(index, mailbox)| Some((batch.lists.get(*index)?, *mailbox))).collect();
        let request = request(&gateway, sender, &lists, deadline).await;
        let budget = deadline - gateway.world.now();
        let asked_at = gateway.world.now();
        let reply = if budget == Millis(0) {
            Err(LinkError::NoRouter)
        } else {
            gateway.links.request(first, Request::Submit(request), budget).await
        };
        let answers = settle(&gateway, asked_at, &lists, reply);
        for ((index, _), answer) in sent.into_iter().zip(answers) {
            if let Some(place) = results.get_mut(index) {
                *place = answer;
            }
        }
    }
    (batch, results)
}

/// The mailboxes of these users, or what becomes of entries for them.
async fn resolve(gateway: &Arc<Gateway>, users: Vec<UserId>) -> Vec<Result<MailboxId, Outcome>> {
    // Nearly always there is one, which needs no list of its own.
    if let [user] = &users[..] {
        return vec![find(gateway, user).await];
    }
    let lookups = users.into_iter().map(|user| {
        let gateway = Arc::clone(gateway);
        async move { find(&gateway, &user).await }.boxed()
    });
    stream::iter(lookups.collect::<Vec<_>>()).buffered(LOOKUPS_MAX).collect().await
}

async fn find(gateway: &Gateway, user: &UserId) -> Result<MailboxId, Outcome> {
    match gateway.users.find(&*gateway.store, gateway.world.now(), user).await {
        Ok(Some(mailbox)) => Ok(mailbox),
        Ok(None) => Err(Outcome::UnknownUser),
        Err(_) => Err(Outcome::Unavailable),
    }
}

/// The request for these lists, each with its base; notes what is transmitted for the first time.
async fn request(
    gateway: &Arc<Gateway>,
    sender: Sender,
    lists: &[(&LaneList, MailboxId)],
    deadline: Time,
) -> internode::Submit {
    let missing: Vec<MailboxId> = lists
        .iter()
        .filter(|(list, mailbox)| base_of(&gateway.bases, gateway.world.now(), list, *mailbox) == Base::Ask)
        .map(|(_, mailbox)| *mailbox)
        .collect();
    if !missing.is_empty() {
        let asks = missing.into_iter().map(|of| ask_base(Arc::clone(gateway), of, deadline).boxed());
        stream::iter(asks.collect::<Vec<_>>()).buffered(LOOKUPS_MAX).for_each(|()| async {}).await;
    }
    let mut payloads: Vec<Bytes> = Vec::new();
    let mut places: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let now = gateway.world.now();
    let lists = lists.iter().map(|(list, mailbox)| {
        let base = match base_of(&gateway.bases, now, list, *mailbox) {
            Base::Known(base) => base,
            Base::Ask => None,
        };
        if let Some(base) = base {
            let firsts = list.entries.iter().filter(|entry| entry.attempt <= 1);
            gateway.bases.transmitted(*mailbox, base, firsts.map(|entry| entry.submit_id));
        }
        let entries = list.entries.iter().map(|entry| {
            // One payload of a submit for many mailboxes is one allocation: the same address, sent once.
            let address = (entry.payload.as_ptr() as usize, entry.payload.len());
            let payload = *places.entry(address).or_insert_with(|| {
                payloads.push(entry.payload.clone());
                payloads.len() - 1
            });
            SubmitEntry {
                submit_id: entry.submit_id,
                number: entry.number,
                devices: entry.devices.clone(),
                device_set_version: entry.device_set_version,
                payload,
                ttl: entry.ttl,
                urgency: entry.urgency,
            }
        });
        SubmitList { mailbox: *mailbox, base, entries: entries.collect() }
    });
    let lists = lists.collect();
    internode::Submit { sender, budget: deadline - now, payloads, lists }
}

fn base_of(bases: &Bases, now: Time, list: &LaneList, mailbox: MailboxId) -> Base {
    bases.of(now, mailbox, list.entries.iter().map(|entry| (entry.submit_id, entry.attempt)))
}

/// Learns a head bucket; without an answer the router looks back, which is slower and as safe.
async fn ask_base(gateway: Arc<Gateway>, mailbox: MailboxId, deadline: Time) {
    let now = gateway.world.now();
    let reply = gateway.links.request(mailbox, Request::Base(mailbox), deadline - now).await;
    if let Ok(Reply::Base(bucket)) = reply {
        gateway.bases.learn(now, mailbox, bucket);
    }
}

/// What a router's answer means for each entry.
fn settle(
    gateway: &Gateway,
    asked_at: Time,
    lists: &[(&LaneList, MailboxId)],
    reply: Result<Reply, LinkError>,
) -> Vec<Vec<EntryResult>> {
    let all =
        |outcome: Outcome| lists.iter().map(|(list, mailbox)| same(list, Some(*mailbox), &outcome)).collect();
    let replies = match reply {
        Ok(Reply::Submit(replies)) => replies,
        Ok(Reply::Unavailable) | Err(LinkError::NoRouter) => return all(Outcome::Unavailable),
        Err(LinkError::Timeout)
        | Ok(Reply::Ephemeral | Reply::Probe(_) | Reply::Base(_) | Reply::Attached) => {
            return all(Outcome::Unknown);
        }
    };
    let mut replies = replies.into_iter();
    let answers = lists.iter().map(|(list, mailbox)| {
        let Some(reply) = replies.next().filter(|reply| reply.mailbox == *mailbox) else {
            return same(list, Some(*mailbox), &Outcome::Unknown);
        };
        if let Some(bucket) = reply.head_bucket {
            gateway.bases.learn(asked_at, *mailbox, bucket);
        }
        for (entry, result) in list.entries.iter().zip(&reply.results) {
            if result.outcome.is_decided() {
                gateway.bases.decided(*mailbox, entry.submit_id);
            }
            if result.outcome == Outcome::UnknownUser {
                gateway.users.forget(&list.user);
            }
        }
        reply.results
    });
    answers.collect()
}

/// The same fate for every entry of a list.
fn same(list: &LaneList, mailbox: Option<MailboxId>, outcome: &Outcome) -> Vec<EntryResult> {
    let id =
        |submit, number| mailbox.map_or(EnvelopeId::default(), |m| EnvelopeId::derive(submit, m, number));
    list.entries
        .iter()
        .map(|entry| EntryResult { envelope_id: id(entry.submit_id, entry.number), outcome: outcome.clone() })
        .collect()
}

/// Best effort. *Accepted* means here that it was passed on: there is no envelope id, and nothing is retried.
async fn send_ephemeral(gateway: Arc<Gateway>, sender: Sender, submit: Submit) -> SubmitResult {
    let users = submit.targets.iter().map(|target| target.user.clone()).collect();
    let found = resolve(&gateway, users).await;
    let mut results = Vec::with_capacity(submit.targets.len());
    let mut targets = Vec::new();
    for (target, found) in submit.targets.into_iter().zip(found) {
        let outcome = match found {
            Ok(mailbox) => {
                targets.push((mailbox, target.devices, target.payload));
                Outcome::Accepted
            }
            Err(outcome) => outcome,
        };
        results.push(TargetResult { number: target.number, outcome, envelope_id: None });
    }
    if let Some((first, _, _)) = targets.first() {
        let (first, budget) = (*first, gateway.config.request_budget);
        let request = EphemeralSubmit { sender, targets, payloads: submit.payloads, urgency: submit.urgency };
        let passed_on = gateway.links.request(first, Request::Ephemeral(request), budget).await;
        if !matches!(passed_on, Ok(Reply::Ephemeral)) {
            for result in results.iter_mut().filter(|result| result.outcome == Outcome::Accepted) {
                result.outcome = Outcome::Unavailable;
            }
        }
    }
    SubmitResult { submit_id: submit.submit_id, attempt: submit.attempt, results }
}
