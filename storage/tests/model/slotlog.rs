//! One bucket of the slot log: two routers, lost replies, lost and reordered doorbells, a device that reconnects.
//! **Invariant:** only what the head register admits is in the log; no clock appears anywhere.
//!
//! A router keeps a guess of the head. Between taking an envelope and its compare-and-set it may be paused for ever; the reply
//! may be lost; the sender, which stops and waits, tries again through any router.

use crate::variant::{REACHED, Size, Variant, distinct, small};
use stateright::{Model, Property};

/// Which rule is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// `delivery.md`: compare-and-set on the head with the ids in the same batch; a device takes exactly the next slot.
    AsDesigned,
    /// The batch does not check ids.
    IdsUnchecked,
    /// The owner of a mailbox writes where it believes the head to be (a lease without a fence).
    WriteUnconditionally,
    /// A device takes a doorbell's envelope beyond a hole.
    DoorbellBeyondHole,
}

/// An append on its way to the store.
#[derive(Debug, Clone, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    envelope: u8,
    router: u8,
    /// The head that the compare-and-set compares with.
    expected: u8,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct State {
    /// Envelopes by slot; its length is the head register.
    log: Vec<u8>,
    /// Each router's guess of the head.
    guess: [u8; 2],
    attempts: Vec<Attempt>,
    tries: Vec<u8>,
    /// A reply is on its way to the sender.
    replied: Vec<bool>,
    /// The sender knows.
    accepted: Vec<bool>,
    /// Doorbells on their way, by slot.
    bells: Vec<u8>,
    /// The next slot that the session wants.
    next: u8,
    delivered: Vec<u8>,
    cursor: u8,
    reconnects: u8,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Action {
    Submit { envelope: u8, router: u8 },
    CompareAndSet(usize),
    LoseReply(u8),
    Reply(u8),
    Ring(u8),
    LoseBell(u8),
    Read,
    Ack,
    Reconnect,
    LearnHead(u8),
}

#[derive(Debug, Clone)]
pub struct SlotLog {
    envelopes: u8,
    rules: Rules,
}

impl SlotLog {
    /// The store decides one append.
    fn compare_and_set(&self, state: &mut State, at: usize) {
        let attempt = state.attempts.remove(at);
        let envelope = usize::from(attempt.envelope);
        if self.rules != Rules::IdsUnchecked
            && self.rules != Rules::WriteUnconditionally
            && state.log.contains(&attempt.envelope)
        {
            state.replied[envelope] = true;
            return;
        }
        let slot = usize::from(attempt.expected);
        if slot < state.log.len() {
            if self.rules == Rules::WriteUnconditionally {
                state.log[slot] = attempt.envelope;
            } else {
                // Refused, and the refusal carries the head: the same batch is tried again behind it.
                let head = small(state.log.len());
                state.guess[usize::from(attempt.router)] = head;
                state.attempts.push(Attempt { expected: head, ..attempt });
                state.attempts.sort();
                return;
            }
        } else {
            state.log.push(attempt.envelope);
        }
        let guess = &mut state.guess[usize::from(attempt.router)];
        *guess = (*guess).max(attempt.expected + 1);
        state.replied[envelope] = true;
        state.bells.push(attempt.expected);
        state.bells.sort_unstable();
    }

    fn ring(&self, state: &mut State, slot: u8) -> Option<()> {
        take(&mut state.bells, slot)?;
        let beyond = self.rules == Rules::DoorbellBeyondHole && slot > state.next;
        if slot == state.next || beyond {
            state.delivered.push(*state.log.get(usize::from(slot))?);
            state.next = slot + 1;
        }
        Some(())
    }
}

fn take(bells: &mut Vec<u8>, slot: u8) -> Option<()> {
    let at = bells.iter().position(|bell| *bell == slot)?;
    bells.remove(at);
    Some(())
}

impl Model for SlotLog {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let n = usize::from(self.envelopes);
        vec![State {
            log: vec![],
            guess: [0, 0],
            attempts: vec![],
            tries: vec![0; n],
            replied: vec![false; n],
            accepted: vec![false; n],
            bells: vec![],
            next: 0,
            delivered: vec![],
            cursor: 0,
            reconnects: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for envelope in 0..self.envelopes {
            let i = usize::from(envelope);
            let turn = i == 0 || state.accepted[i - 1];
            if turn && !state.accepted[i] && state.tries[i] < 2 {
                actions.extend([0, 1].map(|router| Action::Submit { envelope, router }));
            }
            if state.replied[i] && !state.accepted[i] {
                actions.extend([Action::Reply(envelope), Action::LoseReply(envelope)]);
            }
        }
        actions.extend((0..state.attempts.len()).map(Action::CompareAndSet));
        let mut bells = state.bells.clone();
        bells.dedup();
        actions.extend(bells.into_iter().flat_map(|slot| [Action::Ring(slot), Action::LoseBell(slot)]));
        actions.extend([Action::Read, Action::Ack]);
        if state.reconnects < 1 {
            actions.push(Action::Reconnect);
        }
        if self.rules != Rules::WriteUnconditionally {
            let behind = |router: &u8| usize::from(state.guess[usize::from(*router)]) < state.log.len();
            actions.extend([0, 1].into_iter().filter(behind).map(Action::LearnHead));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let head = small(state.log.len());
        match action {
            Action::Submit { envelope, router } => {
                state.tries[usize::from(envelope)] += 1;
                let expected = state.guess[usize::from(router)];
                state.attempts.push(Attempt { envelope, router, expected });
                state.attempts.sort();
            }
            Action::CompareAndSet(at) => self.compare_and_set(&mut state, at),
            Action::LoseReply(envelope) => state.replied[usize::from(envelope)] = false,
            Action::Reply(envelope) => state.accepted[usize::from(envelope)] = true,
            Action::Ring(slot) => self.ring(&mut state, slot)?,
            Action::LoseBell(slot) => take(&mut state.bells, slot)?,
            Action::Read if state.next >= head => return None,
            Action::Read => {
                state.delivered.extend_from_slice(&last.log[usize::from(state.next)..]);
                state.next = head;
            }
            Action::Ack if state.cursor == state.next => return None,
            Action::Ack => state.cursor = state.next,
            Action::Reconnect => {
                state.reconnects += 1;
                state.next = state.cursor;
            }
            Action::LearnHead(router) => state.guess[usize::from(router)] = head,
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
            Property::always("CursorPassesOnlyDelivered", |_, state: &State| {
                state
                    .log
                    .iter()
                    .take(usize::from(state.cursor))
                    .all(|envelope| state.delivered.contains(envelope))
            }),
            Property::always("SenderOrder", |_, state: &State| {
                let place = |envelope: u8| state.log.iter().position(|other| *other == envelope);
                (1..small(state.accepted.len())).all(|envelope| {
                    match (place(envelope - 1), place(envelope)) {
                        (Some(before), Some(after)) => before < after,
                        (None, Some(_)) => false,
                        (_, None) => true,
                    }
                })
            }),
            Property::always("EnvelopeOnce", |_, state: &State| distinct(&state.log)),
            Property::sometimes(REACHED, |_, state: &State| {
                state.accepted.iter().all(|accepted| *accepted)
                    && usize::from(state.cursor) == state.log.len()
                    && state.reconnects > 0
            }),
        ]
    }
}

/// The design, and what each of its rules is for.
pub fn variants(size: Size) -> Vec<Variant> {
    let of = |rules| SlotLog { envelopes: 2, rules };
    vec![
        Variant::right(
            "slotlog",
            "as designed",
            SlotLog { envelopes: size.pick(2, 3), ..of(Rules::AsDesigned) },
        ),
        Variant::wrong("slotlog", "ids unchecked in the batch", &["EnvelopeOnce"], of(Rules::IdsUnchecked)),
        Variant::wrong(
            "slotlog",
            "a lease without a fence: unconditional writes",
            &["AcceptedIsInLog", "CursorPassesOnlyDelivered", "EnvelopeOnce", "SenderOrder"],
            of(Rules::WriteUnconditionally),
        ),
        Variant::wrong(
            "slotlog",
            "a doorbell is taken beyond a hole",
            &["CursorPassesOnlyDelivered"],
            of(Rules::DoorbellBeyondHole),
        ),
    ]
}
