//! One batch on its way into the log. **Invariant:** an entry is accepted only by an answer of the store, and only with a pending row
//! that is not older than 20 s; once an attempt got no answer, nothing but a commit decides.

use crate::Shared;
use crate::doorbells::{self, Waking};
use crate::planted::PlantedBug;
use crate::rounds::{Batch, Job};
use crate::trace::Step;
use chappe_node::spans::Value;
use chappe_protocol::envelope::{Slot, SlotBody};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{Doorbell, Outcome, Ring, WakeHint};
use chappe_protocol::time::{Millis, Time};
use chappe_storage::{AppendReply, Appended, StoreError};
use std::sync::Arc;

/// A pending row may be so old when *accepted* is answered (the sweeper looks at slots from this age on), less the 10 s
/// for which the store may skip writing it again.
const PENDING_AGE_MAX: Millis = Millis(20_000 - 10_000);
/// The pause between attempts doubles at most so often.
const PAUSE_DOUBLINGS_MAX: u32 = 5;

/// Appends a batch and answers its jobs; returns those that have more entries, in their order.
pub(crate) async fn run(shared: &Arc<Shared>, mailbox: MailboxId, batch: Batch) -> Vec<Job> {
    let mut attempts = Attempts {
        shared,
        mailbox,
        batch,
        began: shared.world.now(),
        noted_at: None,
        perhaps_written: false,
        failures: 0,
        unfinished: Vec::new(),
    };
    loop {
        attempts.batch.drop_expired(shared.world.now());
        if attempts.batch.parts.is_empty() {
            return attempts.unfinished;
        }
        match attempts.attempt().await {
            Attempt::Appended(reply) => return attempts.accept(&reply).await,
            Attempt::Refused(outcome) => return attempts.decide(&outcome),
            Attempt::Full => {
                if let Some(unfinished) = attempts.refuse_new().await {
                    return unfinished;
                }
            }
            Attempt::Failed(outcome) => {
                if shared.config.has_bug(PlantedBug::AcceptUndecided) {
                    return attempts.decide(&Outcome::Accepted);
                }
                if shared.config.has_bug(PlantedBug::ContinueBehindUndecided) {
                    attempts.leave_out_the_first(&outcome);
                    continue;
                }
                return attempts.decide(&outcome);
            }
            Attempt::NoAnswer => {
                shared.metrics.append_retries.inc();
                if shared.config.has_bug(PlantedBug::ContinueBehindUndecided) {
                    attempts.leave_out_the_first(&Outcome::Unknown);
                    continue;
                }
                attempts.pause().await;
            }
        }
    }
}

struct Attempts<'a> {
    shared: &'a Arc<Shared>,
    mailbox: MailboxId,
    batch: Batch,
    /// When the first attempt began.
    began: Time,
    /// When the last pending row was asked for.
    noted_at: Option<Time>,
    /// An attempt got no answer.
    perhaps_written: bool,
    failures: u32,
    /// Jobs that have nothing in the batch any more, but entries behind it.
    unfinished: Vec<Job>,
}

enum Attempt {
    Appended(AppendReply),
    /// Final.
    Refused(Outcome),
    /// The mailbox is full; certainly not written by one of the attempts, perhaps by an earlier submit.
    Full,
    /// Certainly not written, by none of the attempts.
    Failed(Outcome),
    /// Perhaps written.
    NoAnswer,
}

impl Attempts<'_> {
    /// One pending row and one append. The deadlines are looked at again once there is room for the append.
    async fn attempt(&mut self) -> Attempt {
        let shared = self.shared;
        let Ok(_room) = shared.appends.acquire().await else { return Attempt::NoAnswer };
        self.batch.drop_expired(shared.world.now());
        if self.batch.parts.is_empty() {
            return Attempt::NoAnswer;
        }
        if self.note().await.is_err() {
            return self.failed();
        }
        let mut base = self.batch.base();
        if shared.config.has_bug(PlantedBug::ForgetBase) {
            let head = shared.store.head(self.mailbox, true).await.unwrap_or(Seq::ZERO);
            base = Some(shared.config.shape.bucket_of(head));
        }
        shared
            .metrics
            .batch_entries
            .observe(f64::from(u32::try_from(self.batch.entries.len()).unwrap_or(u32::MAX)));
        shared.metrics.appends_in_flight.inc();
        let begin = shared.world.now();
        // Dropped when nobody waits any more, so that no compare-and-set begins after that, and a store that does not
        // answer does not hold the mailbox. What it has begun may still arrive, as after any attempt without an answer.
        let append = shared.store.append(self.mailbox, &self.batch.entries, base);
        let no_answer = || Err(StoreError::Unknown("no answer by the deadline".into()));
        let answer = shared.within(self.batch.deadline(), append).await.unwrap_or_else(no_answer);
        shared.metrics.appends_in_flight.dec();
        shared.metrics.append_seconds.observe((shared.world.now() - begin).to_std().as_secs_f64());
        self.judge(answer)
    }

    fn judge(&mut self, answer: chappe_storage::Result<AppendReply>) -> Attempt {
        match answer {
            Ok(reply) if reply.entries.len() == self.batch.entries.len() => Attempt::Appended(reply),
            Ok(_) => {
                tracing::error!("the store answered an append with a wrong number of entries");
                self.perhaps_written = true;
                Attempt::NoAnswer
            }
            Err(StoreError::Erased) => Attempt::Refused(Outcome::UnknownUser),
            // An attempt without an answer may still arrive, so this refusal is not final any more.
            Err(StoreError::Quota) if self.perhaps_written => Attempt::NoAnswer,
            Err(StoreError::Quota) => Attempt::Full,
            Err(StoreError::Unavailable(_)) => self.failed(),
            Err(StoreError::Invalid(why)) => {
                tracing::error!(why, "the store refused an append as invalid");
                self.failed()
            }
            Err(StoreError::Unknown(_) | StoreError::Revoked | StoreError::CursorAhead { .. }) => {
                self.perhaps_written = true;
                Attempt::NoAnswer
            }
        }
    }

    fn failed(&self) -> Attempt {
        if self.perhaps_written { Attempt::NoAnswer } else { Attempt::Failed(Outcome::Unavailable) }
    }

    async fn note(&mut self) -> chappe_storage::Result<()> {
        if self.shared.config.has_bug(PlantedBug::NoPending) {
            return Ok(());
        }
        let asked_at = self.shared.world.now();
        let note = self.shared.store.add_pending(self.mailbox);
        let no_answer = || Err(StoreError::Unknown("no answer by the deadline".into()));
        self.shared.within(self.batch.deadline(), note).await.unwrap_or_else(no_answer)?;
        self.noted_at = Some(asked_at);
        Ok(())
    }

    async fn pause(&mut self) {
        let doublings = self.failures.min(PAUSE_DOUBLINGS_MAX);
        self.failures = self.failures.saturating_add(1);
        let pause = self.shared.config.retry_pause.0 << doublings;
        let jittered = pause / 2 + self.shared.world.random_below(pause / 2 + 1);
        tokio::time::sleep(Millis(jittered).to_std()).await;
    }

    /// Everything is in the log: ring, see to the pending row, answer.
    async fn accept(&mut self, reply: &AppendReply) -> Vec<Job> {
        let shared = self.shared;
        let at = shared.world.wall();
        for (entry, appended) in self.batch.entries.iter().zip(&reply.entries) {
            let (traces, id) = (&shared.config.traces, entry.envelope_id);
            traces.committed(id, self.mailbox, appended.seq(), at);
            traces.step(id, Step::Append, (at - (shared.world.now() - self.began), at), || {
                vec![
                    ("chappe.batch.entries", reply.entries.len().into()),
                    ("chappe.duplicate", Value::Flag(matches!(appended, Appended::Duplicate(_)))),
                ]
            });
        }
        let ids = self.batch.entries.iter().map(|entry| entry.envelope_id).collect();
        doorbells::grew(shared, self.mailbox, self.rings(reply), ids, self.waking(reply));
        while self.noted_at.is_some_and(|at| shared.world.now() - at > PENDING_AGE_MAX) {
            if self.note().await.is_err() {
                self.pause().await;
                self.batch.drop_expired(shared.world.now());
                if self.batch.parts.is_empty() {
                    return std::mem::take(&mut self.unfinished);
                }
            }
        }
        let head_bucket = shared.config.shape.bucket_of(reply.head);
        for part in &mut self.batch.parts {
            part.job.known.head_bucket = Some(head_bucket);
        }
        self.decide(&Outcome::Accepted)
    }

    /// For whoever wakes devices: also for duplicates, whose first hint may have been lost. Not due before presence was asked.
    fn waking(&self, reply: &AppendReply) -> Option<Waking> {
        let seqs = || reply.entries.iter().map(|appended| appended.seq());
        let at = self.batch.entries.iter().map(|entry| entry.at).min()?;
        let filters = self.batch.entries.iter().map(|entry| &entry.devices);
        let targets = self.shared.device_sets.named(self.mailbox, &filters);
        let hint = WakeHint {
            mailbox: self.mailbox,
            from: seqs().min()?,
            upto: seqs().max()?,
            urgency: self.batch.entries.iter().map(|entry| entry.urgency).max()?,
            at,
            due: at + doorbells::ACK_TIME,
        };
        Some(Waking { hint, targets })
    }

    /// A full mailbox takes nothing new, but what stands in it is a duplicate: that is left for another attempt (`None`),
    /// the rest is refused.
    async fn refuse_new(&mut self) -> Option<Vec<Job>> {
        let shared = self.shared;
        let ids: Vec<_> = self.batch.entries.iter().map(|entry| entry.envelope_id).collect();
        let find = shared.store.find(self.mailbox, &ids, self.batch.base());
        let stands: Vec<bool> = match shared.within(self.batch.deadline(), find).await {
            Some(Ok(places)) => places.iter().map(Option::is_some).collect(),
            Some(Err(StoreError::Erased)) => return Some(self.decide(&Outcome::UnknownUser)),
            Some(Err(_)) => return Some(self.decide(&Outcome::Unavailable)),
            // All deadlines have passed.
            None => return None,
        };
        if stands.iter().all(|stands| *stands) {
            self.pause().await;
        }
        let emptied = self.batch.leave_out(&stands, &Outcome::Quota);
        self.unfinished.extend(emptied);
        None
    }

    /// The same fate for all entries of the batch. A job goes on behind decided ones only.
    fn decide(&mut self, outcome: &Outcome) -> Vec<Job> {
        let mut unfinished = std::mem::take(&mut self.unfinished);
        for mut part in std::mem::take(&mut self.batch.parts) {
            let fates = part.members.iter().map(|(index, _)| (*index, outcome.clone()));
            part.job.known.outcomes.extend(fates);
            if outcome.is_decided() && !part.job.rest.is_empty() {
                unfinished.push(part.job);
            } else {
                part.job.finish();
            }
        }
        unfinished
    }

    /// The doorbells of a batch, in the order of the log. A duplicate's slot is not ours to show: its first attempt may have been other.
    fn rings(&self, reply: &AppendReply) -> Vec<Ring> {
        let payloads =
            self.batch.parts.iter().flat_map(|part| part.members.iter().map(|(_, payload)| payload));
        let mut rings: Vec<(Seq, Option<Slot>)> = Vec::with_capacity(reply.entries.len());
        for ((entry, payload), appended) in self.batch.entries.iter().zip(payloads).zip(&reply.entries) {
            let slot = match appended {
                Appended::Committed(seq) if payload.len() <= Doorbell::PAYLOAD_BYTES_MAX => Some(Slot {
                    seq: *seq,
                    envelope_id: entry.envelope_id,
                    sender: Some(entry.sender.clone()),
                    devices: entry.devices.clone(),
                    at: entry.at,
                    expires_at: entry.expires_at,
                    urgency: entry.urgency,
                    body: SlotBody::Present(payload.clone()),
                }),
                Appended::Committed(_) | Appended::Duplicate(_) => None,
            };
            rings.push((appended.seq(), slot));
        }
        rings.sort_by_key(|(seq, _)| *seq);
        // A bell without a slot says no more than a later one; only the last of all is needed.
        let last = rings.len().saturating_sub(1);
        let needed = rings.into_iter().enumerate().filter(|(at, (_, slot))| *at == last || slot.is_some());
        needed.map(|(_, (seq, slot))| Ring::Grew { seq, slot }).collect()
    }

    /// Only by [`PlantedBug::ContinueBehindUndecided`].
    fn leave_out_the_first(&mut self, outcome: &Outcome) {
        let mut at = 0;
        for part in &mut self.batch.parts {
            let (index, _) = part.members.remove(0);
            self.batch.entries.remove(at);
            part.job.known.outcomes.push((index, outcome.clone()));
            at += part.members.len();
        }
        for part in std::mem::take(&mut self.batch.parts) {
            if part.members.is_empty() { part.job.finish() } else { self.batch.parts.push(part) }
        }
    }
}
