//! A submit to several mailboxes. **Invariant:** a payload that several slots refer to is durable before the first of them;
//! what became of one mailbox says nothing about another.

use crate::Shared;
use crate::permits::Permit;
use crate::rounds::Planned;
use crate::submit::{self, Checked, in_parallel};
use bytes::Bytes;
use chappe_protocol::envelope::Sender;
use chappe_protocol::id::{EnvelopeId, PayloadId};
use chappe_protocol::internode::{ListReply, Outcome, Submit, SubmitEntry, SubmitList};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_storage::{Entry, EntryPayload, StoreError};
use std::sync::Arc;

/// Checks all lists, stores what they share, appends them; one reply per list, in order.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    submit: Submit,
    deadline: Time,
    permit: Arc<Permit>,
) -> Vec<ListReply> {
    let parallel_max = shared.config.fanout_parallel_max;
    let Submit { sender, budget: _, payloads, lists } = submit;
    let lists: Vec<Arc<SubmitList>> = lists.into_iter().map(Arc::new).collect();
    let checks =
        lists.iter().map(|list| submit::check(Arc::clone(shared), Arc::clone(list), deadline)).collect();
    let verdicts: Vec<Vec<Option<Outcome>>> = in_parallel(checks, parallel_max).await;
    let mut plan = Plan::new(shared, &sender, &payloads);
    plan.share(&lists, &verdicts, deadline).await;
    let appends = lists.into_iter().zip(verdicts).map(|(list, verdicts)| {
        submit::append(Arc::clone(shared), plan.list(list, verdicts), deadline, Arc::clone(&permit))
    });
    in_parallel(appends.collect(), parallel_max).await
}

/// Makes store entries of submit entries.
struct Plan<'a> {
    shared: &'a Arc<Shared>,
    sender: &'a Sender,
    payloads: &'a [Bytes],
    /// When the router took the submit; fixes every `expires_at` once.
    at: UnixMillis,
    /// Per payload: in the slot, or stored once for all.
    homes: Vec<Home>,
}

enum Home {
    Slot,
    Shared(PayloadId),
    /// It could not be stored: its entries come to this.
    Nowhere(Outcome),
}

impl<'a> Plan<'a> {
    fn new(shared: &'a Arc<Shared>, sender: &'a Sender, payloads: &'a [Bytes]) -> Self {
        let homes = payloads.iter().map(|_| Home::Slot).collect();
        Self { shared, sender, payloads, at: shared.world.wall(), homes }
    }

    fn ttl(&self, entry: &SubmitEntry) -> Millis {
        let max = self.shared.config.ttl_max;
        if entry.ttl == Millis(0) { max } else { entry.ttl.min(max) }
    }

    /// Stores each payload once that more than one list needs, under a new id per attempt.
    async fn share(&mut self, lists: &[Arc<SubmitList>], verdicts: &[Vec<Option<Outcome>>], deadline: Time) {
        if lists.len() < 2 {
            return;
        }
        let mut needed = vec![(0_usize, Millis(0)); self.payloads.len()];
        for (list, verdicts) in lists.iter().zip(verdicts) {
            let mut counted = vec![];
            for (entry, _) in list.entries.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_none()) {
                let (lists, ttl) = &mut needed[entry.payload];
                *ttl = (*ttl).max(self.ttl(entry));
                if !counted.contains(&entry.payload) {
                    *lists += 1;
                    counted.push(entry.payload);
                }
            }
        }
        let bytes_min = self.shared.config.shared_payload_bytes_min;
        let shared = needed
            .iter()
            .enumerate()
            .filter(|(at, (lists, _))| *lists > 1 && self.payloads[*at].len() > bytes_min);
        let puts: Vec<_> =
            shared.map(|(at, (_, ttl))| (at, self.put(self.payloads[at].clone(), *ttl, deadline))).collect();
        let (places, puts): (Vec<usize>, Vec<_>) = puts.into_iter().unzip();
        let homes = in_parallel(puts, self.shared.config.fanout_parallel_max).await;
        for (at, home) in places.into_iter().zip(homes) {
            self.homes[at] = home;
        }
    }

    fn put(&self, bytes: Bytes, ttl: Millis, deadline: Time) -> impl Future<Output = Home> + Send + use<> {
        let shared = Arc::clone(self.shared);
        let expires_at = self.at + ttl;
        async move {
            let id = PayloadId::random(&*shared.world);
            match shared.within(deadline, shared.store.put_payload(id, bytes, expires_at)).await {
                Some(Ok(())) => {
                    shared.metrics.shared_payloads.inc();
                    Home::Shared(id)
                }
                // No slot refers to it, so nothing of the submit was written.
                Some(Err(StoreError::Unavailable(_) | StoreError::Unknown(_))) => {
                    Home::Nowhere(Outcome::Unavailable)
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the store refused a shared payload");
                    Home::Nowhere(Outcome::Unavailable)
                }
                None => Home::Nowhere(Outcome::Unknown),
            }
        }
    }

    /// The entries of a list that may be appended: up to the first one that is undecided already.
    fn list(&self, list: Arc<SubmitList>, mut verdicts: Vec<Option<Outcome>>) -> Checked {
        let mut planned = Vec::with_capacity(list.entries.len());
        for (index, (entry, verdict)) in list.entries.iter().zip(&mut verdicts).enumerate() {
            if verdict.is_none() {
                match self.entry(&list, entry) {
                    Ok((entry, payload)) => planned.push(Planned { index, entry, payload }),
                    Err(outcome) => *verdict = Some(outcome),
                }
            }
            if verdict.as_ref().is_some_and(|outcome| !outcome.is_decided()) {
                break;
            }
        }
        Checked { list, verdicts, planned }
    }

    fn entry(&self, list: &SubmitList, entry: &SubmitEntry) -> Result<(Entry, Bytes), Outcome> {
        let bytes = self.payloads[entry.payload].clone();
        let payload = match &self.homes[entry.payload] {
            Home::Slot => EntryPayload::Inline(bytes.clone()),
            Home::Shared(id) => {
                EntryPayload::Ref { id: *id, bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX) }
            }
            Home::Nowhere(outcome) => return Err(outcome.clone()),
        };
        let envelope_id = EnvelopeId::derive(entry.submit_id, list.mailbox, entry.number);
        let stored = Entry {
            envelope_id,
            sender: self.sender.clone(),
            devices: entry.devices.clone(),
            at: self.at,
            expires_at: self.at + self.ttl(entry),
            urgency: entry.urgency,
            payload,
        };
        Ok((stored, bytes))
    }
}
