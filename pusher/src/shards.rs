//! Who sweeps which shard. **Invariant:** with every member in sight each shard has one owner; with none in sight each pusher owns
//! all of them, which costs reads and is never wrong.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): a shard belongs to the member with the greatest hash of both, so that a
//! member that comes or goes moves none but its own.

use async_trait::async_trait;
use chappe_protocol::time::{Millis, Time};
use sha2::{Digest, Sha256};

/// A pusher that was not heard of for so long is gone.
pub const LEASE: Millis = Millis::from_secs(6);
/// Between two beats.
pub const BEAT: Millis = Millis::from_secs(2);

/// The pushers that live.
#[async_trait]
pub trait Members: Send + Sync + 'static {
    /// Takes or renews this pusher's lease for [`LEASE`]. All that live, this one among them; `None`: nobody answers.
    async fn beat(&self, me: u64) -> Option<Vec<u64>>;

    /// Gives the lease up.
    async fn leave(&self, me: u64);
}

/// The only pusher there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

#[async_trait]
impl Members for Alone {
    async fn beat(&self, me: u64) -> Option<Vec<u64>> {
        Some(vec![me])
    }

    async fn leave(&self, _: u64) {}
}

/// What one pusher knows of the others.
#[derive(Debug, Clone)]
pub(crate) struct View {
    me: u64,
    others: Vec<u64>,
    heard_at: Time,
}

impl View {
    pub(crate) fn new(me: u64, now: Time) -> Self {
        Self { me, others: Vec::new(), heard_at: now }
    }

    /// After a beat. Who does not hear of others for the length of a lease does their work too.
    pub(crate) fn heard(&mut self, members: Option<Vec<u64>>, now: Time) {
        match members {
            Some(members) => {
                self.others = members.into_iter().filter(|member| *member != self.me).collect();
                self.heard_at = now;
            }
            None if now - self.heard_at >= LEASE => self.others.clear(),
            None => {}
        }
    }

    /// This one's shards, ascending.
    pub(crate) fn owned(&self, shards: u16) -> Vec<u16> {
        let mine = |shard: &u16| {
            let weight = weigh(self.me, *shard);
            self.others.iter().all(|other| weight > weigh(*other, *shard))
        };
        (0..shards).filter(mine).collect()
    }
}

fn weigh(member: u64, shard: u16) -> [u8; 32] {
    Sha256::new().chain_update(member.to_be_bytes()).chain_update(shard.to_be_bytes()).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(me: u64, members: &[u64]) -> Vec<u16> {
        let mut view = View::new(me, Time(0));
        view.heard(Some(members.to_vec()), Time(0));
        view.owned(256)
    }

    #[test]
    fn every_shard_has_one_owner_and_one_who_leaves_moves_none_but_its_own() {
        let members = [3, 99, 4242];
        let all: Vec<Vec<u16>> = members.iter().map(|me| owned(*me, &members)).collect();
        let mut shards: Vec<u16> = all.concat();
        shards.sort_unstable();
        assert_eq!(shards, (0..256).collect::<Vec<_>>());
        assert!(all.iter().all(|shards| shards.len() > 50), "{all:?}");
        let without = owned(3, &[3, 99]);
        assert!(all[0].iter().all(|shard| without.contains(shard)));
        assert_eq!(without.len() + owned(99, &[3, 99]).len(), 256);
    }

    #[test]
    fn who_hears_nobody_for_a_lease_sweeps_everything() {
        let mut view = View::new(3, Time(0));
        view.heard(Some(vec![3, 99]), Time(1000));
        let few = view.owned(256).len();
        view.heard(None, Time(6999));
        assert_eq!(view.owned(256).len(), few);
        view.heard(None, Time(7000));
        assert_eq!(view.owned(256).len(), 256);
        view.heard(Some(vec![3, 99]), Time(8000));
        assert_eq!(view.owned(256).len(), few);
    }
}
