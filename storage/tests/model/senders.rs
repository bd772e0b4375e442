//! A sender that does not wait: an ordered list of envelopes for one mailbox, and what an undecided one does to those behind it.
//! **Invariant:** nothing of a list is appended before everything ahead of it is in the log.
//!
//! A round is a list on its way through a router. Its next append may end *unknown*: the write may still happen, once, if the
//! head has not moved. The gateway may give up on a round, which then goes on as a zombie.

use crate::variant::{REACHED, Size, Variant, distinct, small};
use stateright::{Model, Property};

/// From here on, envelopes of others.
const OTHERS: u8 = 100;

/// Which rule is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Behind an undecided entry everything is `not_attempted`; one round in flight; resending starts with the oldest.
    AsDesigned,
    /// The router goes on behind an undecided entry.
    RouterContinues,
    /// The gateway sends each envelope as a round of its own, without waiting.
    ManyInFlight,
    /// The sender resends what was not attempted and lets the unknown one wait out its backoff.
    ResendsTheRestFirst,
}

/// A list on its way.
#[derive(Debug, Clone, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round {
    entries: Vec<u8>,
    /// The gateway still waits for it.
    awaited: bool,
}

/// A write of unknown fate: it may still happen if the head is the expected one.
#[derive(Debug, Clone, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct LateWrite {
    envelope: u8,
    expected: u8,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct State {
    log: Vec<u8>,
    /// The sender knows: accepted.
    accepted: Vec<bool>,
    /// The sender was told "unknown" last.
    unknown: Vec<bool>,
    rounds: Vec<Round>,
    late: Vec<LateWrite>,
    sent: u8,
    others: u8,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Action {
    Send,
    Append(usize),
    AppendEndsUnknown(usize),
    GatewayGivesUp(usize),
    LateWriteHappens(usize),
    OtherAppends,
}

#[derive(Debug, Clone)]
pub struct Senders {
    envelopes: u8,
    rounds_max: u8,
    others_max: u8,
    rules: Rules,
}

impl Senders {
    /// What the sender sends now; empty: nothing.
    fn list(&self, state: &State) -> Vec<u8> {
        let awaited = |envelope: u8| {
            state.rounds.iter().any(|round| round.awaited && round.entries.contains(&envelope))
        };
        let open = (0..self.envelopes).filter(|envelope| !state.accepted[usize::from(*envelope)]);
        match self.rules {
            Rules::AsDesigned | Rules::RouterContinues => {
                if state.rounds.iter().any(|round| round.awaited) {
                    vec![]
                } else {
                    open.collect()
                }
            }
            Rules::ManyInFlight => open.filter(|envelope| !awaited(*envelope)).take(1).collect(),
            Rules::ResendsTheRestFirst => {
                if state.rounds.iter().any(|round| round.awaited) {
                    return vec![];
                }
                let (unknown, rest): (Vec<u8>, Vec<u8>) =
                    open.partition(|envelope| state.unknown[usize::from(*envelope)]);
                if rest.is_empty() { unknown } else { rest }
            }
        }
    }

    /// A list of one entry less; none if it is done.
    fn advance(state: &mut State, at: usize) {
        state.rounds[at].entries.remove(0);
        if state.rounds[at].entries.is_empty() {
            state.rounds.remove(at);
        }
        state.rounds.sort();
    }

    fn append(state: &mut State, at: usize) {
        let round = state.rounds[at].clone();
        let envelope = round.entries[0];
        if !state.log.contains(&envelope) {
            state.log.push(envelope);
        }
        if round.awaited {
            state.accepted[usize::from(envelope)] = true;
            state.unknown[usize::from(envelope)] = false;
        }
        Self::advance(state, at);
    }

    fn append_ends_unknown(&self, state: &mut State, at: usize) {
        let round = state.rounds[at].clone();
        let envelope = round.entries[0];
        if !state.log.contains(&envelope) {
            state.late.push(LateWrite { envelope, expected: small(state.log.len()) });
            state.late.sort();
        }
        if round.awaited {
            state.unknown[usize::from(envelope)] = true;
        }
        match self.rules {
            Rules::RouterContinues => Self::advance(state, at),
            Rules::AsDesigned | Rules::ManyInFlight | Rules::ResendsTheRestFirst => {
                state.rounds.remove(at);
            }
        }
    }
}

impl Model for Senders {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let n = usize::from(self.envelopes);
        vec![State {
            log: vec![],
            accepted: vec![false; n],
            unknown: vec![false; n],
            rounds: vec![],
            late: vec![],
            sent: 0,
            others: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.sent < self.rounds_max && !self.list(state).is_empty() {
            actions.push(Action::Send);
        }
        for (at, round) in state.rounds.iter().enumerate() {
            actions.extend([Action::Append(at), Action::AppendEndsUnknown(at)]);
            if round.awaited {
                actions.push(Action::GatewayGivesUp(at));
            }
        }
        actions.extend((0..state.late.len()).map(Action::LateWriteHappens));
        if state.others < self.others_max {
            actions.push(Action::OtherAppends);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send => {
                let entries = self.list(last);
                state.sent += 1;
                state.rounds.push(Round { entries, awaited: true });
                state.rounds.sort();
            }
            Action::Append(at) => Self::append(&mut state, at),
            Action::AppendEndsUnknown(at) => self.append_ends_unknown(&mut state, at),
            Action::GatewayGivesUp(at) => {
                state.rounds[at].awaited = false;
                for envelope in &last.rounds[at].entries {
                    state.unknown[usize::from(*envelope)] = true;
                }
                state.rounds.sort();
            }
            Action::LateWriteHappens(at) => {
                let write = state.late.remove(at);
                let head = small(state.log.len());
                if write.expected == head && !state.log.contains(&write.envelope) {
                    state.log.push(write.envelope);
                }
            }
            Action::OtherAppends => {
                state.log.push(OTHERS + state.others);
                state.others += 1;
            }
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
            Property::always("SenderOrder", |_, state: &State| {
                let own: Vec<u8> = state.log.iter().copied().filter(|envelope| *envelope < OTHERS).collect();
                own.is_sorted() && own.iter().copied().eq(0..small(own.len()))
            }),
            Property::sometimes(REACHED, |machine: &Self, state: &State| {
                state.accepted.iter().all(|accepted| *accepted)
                    && state.sent == machine.rounds_max
                    && state.others == machine.others_max
            }),
        ]
    }
}

/// What keeps the order of a sender that sends ahead.
pub fn variants(size: Size) -> Vec<Variant> {
    let of = |rules| Senders { envelopes: 3, rounds_max: 3, others_max: 1, rules };
    let designed = of(Rules::AsDesigned);
    let designed = Senders {
        envelopes: size.pick(3, 5),
        rounds_max: size.pick(3, 5),
        others_max: size.pick(1, 2),
        ..designed
    };
    let order: &[&str] = &["SenderOrder"];
    vec![
        Variant::right("senders", "as designed", designed),
        Variant::wrong(
            "senders",
            "the router goes on behind an undecided entry",
            order,
            of(Rules::RouterContinues),
        ),
        Variant::wrong("senders", "many appends of one sender in flight", order, of(Rules::ManyInFlight)),
        Variant::wrong(
            "senders",
            "the rest is resent before the unknown one",
            order,
            of(Rules::ResendsTheRestFirst),
        ),
    ]
}
