//! One device and its session: slots that target it and slots that do not, frames on their way, a crash in between.
//! **Invariant:** neither the stored cursor nor the device's own passes a targeted slot that the device has not persisted.
//!
//! The session walks the log slot by slot and tells what is for the device. The device takes a Deliver by its `prev`, persists
//! in its own time and in any order, acks, and may lose at any moment its connection and whatever it has not persisted.

use crate::variant::{REACHED, Size, Variant, small};
use stateright::{Model, Property};

/// Which rule is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    AsDesigned,
    /// The gateway's cursor is how far it has walked, acked or not.
    CursorIgnoresUnacked,
    /// A doorbell's envelope is delivered at once, though slots before it were not walked.
    JumpsToDoorbell,
    /// The same, but with an honest `prev`, which the device then checks.
    JumpsWithHonestPrev,
    /// `Pong{upto}` is the head that the gateway knows.
    PongTellsHead,
    /// The device lets an `upto` carry its cursor past what it has not persisted.
    UptoPassesUnpersisted,
    /// The device acks what it has received.
    AcksBeforePersisting,
    /// A session starts at the head.
    StartsAtHead,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Frame {
    Deliver { seq: u8, prev: u8 },
    Pong { upto: u8 },
}

/// The gateway's side.
#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct Session {
    /// The position last told.
    told: u8,
    /// Every slot up to here was looked at.
    walked: u8,
    known_head: u8,
    unacked: Vec<u8>,
    /// Frames to the device, in order.
    frames: Vec<Frame>,
    /// Acks to the gateway, in order.
    acks: Vec<u8>,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct State {
    /// Whether slot `i + 1` targets the device.
    log: Vec<bool>,
    bells: Vec<u8>,
    session: Option<Session>,
    stored: u8,
    /// The device: position of this connection.
    have: u8,
    /// The device: received and not persisted.
    holding: Vec<u8>,
    /// The device: on its disk, sorted.
    persisted: Vec<u8>,
    /// The device: its cursor, on its disk.
    cursor: u8,
    crashes: u8,
    /// The device found a hole and reconnects.
    holes: u8,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Action {
    Append { targeted: bool },
    Ring(u8),
    LoseBell(u8),
    LearnHead,
    Walk,
    TellPong,
    Receive,
    Persist(usize),
    Ack,
    AckArrives,
    StoreCursor,
    Crash,
    Attach,
}

#[derive(Debug, Clone)]
pub struct Targets {
    slots: u8,
    crashes_max: u8,
    rules: Rules,
}

impl Targets {
    fn targeted(state: &State, seq: u8) -> bool {
        state.log[usize::from(seq) - 1]
    }

    /// Tells the device a slot.
    fn deliver(session: &mut Session, seq: u8) {
        session.frames.push(Frame::Deliver { seq, prev: session.told });
        session.unacked.push(seq);
        session.told = seq;
        session.walked = seq;
    }

    fn walk(state: &mut State) -> Option<()> {
        let seq = state.session.as_ref()?.walked + 1;
        let targeted = Self::targeted(state, seq);
        let session = state.session.as_mut()?;
        if targeted {
            Self::deliver(session, seq);
        } else {
            session.walked = seq;
        }
        Some(())
    }

    fn ring(&self, state: &mut State, seq: u8) -> Option<()> {
        state.bells.retain(|bell| *bell != seq);
        let targeted = Self::targeted(state, seq);
        let Some(session) = state.session.as_mut() else { return Some(()) };
        session.known_head = session.known_head.max(seq);
        if seq == session.walked + 1 {
            return Self::walk(state);
        }
        if seq > session.walked && targeted {
            match self.rules {
                Rules::JumpsToDoorbell => Self::deliver(session, seq),
                Rules::JumpsWithHonestPrev => {
                    // It has not looked at seq - 1, so that is where the device would have to be.
                    session.told = seq - 1;
                    Self::deliver(session, seq);
                }
                Rules::AsDesigned
                | Rules::CursorIgnoresUnacked
                | Rules::PongTellsHead
                | Rules::UptoPassesUnpersisted
                | Rules::AcksBeforePersisting
                | Rules::StartsAtHead => {}
            }
        }
        Some(())
    }

    /// What the gateway would write as the device's cursor.
    fn gateway_cursor(&self, session: &Session) -> u8 {
        match session.unacked.first() {
            Some(seq) if self.rules != Rules::CursorIgnoresUnacked => seq - 1,
            Some(_) | None => session.walked,
        }
    }

    fn pong_upto(&self, session: &Session) -> u8 {
        if self.rules == Rules::PongTellsHead { session.known_head } else { session.walked }
    }

    /// What the device would write as its cursor.
    fn device_cursor(&self, state: &State) -> u8 {
        match state.holding.iter().min() {
            Some(seq) if self.rules != Rules::AcksBeforePersisting => seq - 1,
            Some(_) | None => state.have,
        }
    }

    fn receive(&self, state: &mut State) -> Option<()> {
        let frame = state.session.as_mut()?.frames.remove(0);
        match frame {
            Frame::Deliver { seq, .. } if seq <= state.have => {}
            Frame::Deliver { seq, prev } if prev <= state.have => {
                state.have = seq;
                if !state.persisted.contains(&seq) {
                    state.holding.push(seq);
                }
            }
            Frame::Deliver { .. } => {
                state.holes += 1;
                Self::lose_connection(state);
            }
            Frame::Pong { upto } => {
                state.have = state.have.max(upto);
                if self.rules == Rules::UptoPassesUnpersisted {
                    state.cursor = state.cursor.max(upto);
                }
            }
        }
        Some(())
    }

    fn lose_connection(state: &mut State) {
        state.session = None;
        // The device starts again with what is on its disk.
        state.holding.clear();
        state.have = state.cursor;
    }

    fn attach(&self, state: &mut State) {
        let head = small(state.log.len());
        // The device's own cursor counts as an ack.
        state.stored = state.stored.max(state.cursor);
        let from = if self.rules == Rules::StartsAtHead { head } else { state.stored };
        state.have = from;
        state.session = Some(Session {
            told: from,
            walked: from,
            known_head: head,
            unacked: vec![],
            frames: vec![],
            acks: vec![],
        });
    }

    fn persisted_up_to(state: &State, cursor: u8) -> bool {
        (1..=cursor).all(|seq| !Self::targeted(state, seq) || state.persisted.contains(&seq))
    }
}

impl Model for Targets {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            log: vec![],
            bells: vec![],
            session: None,
            stored: 0,
            have: 0,
            holding: vec![],
            persisted: vec![],
            cursor: 0,
            crashes: 0,
            holes: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.log.len() < usize::from(self.slots) {
            actions.extend([true, false].map(|targeted| Action::Append { targeted }));
        }
        actions.extend(state.bells.iter().flat_map(|seq| [Action::Ring(*seq), Action::LoseBell(*seq)]));
        actions.extend((0..state.holding.len()).map(Action::Persist));
        if self.device_cursor(state) > state.cursor {
            actions.push(Action::Ack);
        }
        let Some(session) = &state.session else {
            actions.push(Action::Attach);
            return;
        };
        if usize::from(session.known_head) < state.log.len() {
            actions.push(Action::LearnHead);
        }
        if session.walked < session.known_head {
            actions.push(Action::Walk);
        }
        if self.pong_upto(session) > session.told {
            actions.push(Action::TellPong);
        }
        if !session.frames.is_empty() {
            actions.push(Action::Receive);
        }
        if !session.acks.is_empty() {
            actions.push(Action::AckArrives);
        }
        if self.gateway_cursor(session) > state.stored {
            actions.push(Action::StoreCursor);
        }
        if state.crashes < self.crashes_max {
            actions.push(Action::Crash);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Append { targeted } => {
                state.log.push(targeted);
                state.bells.push(small(state.log.len()));
            }
            Action::Ring(seq) => self.ring(&mut state, seq)?,
            Action::LoseBell(seq) => state.bells.retain(|bell| *bell != seq),
            Action::LearnHead => state.session.as_mut()?.known_head = small(last.log.len()),
            Action::Walk => Self::walk(&mut state)?,
            Action::TellPong => {
                let session = state.session.as_mut()?;
                let upto = self.pong_upto(session);
                session.told = upto;
                session.frames.push(Frame::Pong { upto });
            }
            Action::Receive => self.receive(&mut state)?,
            Action::Persist(at) => {
                let seq = state.holding.remove(at);
                state.persisted.push(seq);
                state.persisted.sort_unstable();
            }
            Action::Ack => {
                state.cursor = self.device_cursor(last);
                if let Some(session) = state.session.as_mut() {
                    session.acks.push(state.cursor);
                }
            }
            Action::AckArrives => {
                let session = state.session.as_mut()?;
                let upto = session.acks.remove(0);
                session.unacked.retain(|seq| *seq > upto);
            }
            Action::StoreCursor => state.stored = self.gateway_cursor(last.session.as_ref()?),
            Action::Crash => {
                state.crashes += 1;
                Self::lose_connection(&mut state);
            }
            Action::Attach => self.attach(&mut state),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("StoredCursorPassesOnlyPersisted", |_, state: &State| {
                Self::persisted_up_to(state, state.stored)
            }),
            Property::always("DeviceCursorPassesOnlyPersisted", |_, state: &State| {
                Self::persisted_up_to(state, state.cursor)
            }),
            Property::always("OnlyTargetedIsDelivered", |_, state: &State| {
                state
                    .session
                    .iter()
                    .flat_map(|session| &session.unacked)
                    .all(|seq| Self::targeted(state, *seq))
            }),
            Property::always("NoHoles", |_, state: &State| state.holes == 0),
            Property::sometimes(REACHED, |machine: &Self, state: &State| {
                state.stored == machine.slots
                    && state.crashes > 0
                    && state.log.contains(&true)
                    && state.log.contains(&false)
            }),
        ]
    }
}

/// What keeps a cursor from passing what its device does not have.
pub fn variants(size: Size) -> Vec<Variant> {
    let of = |rules| Targets { slots: 3, crashes_max: 1, rules };
    let designed = of(Rules::AsDesigned);
    let designed = Targets { slots: size.pick(3, 4), crashes_max: size.pick(1, 2), ..designed };
    let wrong = |name, breaks, rules| Variant::wrong("targets", name, breaks, of(rules));
    let both: &[&str] = &["DeviceCursorPassesOnlyPersisted", "StoredCursorPassesOnlyPersisted"];
    vec![
        Variant::right("targets", "as designed", designed),
        wrong("the gateway's cursor passes what is not acked", both, Rules::CursorIgnoresUnacked),
        wrong("a doorbell's envelope is delivered beyond a hole", both, Rules::JumpsToDoorbell),
        wrong(
            "the same with an honest prev: the device finds the hole, the gateway's cursor is wrong all the same",
            &["DeviceCursorPassesOnlyPersisted", "NoHoles", "StoredCursorPassesOnlyPersisted"],
            Rules::JumpsWithHonestPrev,
        ),
        wrong("a Pong tells the head", both, Rules::PongTellsHead),
        wrong("an upto passes what is not persisted", both, Rules::UptoPassesUnpersisted),
        wrong("the device acks before it persists", both, Rules::AcksBeforePersisting),
        wrong("a session starts at the head", both, Rules::StartsAtHead),
    ]
}
