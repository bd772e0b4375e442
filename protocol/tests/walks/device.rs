//! A device: the receiver, the app that holds and acks envelopes, what it has made durable, and its checks.

use crate::Counters;
use crate::wire::{Up, Wire};
use chappe_protocol::frame::{Cursor, Role, ServerFrame, TruncatedReason};
use chappe_protocol::id::{CursorTag, EnvelopeId, Seq};
use chappe_protocol::receiver::{Received, Receiver};
use chappe_protocol::testing::Rng;
use chappe_protocol::testing::model::{Model, ModelDevice};
use std::collections::BTreeSet;

/// A device with all its sockets, old ones too.
pub(crate) struct Device {
    pub(crate) model: ModelDevice,
    pub(crate) receiver: Receiver,
    /// As made durable.
    durable: (Option<Cursor>, Vec<EnvelopeId>),
    /// Given to the app and not acked.
    pub(crate) held: Vec<(Seq, EnvelopeId)>,
    /// Acked by the app.
    pub(crate) acked: BTreeSet<EnvelopeId>,
    /// The app was told that these are gone.
    gone: BTreeSet<Seq>,
    /// The app let go of something since the last connect.
    pub(crate) let_go: bool,
    last_taken: Seq,
    cursor: Option<Cursor>,
    /// The socket that the client reads and writes.
    pub(crate) current: Option<usize>,
    pub(crate) wires: Vec<Wire>,
}

impl Device {
    pub(crate) fn new(model: ModelDevice) -> Self {
        Self {
            model,
            receiver: Receiver::new(),
            durable: (None, Vec::new()),
            held: Vec::new(),
            acked: BTreeSet::new(),
            gone: BTreeSet::new(),
            let_go: false,
            last_taken: Seq::ZERO,
            cursor: None,
            current: None,
            wires: Vec::new(),
        }
    }

    /// The client opens a connection.
    pub(crate) fn welcome(&mut self, from: Seq, tag: CursorTag) {
        self.receiver.on_welcome(from, tag);
        self.last_taken = Seq::ZERO;
        self.let_go = false;
    }

    /// The app's process ends and starts again: what it held is lost to it, what was durable is not.
    pub(crate) fn restart(&mut self, foreign: Option<CursorTag>) {
        self.held.clear();
        self.let_go = true;
        let (cursor, seen) = self.durable.clone();
        let cursor = match foreign {
            Some(tag) => Some(Cursor { tag, seq: Seq(7) }),
            None => cursor,
        };
        self.receiver = Receiver::restore(cursor, seen);
        self.cursor = cursor;
    }

    /// Takes the next frame off the client's socket.
    pub(crate) fn take_frame(&mut self, model: &Model, counters: &mut Counters) -> bool {
        let Some(frame) = self.current.and_then(|at| self.wires[at].down.pop_front()) else { return false };
        match frame {
            ServerFrame::Deliver(deliver) => match self.receiver.on_deliver(&deliver) {
                Received::Take => {
                    let id = deliver.envelope_id;
                    // P2: never again after it was acked, nor while the app holds it.
                    assert!(
                        !self.acked.contains(&id),
                        "{} was given to the app again after its ack",
                        deliver.seq
                    );
                    assert!(
                        self.held.iter().all(|(_, held)| *held != id),
                        "{} was given to the app twice",
                        deliver.seq
                    );
                    assert!(deliver.seq > self.last_taken, "the app takes in order");
                    self.last_taken = deliver.seq;
                    self.held.push((deliver.seq, id));
                }
                Received::AlreadyHave => counters.already_had += 1,
                Received::Broken => panic!("the chain broke at {} after {}", deliver.seq, deliver.prev),
            },
            ServerFrame::Truncated { from, to, why } => {
                let received = self.receiver.on_truncated(to, why);
                if why != TruncatedReason::ForeignCursor {
                    counters.truncated_again += u64::from(received == Received::AlreadyHave);
                    self.gone.extend((from.0..=to.0).map(Seq));
                }
            }
            ServerFrame::BacklogEnd { upto } | ServerFrame::Pong { upto, .. } => self.receiver.on_upto(upto),
            other => panic!("unexpected {other:?}"),
        }
        self.check(model);
        true
    }

    /// The app acks one of the envelopes that it holds.
    pub(crate) fn app_ack(&mut self, at: usize, model: &Model) {
        let (seq, id) = self.held.remove(at);
        self.acked.insert(id);
        self.receiver.app_acked(seq, id);
        // The ids are durable with the app's ack; the cursor when it is next written.
        self.durable.1 = self.receiver.seen().collect();
        self.check(model);
    }

    /// The app lets go of one of them.
    pub(crate) fn app_drop(&mut self, at: usize) {
        let (seq, id) = self.held.remove(at);
        self.receiver.app_dropped(seq, id);
        self.let_go = true;
    }

    /// Writes the cursor and sends an ack, if one is owed.
    pub(crate) fn send_ack(&mut self, rng: &mut Rng) {
        let Some(at) = self.current else { return };
        if let Some(upto) = self.receiver.poll_ack() {
            self.durable.0 = self.receiver.cursor();
            self.wires[at].up.push_back(Up::Ack(upto));
            if rng.percent(10) {
                // A repeated one, and a late one.
                self.wires[at].up.push_back(Up::Ack(upto));
                self.wires[at].up.push_back(Up::Ack(Seq(upto.0 / 2)));
            }
        }
    }

    /// The socket is gone for the client, and perhaps the server knows it.
    pub(crate) fn cut(&mut self, server_knows: bool) {
        if let Some(at) = self.current.take() {
            let wire = &mut self.wires[at];
            wire.down.clear();
            if server_knows {
                self.wires.remove(at);
            }
        }
    }

    /// Forgets the sockets that the server has closed.
    pub(crate) fn reap(&mut self) {
        let mut at = 0;
        while at < self.wires.len() {
            if self.wires[at].closed.is_none() {
                at += 1;
                continue;
            }
            self.wires.remove(at);
            self.current = match self.current {
                Some(current) if current == at => None,
                Some(current) if current > at => Some(current - 1),
                other => other,
            };
        }
    }

    /// I3, I4 on the device's side: its cursor does not go back and passes nothing that the app neither acked nor was told gone.
    fn check(&mut self, model: &Model) {
        let Some(new) = self.receiver.cursor() else { return };
        let old = self.cursor.filter(|old| old.tag == new.tag).map_or(new.seq, |old| old.seq);
        assert!(new.seq >= old, "the device's cursor went back");
        self.assert_settled(model, old, new.seq, "the device's cursor");
        self.cursor = Some(new);
    }

    /// Every targeted slot in (after, upto] was acked by the app, or the app was told that it is gone.
    pub(crate) fn assert_settled(&self, model: &Model, after: Seq, upto: Seq, what: &str) {
        for seq in (after.0 + 1..=upto.0).map(Seq).filter(|seq| model.targets(&self.model, *seq)) {
            let id = model.slot(seq).unwrap().envelope_id;
            assert!(self.acked.contains(&id) || self.gone.contains(&seq), "{what} passed slot {seq}");
        }
    }

    /// Whether the app was told that the slot is gone.
    pub(crate) fn was_told_gone(&self, seq: Seq) -> bool {
        self.gone.contains(&seq)
    }

    /// The main sockets, the client's own or older.
    pub(crate) fn mains(&mut self) -> impl Iterator<Item = &mut Wire> {
        self.wires.iter_mut().filter(|wire| wire.role == Role::Main)
    }
}
