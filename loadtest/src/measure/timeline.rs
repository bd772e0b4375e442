//! A run over time, in buckets. **Invariant:** at most 300 of them, however long the run is: when there would be
//! more, two become one.

use super::Values;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Buckets of a run.
const BUCKETS_MAX: usize = 300;
/// The shortest bucket: shorter ones have too little in them to say something of the 99th percentile.
const SHORTEST_US: u64 = 1_000_000;

/// What happened in a part of the run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bucket {
    /// Submits that left in it.
    pub sent: u64,
    /// Submits that were decided in it.
    pub accepted: u64,
    /// Envelopes that arrived in it.
    pub delivered: u64,
    /// What went wrong in it.
    pub errors: u64,
    /// Of the submits that were due in it.
    pub accept: Values,
    /// Of the envelopes that were due in it.
    pub deliver: Values,
    /// Sessions, as the harness has them; the most.
    pub sessions: u64,
    /// Memory of the server's processes, bytes; the most.
    pub server_rss: u64,
    /// CPU time of the server's processes, from their start, seconds.
    pub server_cpu: f64,
}

impl Default for Bucket {
    fn default() -> Self {
        let (accept, deliver) = (Values::coarse(), Values::coarse());
        Self {
            sent: 0,
            accepted: 0,
            delivered: 0,
            errors: 0,
            accept,
            deliver,
            sessions: 0,
            server_rss: 0,
            server_cpu: 0.0,
        }
    }
}

impl Bucket {
    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.errors += other.errors;
        self.accept.add(&other.accept);
        self.deliver.add(&other.deliver);
        self.server_rss = self.server_rss.max(other.server_rss);
        self.server_cpu = self.server_cpu.max(other.server_cpu);
    }
}

/// Buckets of one length each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timeline {
    every_us: u64,
    buckets: Vec<Bucket>,
}

impl Timeline {
    /// For a run of about this length; a longer one has coarser buckets in the end.
    pub fn new(duration: Duration) -> Self {
        let wanted = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX) / (BUCKETS_MAX as u64 / 2);
        Self { every_us: wanted.div_ceil(SHORTEST_US).max(1) * SHORTEST_US, buckets: Vec::new() }
    }

    /// How long a bucket is, seconds.
    pub fn every_seconds(&self) -> u64 {
        self.every_us / 1_000_000
    }

    /// All of them.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The one of this time, µs from the start.
    pub fn at(&mut self, at_us: u64) -> &mut Bucket {
        while at_us / self.every_us >= BUCKETS_MAX as u64 {
            self.coarsen();
        }
        let index = usize::try_from(at_us / self.every_us).unwrap_or(BUCKETS_MAX - 1);
        if self.buckets.len() <= index {
            self.buckets.resize_with(index + 1, Bucket::default);
        }
        &mut self.buckets[index]
    }

    fn coarsen(&mut self) {
        self.every_us = self.every_us.saturating_mul(2);
        let merged = self.buckets.chunks(2).map(|pair| {
            let mut first = pair[0].clone();
            if let Some(second) = pair.get(1) {
                first.add(second);
                first.sessions = first.sessions.max(second.sessions);
            }
            first
        });
        self.buckets = merged.collect();
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        while other.every_us < self.every_us {
            other.coarsen();
        }
        while self.every_us < other.every_us {
            self.coarsen();
        }
        for (index, bucket) in other.buckets.iter().enumerate() {
            let own = self.at(index as u64 * self.every_us);
            own.add(bucket);
            own.sessions += bucket.sessions;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_a_second_each_and_grows_coarser_instead_of_longer() {
        let mut timeline = Timeline::new(Duration::from_secs(30));
        assert_eq!(timeline.every_seconds(), 1);
        for second in 0..3_000 {
            timeline.at(second * 1_000_000).sent += 1;
        }
        assert!(timeline.buckets().len() <= BUCKETS_MAX);
        assert_eq!(timeline.buckets().iter().map(|bucket| bucket.sent).sum::<u64>(), 3_000);
        assert_eq!(timeline.every_seconds(), 16);
        assert_eq!(Timeline::new(Duration::from_hours(48)).every_seconds(), 1152);
        timeline.at(u64::MAX).sent += 1;
        assert!(timeline.buckets().len() <= BUCKETS_MAX);
        assert_eq!(timeline.buckets().iter().map(|bucket| bucket.sent).sum::<u64>(), 3_001);
    }

    #[test]
    fn two_workers_are_added_up_bucket_by_bucket() {
        let (mut one, mut two) =
            (Timeline::new(Duration::from_secs(10)), Timeline::new(Duration::from_mins(10)));
        assert_eq!((one.every_seconds(), two.every_seconds()), (1, 4));
        for second in 0..8 {
            one.at(second * 1_000_000).sessions = 5;
            one.at(second * 1_000_000).sent = 1;
        }
        two.at(5_000_000).sessions = 7;
        one.add(&two);
        assert_eq!(one.every_seconds(), 4);
        let told: Vec<_> = one.buckets().iter().map(|bucket| (bucket.sent, bucket.sessions)).collect();
        assert_eq!(told, [(4, 5), (4, 12)]);
    }
}
