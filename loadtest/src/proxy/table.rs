//! Which client has which UDP flow. **Invariant:** at most so many flows, and none that was silent for the idle time; whether
//! a flow is idle is asked and acted on under one lock.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// What a client's packet finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reach<F> {
    /// Its flow, which is not idle now.
    Known(F),
    /// None yet, and there is room for one.
    New,
    /// None, and no room.
    Full,
}

#[derive(Debug)]
struct Entry<F> {
    flow: F,
    touched: Duration,
}

/// The flows by their clients' addresses.
#[derive(Debug)]
pub(super) struct Table<F> {
    entries: BTreeMap<SocketAddr, Entry<F>>,
    flows_max: usize,
    idle: Duration,
}

impl<F: Clone> Table<F> {
    /// An empty one.
    pub(super) fn new(flows_max: usize, idle: Duration) -> Self {
        Self { entries: BTreeMap::new(), flows_max, idle }
    }

    /// A client's packet comes.
    pub(super) fn reach(&mut self, client: SocketAddr, now: Duration) -> Reach<F> {
        let full = self.entries.len() >= self.flows_max;
        match self.entries.get_mut(&client) {
            Some(entry) => {
                entry.touched = now;
                Reach::Known(entry.flow.clone())
            }
            None if full => Reach::Full,
            None => Reach::New,
        }
    }

    /// After [`Reach::New`], under the same lock.
    pub(super) fn insert(&mut self, client: SocketAddr, flow: F, now: Duration) {
        self.entries.insert(client, Entry { flow, touched: now });
    }

    /// The target answered.
    pub(super) fn touch(&mut self, client: SocketAddr, now: Duration) {
        if let Some(entry) = self.entries.get_mut(&client) {
            entry.touched = now;
        }
    }

    /// Takes the flow out if it is idle; else says when to ask again. A flow that is not there is out already.
    pub(super) fn expire(&mut self, client: SocketAddr, now: Duration) -> Option<Duration> {
        let ends = self.entries.get(&client)?.touched + self.idle;
        if now < ends {
            return Some(ends);
        }
        self.entries.remove(&client);
        None
    }

    /// Takes the client's flow out if it is this one.
    pub(super) fn remove_if(&mut self, client: SocketAddr, is: impl FnOnce(&F) -> bool) {
        if self.entries.get(&client).is_some_and(|entry| is(&entry.flow)) {
            self.entries.remove(&client);
        }
    }

    /// Flows now.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn s(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn flows_are_bounded_and_room_comes_back() {
        let mut table = Table::new(2, s(300));
        for port in [1, 2] {
            assert_eq!(table.reach(client(port), s(0)), Reach::New);
            table.insert(client(port), port, s(0));
        }
        assert_eq!(table.reach(client(3), s(1)), Reach::Full);
        assert_eq!(table.reach(client(2), s(1)), Reach::Known(2));
        assert_eq!(table.len(), 2);
        table.remove_if(client(1), |flow| *flow == 7);
        assert_eq!(table.reach(client(3), s(1)), Reach::Full, "that was another one");
        table.remove_if(client(1), |flow| *flow == 1);
        assert_eq!(table.reach(client(3), s(1)), Reach::New);
    }

    #[test]
    fn only_silence_ends_a_flow() {
        let mut table = Table::new(2, s(300));
        table.insert(client(1), (), s(0));
        assert_eq!(table.expire(client(1), s(299)), Some(s(300)));
        table.reach(client(1), s(299));
        assert_eq!(table.expire(client(1), s(300)), Some(s(599)));
        table.touch(client(1), s(598));
        assert_eq!(table.expire(client(1), s(599)), Some(s(898)));
        assert_eq!(table.expire(client(1), s(898)), None);
        assert_eq!(table.reach(client(1), s(898)), Reach::New);
    }
}
