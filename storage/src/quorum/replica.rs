//! One replica: its partitions, its part in Paxos, its commit log.
//! **Invariant:** with a synced log, whatever it has answered stands for ever, promises included.

use super::cell::{Cells, Key, Mutation, Stamp};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The number of a proposal: unique, since coordinators take them from different residues.
pub(super) type Ballot = Stamp;

/// What was proposed; `None`: nothing (a SERIAL read, or a condition that did not hold).
pub(super) type Proposal = (Ballot, Option<Arc<Mutation>>);

/// Paxos of one partition (Lamport 2001; Cassandra keeps it in `system.paxos`).
#[derive(Debug, Clone, Default)]
struct Paxos {
    promised: Ballot,
    accepted: Option<Proposal>,
    committed: Option<Proposal>,
}

/// To a replica.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Prepare(Key, Ballot),
    Propose(Key, Ballot, Option<Arc<Mutation>>),
    Commit(Key, Ballot, Arc<Mutation>),
    /// A plain write, and its timestamp where the mutation has none.
    Write(Arc<Mutation>, Stamp),
    Read(Key),
    /// What a reading coordinator found that this replica has not.
    Repair(Key, Arc<Cells>),
}

/// From a replica.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Promised {
        accepted: Option<Proposal>,
        committed: Option<Proposal>,
    },
    /// It has promised this ballot.
    Refused(Ballot),
    Done,
    Cells(Arc<Cells>),
}

/// When the commit log is synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommitLog {
    /// Before each answer: Cassandra's `commitlog_sync: batch`.
    #[default]
    Batch,
    /// Now and then; but lightweight transactions before each answer: `ScyllaDB`'s default.
    PeriodicPlain,
    /// Now and then: Cassandra's default.
    Periodic,
}

#[derive(Debug, Clone, Default)]
struct State {
    partitions: BTreeMap<Key, Arc<Cells>>,
    paxos: BTreeMap<Key, Paxos>,
}

/// The state of one replica, and what of it is on its disk.
#[derive(Debug, Default)]
pub(super) struct Replica {
    state: State,
    /// What a power loss leaves; `None`: everything.
    synced: Option<State>,
}

impl Replica {
    pub(super) fn new(log: CommitLog) -> Self {
        let synced = match log {
            CommitLog::Batch => None,
            CommitLog::PeriodicPlain | CommitLog::Periodic => Some(State::default()),
        };
        Self { state: State::default(), synced }
    }

    pub(super) fn handle(&mut self, message: &Message, log: CommitLog) -> Answer {
        let transaction = match message {
            Message::Prepare(..) | Message::Propose(..) | Message::Commit(..) => true,
            Message::Write(..) | Message::Read(_) | Message::Repair(..) => false,
        };
        if let Some(synced) = self.synced.as_mut().filter(|_| transaction && log == CommitLog::PeriodicPlain)
        {
            synced.handle(message);
        }
        self.state.handle(message)
    }

    /// The log reaches the disk.
    pub(super) fn sync(&mut self) {
        if let Some(synced) = &mut self.synced {
            synced.clone_from(&self.state);
        }
    }

    /// The power goes, and comes back.
    pub(super) fn power_loss(&mut self) {
        if let Some(synced) = &self.synced {
            self.state.clone_from(synced);
        }
    }
}

impl State {
    fn handle(&mut self, message: &Message) -> Answer {
        match message {
            Message::Prepare(key, ballot) => {
                let paxos = self.paxos.entry(key.clone()).or_default();
                if *ballot <= paxos.promised {
                    return Answer::Refused(paxos.promised);
                }
                paxos.promised = *ballot;
                Answer::Promised { accepted: paxos.accepted.clone(), committed: paxos.committed.clone() }
            }
            Message::Propose(key, ballot, mutation) => {
                let paxos = self.paxos.entry(key.clone()).or_default();
                if *ballot < paxos.promised {
                    return Answer::Refused(paxos.promised);
                }
                paxos.promised = *ballot;
                paxos.accepted = Some((*ballot, mutation.clone()));
                Answer::Done
            }
            Message::Commit(key, ballot, mutation) => {
                self.cells(key).apply(mutation, *ballot);
                let paxos = self.paxos.entry(key.clone()).or_default();
                if paxos.committed.as_ref().is_none_or(|(last, _)| ballot > last) {
                    paxos.committed = Some((*ballot, Some(mutation.clone())));
                }
                if paxos.accepted.as_ref().is_some_and(|(accepted, _)| accepted <= ballot) {
                    paxos.accepted = None;
                }
                Answer::Done
            }
            Message::Write(mutation, at) => {
                self.cells(&mutation.key).apply(mutation, *at);
                Answer::Done
            }
            Message::Read(key) => Answer::Cells(self.partitions.get(key).cloned().unwrap_or_default()),
            Message::Repair(key, cells) => {
                self.cells(key).merge(cells);
                Answer::Done
            }
        }
    }

    fn cells(&mut self, key: &Key) -> &mut Cells {
        Arc::make_mut(self.partitions.entry(key.clone()).or_default())
    }
}
