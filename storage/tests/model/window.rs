//! The design that was refused: time-ordered ids, a cursor over them, and a window that is read again behind it.
//! **Invariant:** none that holds: clocks and pauses put an accepted envelope behind the window.
//!
//! A router takes an id from its clock; the write becomes visible later; then it accepts; then it publishes live, which may be
//! dropped. The device's cursor is the greatest id it has seen; catching up reads what is visible behind cursor − window. Lost:
//! accepted, not delivered, no longer on its way, and behind every later catch-up.

use crate::variant::{REACHED, Size, Variant};
use stateright::{Model, Property};

/// The live publication of an envelope.
#[derive(Debug, Clone, Copy, Hash, PartialEq, Eq)]
pub enum Live {
    NotYet,
    Flying,
    Gone,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct Envelope {
    id: Option<i8>,
    router: usize,
    visible: bool,
    accepted: bool,
    live: Live,
    delivered: bool,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct State {
    now: i8,
    envelopes: Vec<Envelope>,
    cursor: i8,
    catch_ups: u8,
    dead: Option<usize>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Action {
    Tick,
    TakeId { envelope: usize, router: usize },
    Write(usize),
    Accept(usize),
    Publish(usize),
    DropLive(usize),
    DeliverLive(usize),
    CatchUp,
    Kill(usize),
}

#[derive(Debug, Clone)]
#[allow(clippy::struct_excessive_bools, reason = "each is one assumption that a variant takes away")]
pub struct Window {
    /// How far behind the cursor a catch-up reads.
    reads_back: i8,
    ticks: i8,
    /// How far each router's clock is off.
    skew: [i8; 2],
    /// A router accepts only so soon after it took the id.
    accept_within: Option<i8>,
    /// The cursor is moved by catch-ups only, to now − window.
    watermark: bool,
    /// The sender does not wait for the answer.
    pipelined: bool,
    crashes: bool,
    drops: bool,
}

const ENVELOPES: usize = 2;

impl Window {
    /// What lies at or below this is never read again.
    fn low(&self, state: &State) -> i8 {
        if self.watermark { state.cursor } else { state.cursor - self.reads_back }
    }

    fn catch_up(&self, state: &mut State) {
        let low = self.low(state);
        let mut high = state.cursor;
        for envelope in &mut state.envelopes {
            if let Some(id) = envelope.id
                && envelope.visible
                && id > low
            {
                envelope.delivered = true;
                high = high.max(id);
            }
        }
        state.catch_ups += 1;
        state.cursor = if self.watermark { state.cursor.max(state.now - self.reads_back) } else { high };
    }

    fn is_lost(&self, state: &State, envelope: &Envelope) -> bool {
        let gone = match envelope.live {
            Live::Gone => true,
            Live::NotYet => state.dead == Some(envelope.router),
            Live::Flying => false,
        };
        envelope.accepted
            && !envelope.delivered
            && gone
            && envelope.id.is_some_and(|id| id <= self.low(state))
    }

    fn envelope_actions(&self, state: &State, i: usize, actions: &mut Vec<Action>) {
        let envelope = &state.envelopes[i];
        let Some(id) = envelope.id else {
            let before = i.checked_sub(1).map(|before| &state.envelopes[before]);
            let turn = before
                .is_none_or(|before| if self.pipelined { before.id.is_some() } else { before.accepted });
            let routers = [0, 1].into_iter().filter(|router| turn && state.dead != Some(*router));
            actions.extend(routers.map(|router| Action::TakeId { envelope: i, router }));
            return;
        };
        let alive = state.dead != Some(envelope.router);
        let age = state.now + self.skew[envelope.router] - id;
        if !envelope.visible && alive {
            actions.push(Action::Write(i));
        }
        if envelope.visible
            && !envelope.accepted
            && alive
            && self.accept_within.is_none_or(|bound| age <= bound)
        {
            actions.push(Action::Accept(i));
        }
        if envelope.accepted && envelope.live == Live::NotYet && alive {
            actions.push(Action::Publish(i));
        }
        if envelope.live == Live::Flying {
            actions.push(Action::DeliverLive(i));
            if self.drops {
                actions.push(Action::DropLive(i));
            }
        }
    }
}

impl Model for Window {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let envelope = Envelope {
            id: None,
            router: 0,
            visible: false,
            accepted: false,
            live: Live::NotYet,
            delivered: false,
        };
        vec![State { now: 0, envelopes: vec![envelope; ENVELOPES], cursor: -9, catch_ups: 0, dead: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < self.ticks {
            actions.push(Action::Tick);
        }
        for i in 0..ENVELOPES {
            self.envelope_actions(state, i, actions);
        }
        if state.catch_ups < 1 {
            actions.push(Action::CatchUp);
        }
        if self.crashes && state.dead.is_none() {
            actions.extend([Action::Kill(0), Action::Kill(1)]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => state.now += 1,
            Action::TakeId { envelope, router } => {
                state.envelopes[envelope].router = router;
                state.envelopes[envelope].id = Some(last.now + self.skew[router]);
            }
            Action::Write(i) => state.envelopes[i].visible = true,
            Action::Accept(i) => state.envelopes[i].accepted = true,
            Action::Publish(i) => state.envelopes[i].live = Live::Flying,
            Action::DropLive(i) => state.envelopes[i].live = Live::Gone,
            Action::DeliverLive(i) => {
                let envelope = &mut state.envelopes[i];
                (envelope.live, envelope.delivered) = (Live::Gone, true);
                if !self.watermark {
                    state.cursor = state.cursor.max(envelope.id?);
                }
            }
            Action::CatchUp => self.catch_up(&mut state),
            Action::Kill(router) => state.dead = Some(router),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("NothingAcceptedIsLost", |machine: &Self, state: &State| {
                !state.envelopes.iter().any(|envelope| machine.is_lost(state, envelope))
            }),
            Property::always("SenderOrder", |_, state: &State| {
                state.envelopes.windows(2).all(|pair| {
                    let both = pair[0].accepted && pair[1].accepted;
                    !both || pair[0].id <= pair[1].id
                })
            }),
            Property::sometimes(REACHED, |_, state: &State| {
                state.envelopes.iter().all(|envelope| envelope.delivered && envelope.accepted)
            }),
        ]
    }
}

/// Why the slot log replaced it.
pub fn variants(_size: Size) -> Vec<Variant> {
    let proposed = Window {
        reads_back: 3,
        ticks: 8,
        skew: [0, 0],
        accept_within: None,
        watermark: false,
        pipelined: false,
        crashes: false,
        drops: false,
    };
    let bounded = Window { accept_within: Some(2), ..proposed.clone() };
    let inside = Window { drops: true, ticks: 2, ..bounded.clone() };
    let watermark = Window { watermark: true, crashes: true, drops: true, ..bounded.clone() };
    let lost: &[&str] = &["NothingAcceptedIsLost"];
    let right = |name, machine| Variant::right("window", name, machine);
    let wrong = |name, breaks, machine| Variant::wrong("window", name, breaks, machine);
    vec![
        right("as proposed, perfect clocks, no crash, no drop", proposed),
        right("the same, accepting only within 2", bounded.clone()),
        wrong("the same, live publications may be dropped", lost, Window { drops: true, ..bounded.clone() }),
        wrong("the same, a router may die", lost, Window { crashes: true, ..bounded.clone() }),
        right("the same, all inside the window, drops", inside.clone()),
        wrong(
            "the same, one clock 5 ahead",
            &["NothingAcceptedIsLost", "SenderOrder"],
            Window { skew: [0, 5], ..inside },
        ),
        wrong("one clock 1 ahead", &["SenderOrder"], Window { skew: [0, 1], ..bounded }),
        right(
            "a watermark, perfect clocks, a sender that does not wait",
            Window { pipelined: true, ..watermark.clone() },
        ),
        wrong(
            "a watermark, one clock 1 behind",
            &["NothingAcceptedIsLost", "SenderOrder"],
            Window { skew: [0, -1], ..watermark.clone() },
        ),
        wrong(
            "the same with a wider window: nothing lost, still no order",
            &["SenderOrder"],
            Window { skew: [0, -1], reads_back: 4, ..watermark },
        ),
    ]
}
