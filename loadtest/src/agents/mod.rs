//! A run put on by several workers: processes of this machine, or agents on others. **Invariant:** each worker's users talk among
//! themselves, so no latency is ever a difference between two clocks.

mod crew;
mod pipe;
mod worker;

pub(crate) use crew::Crew;
pub(crate) use pipe::{SECRET_BYTES, Side, open};
pub(crate) use worker::{Keys, Worker};

use crate::measure::Phase;
use crate::pulse::Pulse;
use crate::run::Outcome;
use crate::scenario::{Scenario, Traffic};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Who puts the load on.
#[derive(Clone)]
pub enum Workers {
    /// This process.
    Here,
    /// So many processes of this machine, which take keys and roots from these files.
    Processes {
        /// At least 2.
        count: u32,
        /// Signs tokens.
        token_key: PathBuf,
        /// Roots that are trusted, PEM.
        ca: Option<PathBuf>,
    },
    /// `loadtest agent` at these addresses.
    Agents {
        /// `host:port` each.
        addresses: Vec<String>,
        /// What they and this run have in common.
        secret: Vec<u8>,
    },
}

impl Workers {
    /// How many.
    pub fn count(&self) -> u32 {
        match self {
            Self::Here => 1,
            Self::Processes { count, .. } => *count,
            Self::Agents { addresses, .. } => u32::try_from(addresses.len()).unwrap_or(u32::MAX),
        }
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workers({})", self.count())
    }
}

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    id: u64,
    order: Order,
}

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Connect these users.
    Prepare(Box<Share>),
    /// Put the load on; answered when it is over.
    Load,
    /// Something is broken now.
    Begins { what: String, phase: Phase },
    /// It works again: answered when everybody is back.
    Back { number: usize },
    /// Cut all connections.
    Storm,
    /// Wait for what is under way, at most so long, and tell what was found.
    Finish { max: Duration },
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Pulse(Pulse),
    Answer { id: u64, answer: Answer },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Loaded(Duration),
    Begun(usize),
    Finished(Box<Outcome>),
    Failed(String),
}

/// One worker's share of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Share {
    /// With its users and its rate.
    pub(crate) scenario: Scenario,
    pub(crate) servers: Vec<String>,
    pub(crate) prefix: String,
    /// The number of its first user.
    pub(crate) first: u32,
    /// Where its connections leave from.
    pub(crate) source: Option<IpAddr>,
    /// Of a process of this machine; an agent has its own.
    pub(crate) token_key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
}

/// The `number`th of `count` equal parts of a scenario, and the number of its first user.
fn part(whole: &Scenario, number: u32, count: u32) -> (Scenario, u32) {
    let cut = |all: u32| {
        let at = |n: u32| u32::try_from(u64::from(all) * u64::from(n) / u64::from(count)).unwrap_or(all);
        (at(number), at(number + 1) - at(number))
    };
    let (first, users) = cut(whole.users);
    let some = |all: u32| if all == 0 { 0 } else { cut(all).1.clamp(1, users) };
    let traffic = Traffic {
        senders: some(whole.traffic.senders),
        receivers: some(whole.traffic.receivers),
        ..whole.traffic.clone()
    };
    let scenario = Scenario {
        users,
        rate: cut(whole.rate).1.max(1),
        rate_end: whole.rate_end.map(|end| cut(end).1.max(1)),
        seed: whole.seed.wrapping_add(u64::from(number)),
        traffic,
        ..whole.clone()
    };
    (scenario, first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_a_whole() {
        let traffic = Traffic { senders: 7, receivers: 1, ..Traffic::default() };
        let whole = Scenario { users: 100, rate: 1000, rate_end: Some(31), traffic, ..Scenario::default() };
        let parts: Vec<(Scenario, u32)> = (0..3).map(|number| part(&whole, number, 3)).collect();
        assert_eq!(
            parts.iter().map(|(part, first)| (*first, part.users)).collect::<Vec<_>>(),
            [(0, 33), (33, 33), (66, 34)]
        );
        let sum = |of: fn(&Scenario) -> u32| parts.iter().map(|(part, _)| of(part)).sum::<u32>();
        assert_eq!((sum(|part| part.rate), sum(|part| part.rate_end.unwrap())), (1000, 31));
        assert_eq!((sum(|part| part.traffic.senders), sum(|part| part.traffic.receivers)), (7, 3));
        assert!(parts.iter().all(|(part, _)| part.check().is_ok()));
        assert_ne!(parts[0].0.seed, parts[1].0.seed);
        assert_eq!(part(&whole, 0, 1), (whole.clone(), 0));
    }
}
