//! The slot log in buckets of two: idempotence across buckets, and trimming.
//! **Invariant:** a head register says for ever how far its bucket was filled.
//!
//! The ids of a batch are compared in its own bucket only. Whether an earlier attempt stands in an older bucket is found by
//! looking back before the compare-and-set; how far is the question of this model.

use crate::variant::{REACHED, Size, Variant, distinct, small};
use stateright::{Model, Property};

/// Slots of a bucket.
const BUCKET: usize = 2;

/// How far an attempt looks back before its compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookBack {
    /// Nowhere: the ids in the batch are all there is.
    Never,
    /// A retry: to the beginning. A first attempt: nowhere.
    Retries,
    /// A retry: to the beginning. A first attempt: to the bucket in which it first learned a head.
    RetriesAndMoved,
    /// Every attempt: to the beginning.
    Always,
    /// A retry: to the beginning. A first attempt: to its base, a head bucket known before the first transmission.
    RetriesAndBase,
    /// Every attempt to its own base, learned when it started; retries too.
    OwnBase,
}

/// What trimming does to a bucket whose slots every device has acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trim {
    Never,
    /// Deletes the slots; ids and head stay.
    KeepsHead,
    /// Deletes the whole partition.
    WholeBucket,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    envelope: u8,
    retry: bool,
    /// The head that the next compare-and-set compares with; `None`: not learned yet.
    expected: Option<u8>,
    /// The bucket down to which a first attempt looks back; `None`: not known yet.
    base: Option<u8>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct State {
    /// Envelopes by slot, from 0, across buckets.
    log: Vec<u8>,
    /// Envelopes written where nobody will ever read.
    ghosts: Vec<u8>,
    attempts: Vec<Attempt>,
    tries: Vec<u8>,
    accepted: Vec<bool>,
    cursor: u8,
    /// The first bucket that is not trimmed.
    floor: u8,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Action {
    Submit(u8),
    LearnHead(usize),
    CompareAndSet(usize),
    CompareAndSetReplyLost(usize),
    Ack,
    Trim,
}

#[derive(Debug, Clone)]
pub struct Buckets {
    envelopes: u8,
    look_back: LookBack,
    trim: Trim,
}

impl Buckets {
    fn stands_in(state: &State, envelope: u8, bucket: usize) -> bool {
        state.log.iter().skip(bucket * BUCKET).take(BUCKET).any(|other| *other == envelope)
    }

    /// The first bucket that the attempt looks into before a compare-and-set; `None`: it does not look back.
    fn looks_from(&self, attempt: &Attempt) -> Option<usize> {
        let base = attempt.base.map(usize::from);
        match self.look_back {
            LookBack::Never => None,
            LookBack::Retries => attempt.retry.then_some(0),
            LookBack::Always => Some(0),
            LookBack::RetriesAndMoved | LookBack::RetriesAndBase if attempt.retry => Some(0),
            LookBack::RetriesAndMoved | LookBack::RetriesAndBase | LookBack::OwnBase => base,
        }
    }

    fn submit(&self, state: &mut State, envelope: u8) {
        let tries = &mut state.tries[usize::from(envelope)];
        let retry = *tries > 0;
        *tries += 1;
        let head_bucket = small(state.log.len() / BUCKET);
        let base = match self.look_back {
            LookBack::RetriesAndBase | LookBack::OwnBase => Some(head_bucket),
            LookBack::Never | LookBack::Retries | LookBack::RetriesAndMoved | LookBack::Always => None,
        };
        state.attempts.push(Attempt { envelope, retry, expected: None, base });
        state.attempts.sort();
    }

    /// Reads the head, looks back as far as the rule says.
    fn learn_head(&self, state: &mut State, at: usize) {
        let mut attempt = state.attempts.remove(at);
        let bucket = state.log.len() / BUCKET;
        if let Some(from) = self.looks_from(&attempt)
            && (from..bucket).any(|older| Self::stands_in(state, attempt.envelope, older))
        {
            state.accepted[usize::from(attempt.envelope)] = true;
            return;
        }
        attempt.base.get_or_insert(small(bucket));
        attempt.expected = Some(small(state.log.len()));
        state.attempts.push(attempt);
        state.attempts.sort();
    }

    fn compare_and_set(&self, state: &mut State, at: usize) -> Option<()> {
        let mut attempt = state.attempts.remove(at);
        let expected = usize::from(attempt.expected?);
        let envelope = usize::from(attempt.envelope);
        let bucket = expected / BUCKET;
        let deleted = bucket < usize::from(state.floor) && self.trim == Trim::WholeBucket;
        if deleted && expected.is_multiple_of(BUCKET) {
            // The bucket's first slot compares with no head, and there is none any more.
            state.ghosts.push(attempt.envelope);
            state.accepted[envelope] = true;
            return Some(());
        }
        if !deleted && Self::stands_in(state, attempt.envelope, bucket) {
            state.accepted[envelope] = true;
        } else if expected < state.log.len() {
            attempt.expected = None;
            state.attempts.push(attempt);
            state.attempts.sort();
        } else {
            state.log.push(attempt.envelope);
            state.accepted[envelope] = true;
        }
        Some(())
    }
}

impl Model for Buckets {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let n = usize::from(self.envelopes);
        vec![State {
            log: vec![],
            ghosts: vec![],
            attempts: vec![],
            tries: vec![0; n],
            accepted: vec![false; n],
            cursor: 0,
            floor: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for envelope in 0..self.envelopes {
            // One envelope is tried twice; the others are there to fill buckets.
            let tries_max = if envelope == 0 { 2 } else { 1 };
            let i = usize::from(envelope);
            if !state.accepted[i] && state.tries[i] < tries_max {
                actions.push(Action::Submit(envelope));
            }
        }
        for (at, attempt) in state.attempts.iter().enumerate() {
            if attempt.expected.is_none() {
                actions.push(Action::LearnHead(at));
            } else {
                actions.push(Action::CompareAndSet(at));
                if attempt.envelope == 0 {
                    actions.push(Action::CompareAndSetReplyLost(at));
                }
            }
        }
        if usize::from(state.cursor) < state.log.len() {
            actions.push(Action::Ack);
        }
        let sealed = (usize::from(state.floor) + 1) * BUCKET;
        if self.trim != Trim::Never && usize::from(state.cursor) >= sealed {
            actions.push(Action::Trim);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Submit(envelope) => self.submit(&mut state, envelope),
            Action::LearnHead(at) => self.learn_head(&mut state, at),
            Action::CompareAndSet(at) => self.compare_and_set(&mut state, at)?,
            Action::CompareAndSetReplyLost(at) => {
                let envelope = usize::from(last.attempts[at].envelope);
                self.compare_and_set(&mut state, at)?;
                state.accepted[envelope] = last.accepted[envelope];
            }
            Action::Ack => state.cursor = small(state.log.len()),
            Action::Trim => state.floor += 1,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("AcceptedIsInLog", |_, state: &State| {
                (0_u8..)
                    .zip(&state.accepted)
                    .all(|(envelope, accepted)| !accepted || state.log.contains(&envelope))
            }),
            Property::always("EnvelopeOnce", |_, state: &State| distinct(&state.log)),
            Property::always("NothingWhereNobodyReads", |_, state: &State| state.ghosts.is_empty()),
            Property::sometimes(REACHED, |machine: &Self, state: &State| {
                state.accepted.iter().all(|accepted| *accepted)
                    && state.log.len() >= usize::from(machine.envelopes)
                    && (machine.trim == Trim::Never || state.floor > 0)
            }),
        ]
    }
}

/// How far must an attempt look back, and what may trimming delete?
pub fn variants(size: Size) -> Vec<Variant> {
    let n = size.pick(4, 5);
    let of = |look_back, trim| Buckets { envelopes: n, look_back, trim };
    let twice: &[&str] = &["EnvelopeOnce"];
    let right = |name, machine| Variant::right("buckets", name, machine);
    let wrong = |name, breaks, machine| Variant::wrong("buckets", name, breaks, machine);
    vec![
        right("as designed, trimming", of(LookBack::RetriesAndBase, Trim::KeepsHead)),
        right("every attempt looks back to the beginning", of(LookBack::Always, Trim::Never)),
        right("the same, trimming keeps the head", of(LookBack::Always, Trim::KeepsHead)),
        wrong("ids are compared in the batch only", twice, of(LookBack::Never, Trim::Never)),
        wrong("only retries look back", twice, of(LookBack::Retries, Trim::Never)),
        wrong("retries, and attempts whose bucket moved", twice, of(LookBack::RetriesAndMoved, Trim::Never)),
        wrong("a base of each attempt's own", twice, of(LookBack::OwnBase, Trim::Never)),
        wrong(
            "trimming removes the head",
            &["AcceptedIsInLog", "NothingWhereNobodyReads"],
            of(LookBack::Always, Trim::WholeBucket),
        ),
    ]
}
