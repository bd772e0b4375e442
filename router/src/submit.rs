//! A submit from its arrival to its answer: check, resolve, store what is shared, append, answer.
//! **Invariant:** nothing is written for a submit that is refused as a whole; behind an undecided entry everything is `NotAttempted`.

use crate::Shared;
use crate::devices::Checker;
use crate::fanout;
use crate::planted::PlantedBug;
use crate::rounds::{self, Job, JobAnswer, Planned};
use chappe_protocol::envelope::DeviceFilter;
use chappe_protocol::id::{DeviceId, EnvelopeId, SubmitId};
use chappe_protocol::internode::{EntryResult, ListReply, Outcome, Reply, Submit, SubmitList};
use chappe_protocol::time::Time;
use futures_util::stream::{self, StreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What a device's name takes beside its characters: the pointer in the list, and its counters.
const NAME_BYTES: usize = 32;

/// Answers a submit. Dropping the future leaves appends that have begun running.
pub(crate) async fn submit(shared: &Arc<Shared>, submit: Submit) -> Reply {
    shared.metrics.submits.inc();
    let deadline = shared.world.now() + submit.budget.min(shared.config.budget_max);
    if let Err(what) = validate(shared, &submit) {
        return refuse_invalid(shared, what);
    }
    let entries = submit.lists.iter().map(|list| list.entries.len()).sum();
    let Some(permit) = shared.queue.try_take(entries, held_bytes(&submit)) else {
        shared.metrics.refused_full.inc();
        return Reply::Unavailable;
    };
    let submits: Vec<SubmitId> =
        submit.lists.iter().flat_map(|list| &list.entries).map(|entry| entry.submit_id).collect();
    let replies = fanout::run(shared, submit, deadline, Arc::new(permit)).await;
    for (submit, result) in submits.iter().zip(replies.iter().flat_map(|reply| &reply.results)) {
        shared.metrics.entries.of(&result.outcome).inc();
        tracing::debug!(%submit, envelope = %result.envelope_id, outcome = result.outcome.word(), "routed");
    }
    Reply::Submit(replies)
}

/// Says so and counts: only a gateway with an error sends such a thing, so nothing was done.
pub(crate) fn refuse_invalid(shared: &Shared, what: &'static str) -> Reply {
    tracing::error!(what, "a gateway sent a request that is out of bounds");
    shared.metrics.refused_invalid.inc();
    Reply::Unavailable
}

/// The gateway has checked all this; a router that trusts it can be filled up by one that has an error.
fn validate(shared: &Shared, submit: &Submit) -> Result<(), &'static str> {
    let config = &shared.config;
    if submit.lists.len() > config.lists_max {
        return Err("lists");
    }
    if submit.payloads.iter().any(|payload| payload.len() > config.payload_bytes_max) {
        return Err("payload");
    }
    let mailboxes: BTreeSet<_> = submit.lists.iter().map(|list| list.mailbox).collect();
    if mailboxes.len() != submit.lists.len() {
        return Err("mailbox twice");
    }
    for list in &submit.lists {
        if list.entries.len() > config.list_entries_max {
            return Err("entries");
        }
        for entry in &list.entries {
            if entry.payload >= submit.payloads.len() {
                return Err("payload index");
            }
            if !filter_is_bounded(&entry.devices, config.filter_devices_max) {
                return Err("devices");
            }
        }
    }
    Ok(())
}

/// What a submit holds in memory beside its entries: payloads, and the names in device filters.
fn held_bytes(submit: &Submit) -> usize {
    let payloads = submit.payloads.iter().map(bytes::Bytes::len);
    let filters =
        submit.lists.iter().flat_map(|list| &list.entries).map(|entry| filter_bytes(&entry.devices));
    payloads.chain(filters).sum()
}

/// Bytes that the names in a filter take.
pub(crate) fn filter_bytes(filter: &DeviceFilter) -> usize {
    match filter {
        DeviceFilter::All => 0,
        DeviceFilter::Only(devices) | DeviceFilter::AllBut(devices) => names_bytes(devices),
    }
}

/// Bytes that these names take.
pub(crate) fn names_bytes(devices: &[DeviceId]) -> usize {
    devices.iter().map(|device| NAME_BYTES + device.as_str().len()).sum()
}

/// Whether a filter names few enough devices.
pub(crate) fn filter_is_bounded(filter: &DeviceFilter, devices_max: usize) -> bool {
    match filter {
        DeviceFilter::All => true,
        DeviceFilter::Only(devices) | DeviceFilter::AllBut(devices) => devices.len() <= devices_max,
    }
}

/// Checks a list against its mailbox's devices: per entry, `None` if it may be appended.
pub(crate) async fn check(
    shared: Arc<Shared>,
    list: Arc<SubmitList>,
    deadline: Time,
) -> Vec<Option<Outcome>> {
    let (config, world, store) = (&shared.config, &*shared.world, &*shared.store);
    let checker = Checker { config, world, store, sets: &shared.device_sets };
    let verdicts = shared.within(deadline, checker.check(&list)).await;
    verdicts.unwrap_or_else(|| vec![Some(Outcome::Unknown); list.entries.len()])
}

/// A list that was checked, with the entries that may be appended.
pub(crate) struct Checked {
    pub(crate) list: Arc<SubmitList>,
    pub(crate) verdicts: Vec<Option<Outcome>>,
    pub(crate) planned: Vec<Planned>,
}

/// Appends what may be appended of a list, and answers for all of it.
pub(crate) async fn append(
    shared: Arc<Shared>,
    checked: Checked,
    deadline: Time,
    permit: Arc<crate::permits::Permit>,
) -> ListReply {
    let Checked { list, verdicts, planned } = checked;
    let answer = if planned.is_empty() {
        JobAnswer::default()
    } else if shared.world.now() >= deadline {
        JobAnswer { outcomes: vec![(planned[0].index, Outcome::Unknown)], head_bucket: None }
    } else {
        wait_for_round(&shared, &list, planned, deadline, permit).await
    };
    let mut outcomes = verdicts;
    for (index, outcome) in answer.outcomes {
        if let Some(slot) = outcomes.get_mut(index) {
            *slot = Some(outcome);
        }
    }
    // Without an answer an entry is perhaps on its way.
    let mut outcomes: Vec<Outcome> = outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Unknown)).collect();
    if !shared.config.has_bug(PlantedBug::ContinueBehindUndecided) {
        settle(&mut outcomes);
    }
    let results = list.entries.iter().zip(outcomes).map(|(entry, outcome)| {
        let envelope_id = EnvelopeId::derive(entry.submit_id, list.mailbox, entry.number);
        EntryResult { envelope_id, outcome }
    });
    ListReply { mailbox: list.mailbox, head_bucket: answer.head_bucket, results: results.collect() }
}

async fn wait_for_round(
    shared: &Arc<Shared>,
    list: &SubmitList,
    planned: Vec<Planned>,
    deadline: Time,
    permit: Arc<crate::permits::Permit>,
) -> JobAnswer {
    let all: Vec<usize> = planned.iter().map(|planned| planned.index).collect();
    let (answer, answered) = oneshot::channel();
    let (rest, known) = (planned.into(), JobAnswer::default());
    let job = Job { rest, base: list.base, deadline, known, answer, _permit: permit };
    if let Err(job) = rounds::enqueue(shared, list.mailbox, job) {
        shared.metrics.refused_full.inc();
        drop(job);
        let outcomes = all.into_iter().map(|index| (index, Outcome::Unavailable)).collect();
        return JobAnswer { outcomes, head_bucket: None };
    }
    if shared.config.has_bug(PlantedBug::AckBeforeAppend) {
        let outcomes = all.into_iter().map(|index| (index, Outcome::Accepted)).collect();
        return JobAnswer { outcomes, head_bucket: None };
    }
    match shared.within(deadline, answered).await {
        Some(Ok(answer)) => answer,
        Some(Err(_)) | None => JobAnswer::default(),
    }
}

/// An entry that is undecided ends its list.
fn settle(outcomes: &mut [Outcome]) {
    let undecided = outcomes.iter().position(|outcome| !outcome.is_decided());
    let behind = undecided.map_or(outcomes.len(), |at| at + 1);
    outcomes[behind..].fill(Outcome::NotAttempted);
}

/// Runs one future per item, at most `parallel_max` at a time; results in the items' order.
pub(crate) async fn in_parallel<F: Future>(mut futures: Vec<F>, parallel_max: usize) -> Vec<F::Output> {
    // Nearly always there is one, which needs no list of its own.
    if futures.len() == 1
        && let Some(alone) = futures.pop()
    {
        return vec![alone.await];
    }
    stream::iter(futures).buffered(parallel_max.max(1)).collect().await
}
