//! Runs a model to the end and says which of its properties break.
//! **Invariant:** a verdict covers every reachable state of the given size; nothing is sampled.

use stateright::{Checker, Model};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;

/// The property by which a model shows that it gets somewhere: without it, "holds" may mean "nothing happens".
pub const REACHED: &str = "reached";

/// What the checker asks of states and actions.
pub trait Explored: Clone + PartialEq + Debug + Send + 'static {}

impl<T: Clone + PartialEq + Debug + Send + 'static> Explored for T {}

/// How large a model is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// For `cargo test`: seconds.
    Short,
    /// For `cargo run --release -p chappe-storage --example model -- --long`: minutes.
    #[allow(dead_code, reason = "only the example makes it")]
    Long,
}

impl Size {
    /// One of two bounds.
    pub fn pick(self, short: u8, long: u8) -> u8 {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

/// What the whole state space says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Distinct states.
    pub states: usize,
    /// The end that the model is about can be reached.
    pub reached: bool,
    /// The properties that break, each with a way to break it.
    pub broken: Vec<(&'static str, String)>,
}

/// A model with one rule set, and what it must show.
pub struct Variant {
    /// The model.
    pub model: &'static str,
    /// What is special about this variant.
    pub name: &'static str,
    /// The properties that must break; none: the variant is right.
    pub breaks: &'static [&'static str],
    check: Box<dyn Fn() -> Finding>,
}

impl Variant {
    /// A variant that must hold in every state.
    pub fn right<M>(model: &'static str, name: &'static str, machine: M) -> Self
    where
        M: Model + Clone + Send + Sync + 'static,
        M::State: Explored + Hash + Sync,
        M::Action: Explored,
    {
        Self::wrong(model, name, &[], machine)
    }

    /// A variant in which exactly these properties must break.
    pub fn wrong<M>(
        model: &'static str,
        name: &'static str,
        breaks: &'static [&'static str],
        machine: M,
    ) -> Self
    where
        M: Model + Clone + Send + Sync + 'static,
        M::State: Explored + Hash + Sync,
        M::Action: Explored,
    {
        Self { model, name, breaks, check: Box::new(move || explore(machine.clone())) }
    }

    /// Explores every state.
    pub fn check(&self) -> Finding {
        (self.check)()
    }

    /// Explores every state; the finding, and whether it is the expected one.
    pub fn judge(&self) -> (Finding, bool) {
        let finding = self.check();
        let broken: BTreeSet<&str> = finding.broken.iter().map(|(name, _)| *name).collect();
        let expected: BTreeSet<&str> = self.breaks.iter().copied().collect();
        let good = broken == expected && (finding.reached || !self.breaks.is_empty());
        (finding, good)
    }
}

fn explore<M>(machine: M) -> Finding
where
    M: Model + Send + Sync + 'static,
    M::State: Explored + Hash + Sync,
    M::Action: Explored,
{
    let checker = machine.checker().threads(1).spawn_bfs().join();
    let mut discoveries: Vec<_> = checker.discoveries().into_iter().collect();
    discoveries.sort_by_key(|(name, _)| *name);
    let mut finding = Finding { states: checker.unique_state_count(), reached: false, broken: Vec::new() };
    for (name, path) in discoveries {
        if name == REACHED {
            finding.reached = true;
        } else {
            finding.broken.push((name, format!("{:?}", path.into_actions())));
        }
    }
    finding
}

/// A length as the models keep it.
pub fn small(length: usize) -> u8 {
    u8::try_from(length).expect("models are small")
}

/// Nothing stands twice.
pub fn distinct(log: &[u8]) -> bool {
    let unique: BTreeSet<u8> = log.iter().copied().collect();
    unique.len() == log.len()
}
