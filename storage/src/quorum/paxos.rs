//! The coordinator's part: lightweight transactions, quorum reads and plain writes. **Invariant:** a transaction that answers
//! has its commit at two replicas, and nothing that was chosen before it is still unfinished; so a plain read behind it shows it.

use super::cell::{Cells, Key, Mutation, Stamp, View};
use super::replica::{Answer, Ballot, Message, Proposal};
use super::{QUORUM, QuorumRows, REPLICAS};
use crate::error::{Result, StoreError};
use crate::planted::Planted;
use chappe_protocol::time::UnixMillis;
use std::sync::Arc;

/// Ballots of one transaction.
const BALLOTS_MAX: usize = 12;

/// What a transaction finds at its coordinator.
pub(super) struct Found<'a> {
    pub(super) view: &'a View,
    /// The clock of the coordinator, from which its TTLs count.
    pub(super) now: UnixMillis,
}

/// A read has written nothing, whatever became of it.
pub(super) fn read_error(error: StoreError) -> StoreError {
    match error {
        StoreError::Unknown(why) => StoreError::Unavailable(why),
        other @ (StoreError::Unavailable(_)
        | StoreError::Quota
        | StoreError::Erased
        | StoreError::Revoked
        | StoreError::CursorAhead { .. }
        | StoreError::Invalid(_)) => other,
    }
}

fn ballot_of(proposal: Option<&Proposal>) -> Ballot {
    proposal.map_or(0, |(ballot, _)| *ballot)
}

/// The answers to a prepare.
#[derive(Default)]
struct Promises {
    /// Who has promised, and the ballot of its last commit.
    by: Vec<(usize, Ballot)>,
    accepted: Option<Proposal>,
    committed: Option<Proposal>,
    refused: Option<Ballot>,
}

impl QuorumRows {
    /// Decides on what is there at SERIAL, and writes what `decide` wants written, all or nothing.
    pub(super) async fn transact<T, F>(&self, key: &Key, decide: F) -> Result<T>
    where
        F: Fn(&Found<'_>) -> (Option<Mutation>, T) + Send + Sync,
        T: Send,
    {
        let node = self.begin().await?;
        self.transact_at(node, key, decide).await
    }

    pub(super) async fn transact_at<T, F>(&self, node: usize, key: &Key, decide: F) -> Result<T>
    where
        F: Fn(&Found<'_>) -> (Option<Mutation>, T) + Send + Sync,
        T: Send,
    {
        let mut above = 0;
        for _ in 0..BALLOTS_MAX {
            let ballot = self.ballot(node, above);
            let promises = self.prepare(key, ballot).await?;
            if let Some(refused) = promises.refused {
                above = refused;
                self.cluster().stats.contended += 1;
                self.pause().await;
                continue;
            }
            if self.finish(key, ballot, &promises).await? {
                continue;
            }
            let view = self.quorum_read(node, key).await?;
            let now = self.clock(node);
            let (mutation, answer) = decide(&Found { view: &view, now });
            let mutation = mutation.map(Arc::new);
            if !self.propose(key, ballot, mutation.clone()).await? {
                continue;
            }
            if let Some(mutation) = mutation {
                self.commit(key, ballot, mutation).await?;
            }
            return Ok(answer);
        }
        Err(StoreError::Unknown("too many others write this partition".into()))
    }

    /// A ballot of this coordinator, by its clock, above its last one and above this one.
    fn ballot(&self, node: usize, above: Ballot) -> Ballot {
        let clock = self.clock(node).0 * 1000;
        let mut cluster = self.cluster();
        let least = clock.max(above + 1).max(cluster.ballots[node] + 1);
        let replicas = REPLICAS as u64;
        let own = least + (replicas + node as u64 - least % replicas) % replicas;
        cluster.ballots[node] = own;
        own
    }

    async fn prepare(&self, key: &Key, ballot: Ballot) -> Result<Promises> {
        let replies = self.round(&self.live(), &Message::Prepare(key.clone(), ballot)).await;
        let mut promises = Promises::default();
        for (replica, answer) in replies.answers {
            match answer {
                Answer::Promised { accepted, committed } => {
                    if ballot_of(accepted.as_ref()) > ballot_of(promises.accepted.as_ref()) {
                        promises.accepted = accepted;
                    }
                    promises.by.push((replica, ballot_of(committed.as_ref())));
                    if ballot_of(committed.as_ref()) > ballot_of(promises.committed.as_ref()) {
                        promises.committed = committed;
                    }
                }
                Answer::Refused(promised) => promises.refused = promises.refused.max(Some(promised)),
                Answer::Done | Answer::Cells(_) => {}
            }
        }
        if promises.by.len() >= QUORUM {
            // One that refuses is outvoted.
            promises.refused = None;
        } else if promises.refused.is_none() {
            return Err(self.unanswered());
        }
        Ok(promises)
    }

    /// Finishes what others have left behind; `true`: there was something, so prepare again.
    async fn finish(&self, key: &Key, ballot: Ballot, promises: &Promises) -> Result<bool> {
        let last = ballot_of(promises.committed.as_ref());
        match &promises.accepted {
            Some((accepted, Some(mutation)))
                if *accepted > last && !self.has(Planted::UnfinishedForgotten) =>
            {
                self.cluster().stats.finished += 1;
                if self.propose(key, ballot, Some(mutation.clone())).await? {
                    self.commit(key, ballot, mutation.clone()).await?;
                }
                return Ok(true);
            }
            // An empty proposal has nothing to finish, and what is older than it was never chosen.
            Some(_) | None => {}
        }
        let Some((_, Some(mutation))) = &promises.committed else { return Ok(false) };
        let missed: Vec<_> = promises
            .by
            .iter()
            .filter(|(_, committed)| *committed < last)
            .map(|(replica, _)| *replica)
            .collect();
        if missed.is_empty() {
            return Ok(false);
        }
        self.cluster().stats.caught_up += missed.len() as u64;
        self.round(&missed, &Message::Commit(key.clone(), last, mutation.clone())).await;
        Ok(true)
    }

    /// `false`: certainly not accepted by anybody, so it may be tried again.
    async fn propose(&self, key: &Key, ballot: Ballot, mutation: Option<Arc<Mutation>>) -> Result<bool> {
        let empty = mutation.is_none();
        let replies = self.round(&self.live(), &Message::Propose(key.clone(), ballot, mutation)).await;
        let accepted = replies.answers.iter().filter(|(_, answer)| matches!(answer, Answer::Done)).count();
        if accepted >= QUORUM {
            return Ok(true);
        }
        if empty || (accepted == 0 && replies.silent == 0) {
            self.cluster().stats.contended += 1;
            return Ok(false);
        }
        // Somebody may finish it.
        self.cluster().stats.partial += 1;
        Err(self.unanswered())
    }

    async fn commit(&self, key: &Key, ballot: Ballot, mutation: Arc<Mutation>) -> Result<()> {
        let replies = self.round(&self.live(), &Message::Commit(key.clone(), ballot, mutation)).await;
        if replies.answers.len() >= QUORUM { Ok(()) } else { Err(self.unanswered()) }
    }

    /// Merges what two replicas have.
    pub(super) async fn quorum_read(&self, node: usize, key: &Key) -> Result<View> {
        let live = self.live();
        let (ask, spare) = live.split_at(QUORUM.min(live.len()));
        let message = Message::Read(key.clone());
        let mut copies = self.copies(ask, &message).await;
        if copies.len() < QUORUM {
            copies.extend(self.copies(spare, &message).await);
        }
        if copies.len() < QUORUM {
            return Err(self.unanswered());
        }
        let (_, first) = &copies[0];
        let mut merged = first.clone();
        if copies.iter().any(|(_, copy)| copy != first) {
            let all = Arc::make_mut(&mut merged);
            for (_, copy) in &copies {
                all.merge(copy);
            }
            self.cluster().stats.differed += 1;
            if self.faults.read_repair {
                self.repair(key, &copies, &merged).await?;
            }
        }
        Ok(View::new(merged, self.clock(node)))
    }

    /// Brings those level that lack something, before the read answers.
    async fn repair(&self, key: &Key, copies: &[(usize, Arc<Cells>)], merged: &Arc<Cells>) -> Result<()> {
        let behind = copies.iter().filter(|(_, copy)| copy != merged);
        let behind: Vec<_> = behind.map(|(replica, _)| *replica).collect();
        let replies = self.round(&behind, &Message::Repair(key.clone(), merged.clone())).await;
        if replies.answers.len() == behind.len() { Ok(()) } else { Err(self.unanswered()) }
    }

    /// What one replica has.
    pub(super) async fn one_copy(&self, key: &Key, replica: usize) -> Result<View> {
        self.cluster().stats.short_slices += 1;
        let node = self.begin().await?;
        let copies = self.copies(&[replica], &Message::Read(key.clone())).await;
        let (_, copy) = copies.into_iter().next().ok_or_else(|| self.unanswered())?;
        Ok(View::new(copy, self.clock(node)))
    }

    async fn copies(&self, of: &[usize], message: &Message) -> Vec<(usize, Arc<Cells>)> {
        let answers = self.round(of, message).await.answers;
        let cells = |(replica, answer)| match answer {
            Answer::Cells(cells) => Some((replica, cells)),
            Answer::Promised { .. } | Answer::Refused(_) | Answer::Done => None,
        };
        answers.into_iter().filter_map(cells).collect()
    }

    /// A plain read.
    pub(super) async fn read(&self, key: &Key) -> Result<View> {
        let node = self.begin().await?;
        self.quorum_read(node, key).await.map_err(read_error)
    }

    /// A plain write.
    pub(super) async fn write(&self, mutation: Mutation, at: Stamp) -> Result<()> {
        self.begin().await?;
        let replies = self.round(&self.live(), &Message::Write(Arc::new(mutation), at)).await;
        if replies.answers.len() >= QUORUM { Ok(()) } else { Err(self.unanswered()) }
    }

    fn unanswered(&self) -> StoreError {
        self.cluster().stats.unanswered += 1;
        StoreError::Unknown("too few replicas have answered".into())
    }
}
