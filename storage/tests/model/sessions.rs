//! One device that attaches again while an older socket of it is still open somewhere.
//! **Invariant:** the session register only rises, in (epoch, connection id); who sees a greater one than its own closes.
//!
//! Attaching reads the epoch, then writes epoch + 1: two plain operations, so two attaches may come to the same epoch. Gateways
//! look at the register when they probe. Acks of an older socket may arrive late and are as true as any.

use crate::variant::{REACHED, Size, Variant, small};
use stateright::{Model, Property};

/// Which rule is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    AsDesigned,
    /// The cursor is a plain register: the last write wins.
    CursorGoesBack,
    /// A gateway does not close a session of which it has seen a newer one.
    StaysAfterProbe,
    /// Sessions of one epoch do not compare their connection ids.
    NoTieBreak,
    /// The session register is a plain one: the last write wins.
    RegisterGoesBack,
}

/// Where a socket is.
#[derive(Debug, Clone, Copy, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It has read the register and is about to write this epoch.
    Attaching {
        epoch: u8,
    },
    /// Welcomed.
    Open {
        epoch: u8,
    },
    Closed,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct Socket {
    /// Grows with time as far as clocks agree: here a fixed permutation, so that an older socket may have the greater one.
    id: u8,
    phase: Phase,
    told: u8,
    /// An ack on its way to the gateway.
    ack: Option<u8>,
    /// An ack at the gateway, not yet stored.
    pending: Option<u8>,
    /// It has probed since the register last changed.
    probed: bool,
    /// A probe has shown it a greater session.
    superseded: bool,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub struct State {
    /// The greatest (epoch, connection id).
    register: (u8, u8),
    cursor: u8,
    /// The greatest value that the cursor ever had.
    cursor_max: u8,
    persisted: u8,
    sockets: Vec<Socket>,
    /// Something was told after a probe had shown a greater session.
    told_late: bool,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
pub enum Action {
    /// The device opens a socket and listens to no other from now on; the gateway reads the register.
    Connect,
    /// The gateway writes the register and welcomes.
    Register(usize),
    Tell(usize),
    /// The device persists what this socket has told, and acks.
    Persist(usize),
    AckArrives(usize),
    StoreCursor(usize),
    Probe(usize),
}

#[derive(Debug, Clone)]
pub struct Sessions {
    slots: u8,
    /// The connection ids in the order of connecting.
    ids: Vec<u8>,
    rules: Rules,
}

impl Sessions {
    /// Whether a session closes when it sees the register.
    fn is_superseded(&self, mine: (u8, u8), register: (u8, u8)) -> bool {
        if self.rules == Rules::NoTieBreak { mine.0 < register.0 } else { mine < register }
    }

    fn register(&self, state: &mut State, at: usize) {
        let socket = &mut state.sockets[at];
        let Phase::Attaching { epoch } = socket.phase else { return };
        let mine = (epoch, socket.id);
        socket.phase = Phase::Open { epoch };
        // The device's Hello says what it has.
        socket.told = state.cursor.max(state.persisted);
        state.cursor = socket.told;
        state.cursor_max = state.cursor_max.max(state.cursor);
        let before = state.register;
        state.register = if self.rules == Rules::RegisterGoesBack { mine } else { before.max(mine) };
        for socket in &mut state.sockets {
            socket.probed = false;
        }
    }

    fn probe(&self, state: &mut State, at: usize) {
        let register = state.register;
        let socket = &mut state.sockets[at];
        let Phase::Open { epoch } = socket.phase else { return };
        socket.probed = true;
        if (epoch, socket.id) < register {
            socket.superseded = true;
        }
        if self.is_superseded((epoch, socket.id), register) && self.rules != Rules::StaysAfterProbe {
            socket.phase = Phase::Closed;
        }
    }

    fn is_open(socket: &Socket) -> bool {
        matches!(socket.phase, Phase::Open { .. })
    }

    /// Nobody attaches, and everybody has probed since the last change.
    fn is_quiet(state: &State) -> bool {
        !state.sockets.is_empty()
            && state.sockets.iter().all(|socket| match socket.phase {
                Phase::Attaching { .. } => false,
                Phase::Open { .. } => socket.probed,
                Phase::Closed => true,
            })
    }

    /// The socket that the device listens to.
    fn newest(state: &State) -> Option<usize> {
        state.sockets.len().checked_sub(1)
    }
}

impl Model for Sessions {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            register: (0, 0),
            cursor: 0,
            cursor_max: 0,
            persisted: 0,
            sockets: vec![],
            told_late: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.sockets.len() < self.ids.len() {
            actions.push(Action::Connect);
        }
        for (at, socket) in state.sockets.iter().enumerate() {
            match socket.phase {
                Phase::Attaching { .. } => actions.push(Action::Register(at)),
                Phase::Open { .. } => {
                    if socket.told < self.slots {
                        actions.push(Action::Tell(at));
                    }
                    if !socket.probed {
                        actions.push(Action::Probe(at));
                    }
                }
                Phase::Closed => {}
            }
            if Self::newest(state) == Some(at) && socket.told > state.persisted {
                actions.push(Action::Persist(at));
            }
            if socket.ack.is_some() {
                actions.push(Action::AckArrives(at));
            }
            if socket.pending.is_some() {
                actions.push(Action::StoreCursor(at));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Connect => {
                let id = self.ids[last.sockets.len()];
                let phase = Phase::Attaching { epoch: last.register.0 + 1 };
                let (ack, pending) = (None, None);
                state.sockets.push(Socket {
                    id,
                    phase,
                    told: 0,
                    ack,
                    pending,
                    probed: false,
                    superseded: false,
                });
            }
            Action::Register(at) => self.register(&mut state, at),
            Action::Tell(at) => {
                state.sockets[at].told += 1;
                state.told_late |= state.sockets[at].superseded;
            }
            Action::Persist(at) => {
                state.persisted = last.sockets[at].told;
                state.sockets[at].ack = Some(state.persisted);
            }
            Action::AckArrives(at) => state.sockets[at].pending = state.sockets[at].ack.take(),
            Action::StoreCursor(at) => {
                let upto = state.sockets[at].pending.take()?;
                state.cursor = if self.rules == Rules::CursorGoesBack { upto } else { last.cursor.max(upto) };
                state.cursor_max = state.cursor_max.max(state.cursor);
            }
            Action::Probe(at) => self.probe(&mut state, at),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("CursorNeverGoesBack", |_, state: &State| state.cursor == state.cursor_max),
            Property::always("CursorPassesOnlyPersisted", |_, state: &State| state.cursor <= state.persisted),
            Property::always("NothingToldAfterProbe", |_, state: &State| !state.told_late),
            Property::always("OneSessionWhenQuiet", |_, state: &State| {
                let open = state.sockets.iter().filter(|socket| Self::is_open(socket)).count();
                !Self::is_quiet(state) || open == 1
            }),
            Property::always("TheNewestSocketStays", |_, state: &State| {
                !Self::is_quiet(state)
                    || Self::newest(state).is_some_and(|at| Self::is_open(&state.sockets[at]))
            }),
            Property::sometimes(REACHED, |machine: &Self, state: &State| {
                state.cursor == machine.slots
                    && small(state.sockets.len()) == small(machine.ids.len())
                    && Self::is_quiet(state)
            }),
        ]
    }
}

/// What settles which socket is the newer, and what a late one may still do.
pub fn variants(size: Size) -> Vec<Variant> {
    let slots = size.pick(2, 3);
    // Rising ids: the newer socket wins a tie. Falling ids: the older one does.
    let of = |ids: &[u8], rules| Sessions { slots, ids: ids.to_vec(), rules };
    let right = |name, machine| Variant::right("sessions", name, machine);
    let wrong = |name, breaks, machine| Variant::wrong("sessions", name, breaks, machine);
    let rising: &[u8] = &[1, 2, 3];
    vec![
        right("as designed, rising connection ids", of(rising, Rules::AsDesigned)),
        wrong(
            "as designed, falling ids: of two attaches at once the device may keep the one it gave up",
            &["TheNewestSocketStays"],
            of(&[2, 1], Rules::AsDesigned),
        ),
        wrong("the cursor's last write wins", &["CursorNeverGoesBack"], of(&[1, 2], Rules::CursorGoesBack)),
        wrong(
            "a superseded session stays after its probe",
            &["NothingToldAfterProbe", "OneSessionWhenQuiet"],
            of(&[1, 2], Rules::StaysAfterProbe),
        ),
        wrong(
            "sessions of one epoch do not compare ids",
            &["NothingToldAfterProbe", "OneSessionWhenQuiet"],
            of(&[1, 2], Rules::NoTieBreak),
        ),
        wrong(
            "the session register's last write wins",
            &["OneSessionWhenQuiet"],
            of(rising, Rules::RegisterGoesBack),
        ),
    ]
}
