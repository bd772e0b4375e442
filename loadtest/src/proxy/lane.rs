//! One direction of one flow: a narrow link, then a long path. **Invariant:** no more waits here than the bounds allow,
//! and what TCP put in comes out complete and in order.

use super::faults::{Dice, Faults, TCP_LOSS_EXTRA, decide};
use super::stats::Counters;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How much of a TCP stream shares one decision: what an Ethernet frame carries.
pub(super) const SEGMENT_BYTES_MAX: usize = 1_448;

/// What may wait in one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Packets.
    pub packets_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
}

/// The bytes that all lanes hold together.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// For so many bytes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Whether another byte fits. Lanes that ask at once may go over it by a packet each.
    fn has_room(&self) -> bool {
        self.used.load(Ordering::Relaxed) < self.max
    }
}

#[derive(Debug)]
struct Waiting {
    bytes: Bytes,
    /// Counts what came in; a copy has none.
    number: Option<u64>,
}

/// What waits, by the time when it is due, then by the order in which it came. Times count from the proxy's start.
#[derive(Debug)]
pub(super) struct Lane {
    dice: Dice,
    bound: Bound,
    budget: Arc<Budget>,
    waiting: BTreeMap<(Duration, u64), Waiting>,
    bytes: usize,
    /// When the link has sent what it has.
    link_free: Duration,
    /// When the last segment is due (TCP).
    last_due: Duration,
    came: u64,
    queued: u64,
    newest_out: Option<u64>,
}

impl Lane {
    /// An empty one.
    pub(super) fn new(dice: Dice, bound: Bound, budget: Arc<Budget>) -> Self {
        Self {
            dice,
            bound,
            budget,
            waiting: BTreeMap::new(),
            bytes: 0,
            link_free: Duration::ZERO,
            last_due: Duration::ZERO,
            came: 0,
            queued: 0,
            newest_out: None,
        }
    }

    /// A datagram comes in.
    pub(super) fn packet(&mut self, now: Duration, bytes: &Bytes, faults: &Faults, counters: &mut Counters) {
        let fate = decide(faults, &self.dice.draw());
        let number = self.came;
        self.came += 1;
        if faults.black_hole {
            counters.swallowed += 1;
            return;
        }
        if fate.lost {
            counters.lost += 1;
            return;
        }
        if !self.fits(bytes.len()) {
            counters.dropped += 1;
            return;
        }
        let sent = self.transmit(now, bytes.len(), faults);
        counters.delayed += u64::from(sent + fate.delay > now);
        self.wait(sent + fate.delay, Some(number), bytes.clone());
        if let Some(delay) = fate.copy
            && self.fits(bytes.len())
        {
            let sent = self.transmit(now, bytes.len(), faults);
            counters.duplicated += 1;
            self.wait(sent + delay, None, bytes.clone());
        }
    }

    /// Bytes of a stream come in, at most [`SEGMENT_BYTES_MAX`]; none: the stream's end. Ask [`Lane::has_room`] before.
    pub(super) fn segment(&mut self, now: Duration, bytes: Bytes, faults: &Faults, counters: &mut Counters) {
        let fate = decide(&Faults { reorder: 0.0, duplicate: 0.0, ..*faults }, &self.dice.draw());
        let mut due = self.transmit(now, bytes.len(), faults) + fate.delay;
        if fate.lost && !bytes.is_empty() {
            counters.lost += 1;
            due += TCP_LOSS_EXTRA;
        }
        due = due.max(self.last_due);
        counters.delayed += u64::from(due > now && !bytes.is_empty());
        self.last_due = due;
        let number = self.came;
        self.came += 1;
        self.wait(due, Some(number), bytes);
    }

    /// Whether a stream may be read on. An empty lane always has room, so that it never waits for other lanes.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty() || self.fits(1)
    }

    /// When something comes out next.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// What is due comes out, one by one.
    pub(super) fn pop(&mut self, now: Duration, counters: &mut Counters) -> Option<Bytes> {
        if self.next_due()? > now {
            return None;
        }
        let (_, Waiting { bytes, number }) = self.waiting.pop_first()?;
        self.release(bytes.len());
        if number.is_some() {
            counters.reordered += u64::from(number < self.newest_out);
            self.newest_out = self.newest_out.max(number);
        }
        Some(bytes)
    }

    fn fits(&self, more: usize) -> bool {
        self.waiting.len() < self.bound.packets_max
            && self.bytes.saturating_add(more) <= self.bound.bytes_max
            && self.budget.has_room()
    }

    /// When the link has sent these bytes too.
    fn transmit(&mut self, now: Duration, bytes: usize, faults: &Faults) -> Duration {
        let busy = faults.transmission(bytes);
        if busy.is_zero() {
            return now;
        }
        self.link_free = self.link_free.max(now).saturating_add(busy);
        self.link_free
    }

    fn wait(&mut self, due: Duration, number: Option<u64>, bytes: Bytes) {
        self.bytes += bytes.len();
        self.budget.used.fetch_add(bytes.len(), Ordering::Relaxed);
        self.waiting.insert((due, self.queued), Waiting { bytes, number });
        self.queued += 1;
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults::Direction;
    use super::*;

    const ROOMY: Bound = Bound { packets_max: 1_000, bytes_max: 1 << 20 };

    fn lane(bound: Bound) -> Lane {
        Lane::new(Dice::new(1, 1, Direction::ToTarget), bound, Budget::new(usize::MAX))
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn numbered(number: u16) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    /// Everything that is due, as numbers.
    fn out(lane: &mut Lane, now: Duration, counters: &mut Counters) -> Vec<u16> {
        std::iter::from_fn(|| lane.pop(now, counters))
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
            .collect()
    }

    #[test]
    fn nothing_comes_out_before_it_is_due_and_all_of_it_in_order_then() {
        let (mut lane, mut counters) = (lane(ROOMY), Counters::default());
        let faults = Faults { latency: ms(50), ..Faults::default() };
        for number in 0..100 {
            lane.packet(ms(u64::from(number)), &numbered(number), &faults, &mut counters);
        }
        assert_eq!(lane.next_due(), Some(ms(50)));
        assert!(out(&mut lane, ms(49), &mut counters).is_empty());
        assert_eq!(out(&mut lane, ms(59), &mut counters), (0..10).collect::<Vec<_>>());
        assert_eq!(out(&mut lane, ms(149), &mut counters), (10..100).collect::<Vec<_>>());
        assert_eq!(counters, Counters { delayed: 100, ..Counters::default() });
    }

    #[test]
    fn packets_beyond_the_bounds_are_dropped_at_the_tail() {
        let faults = Faults { latency: ms(50), duplicate: 1.0, ..Faults::default() };
        for bound in [Bound { packets_max: 10, ..ROOMY }, Bound { bytes_max: 20, ..ROOMY }] {
            let (mut lane, mut counters) = (lane(bound), Counters::default());
            for number in 0..100 {
                lane.packet(ms(0), &numbered(number), &faults, &mut counters);
            }
            assert_eq!((counters.dropped, counters.duplicated), (95, 5));
            assert_eq!(out(&mut lane, ms(50), &mut counters), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]);
            lane.packet(ms(60), &numbered(7), &Faults::default(), &mut counters);
            assert_eq!(out(&mut lane, ms(60), &mut counters), [7], "there is room again");
        }
    }

    #[test]
    fn all_lanes_share_a_budget_and_give_back_what_they_held() {
        let budget = Budget::new(10);
        let of = |flow| Lane::new(Dice::new(1, flow, Direction::ToTarget), ROOMY, Arc::clone(&budget));
        let (mut one, mut two, mut counters) = (of(1), of(2), Counters::default());
        let faults = Faults { latency: ms(50), ..Faults::default() };
        for number in 0..5 {
            one.packet(ms(0), &numbered(number), &faults, &mut counters);
        }
        assert!(two.has_room(), "an empty lane always has room for a stream");
        two.packet(ms(0), &numbered(5), &faults, &mut counters);
        assert_eq!(counters.dropped, 1);
        assert!(!one.has_room());
        drop(one);
        two.packet(ms(0), &numbered(6), &faults, &mut counters);
        assert_eq!(out(&mut two, ms(50), &mut counters), [6]);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn those_held_back_are_overtaken_and_counted() {
        let (mut lane, mut counters) = (lane(ROOMY), Counters::default());
        let faults = Faults { reorder: 0.1, ..Faults::default() };
        for number in 0..500 {
            lane.packet(ms(u64::from(number)), &numbered(number), &faults, &mut counters);
        }
        let order = out(&mut lane, ms(1_000), &mut counters);
        assert_eq!(order.len(), 500);
        assert!(!order.is_sorted());
        let behind = (1..order.len()).filter(|at| order[..*at].iter().any(|other| *other > order[*at]));
        assert_eq!(counters.reordered, behind.count() as u64);
        assert!((25..=75).contains(&counters.reordered));
    }

    #[test]
    fn a_late_copy_is_no_reordering() {
        let (mut lane, mut counters) = (lane(ROOMY), Counters::default());
        let faults = Faults { duplicate: 1.0, ..Faults::default() };
        lane.packet(ms(0), &numbered(0), &Faults { latency: ms(5), jitter: ms(5), ..faults }, &mut counters);
        lane.packet(ms(0), &numbered(1), &Faults { latency: ms(20), ..faults }, &mut counters);
        assert_eq!(out(&mut lane, ms(20), &mut counters), [0, 0, 1, 1]);
        assert_eq!((counters.duplicated, counters.reordered), (2, 0));
    }

    #[test]
    fn the_link_sends_one_after_the_other() {
        let (mut lane, mut counters) = (lane(ROOMY), Counters::default());
        // Two bytes take 10 ms.
        let faults = Faults { latency: ms(50), bandwidth_bytes_per_second: Some(200), ..Faults::default() };
        for number in 0..3 {
            lane.packet(ms(0), &numbered(number), &faults, &mut counters);
        }
        assert!(out(&mut lane, ms(59), &mut counters).is_empty());
        assert_eq!(out(&mut lane, ms(79), &mut counters), [0, 1]);
        assert_eq!(out(&mut lane, ms(80), &mut counters), [2]);
        // A link that was idle saves nothing up.
        lane.packet(ms(1_000), &numbered(3), &faults, &mut counters);
        assert_eq!(lane.next_due(), Some(ms(1_060)));
    }

    #[test]
    fn a_black_hole_swallows_and_moves_no_later_decision() {
        let faults = Faults { loss: 0.5, ..Faults::default() };
        let hole = Faults { black_hole: true, ..faults };
        let (mut open, mut holed) = (lane(ROOMY), lane(ROOMY));
        let (mut counters, mut holed_counters) = (Counters::default(), Counters::default());
        for number in 0..100 {
            open.packet(ms(0), &numbered(number), &faults, &mut counters);
            let now = if number < 50 { &hole } else { &faults };
            holed.packet(ms(0), &numbered(number), now, &mut holed_counters);
        }
        assert_eq!(holed_counters.swallowed, 50);
        let (all, late) = (out(&mut open, ms(0), &mut counters), out(&mut holed, ms(0), &mut holed_counters));
        assert_eq!(late, all.into_iter().filter(|number| *number >= 50).collect::<Vec<_>>());
    }

    #[test]
    fn a_stream_stays_whole_and_in_order_whatever_the_faults() {
        let (mut lane, mut counters) = (lane(ROOMY), Counters::default());
        let faults = Faults {
            latency: ms(20),
            jitter: ms(20),
            loss: 0.1,
            duplicate: 1.0,
            reorder: 1.0,
            ..Faults::default()
        };
        for number in 0..500 {
            lane.segment(ms(u64::from(number)), numbered(number), &faults, &mut counters);
        }
        assert_eq!(out(&mut lane, ms(10_000), &mut counters), (0..500).collect::<Vec<_>>());
        assert!((25..=75).contains(&counters.lost), "{}", counters.lost);
        assert_eq!((counters.duplicated, counters.reordered, counters.dropped), (0, 0, 0));
    }

    #[test]
    fn a_loss_holds_up_the_stream_behind_it() {
        let (mut lane, mut counters) = (lane(ROOMY), Counters::default());
        let lossy = Faults { loss: 1.0, ..Faults::default() };
        lane.segment(ms(0), numbered(0), &lossy, &mut counters);
        lane.segment(ms(1), numbered(1), &Faults::default(), &mut counters);
        lane.segment(ms(2), Bytes::new(), &Faults::default(), &mut counters);
        assert_eq!(lane.next_due(), Some(TCP_LOSS_EXTRA));
        assert_eq!(lane.pop(TCP_LOSS_EXTRA, &mut counters), Some(numbered(0)));
        assert_eq!(lane.pop(TCP_LOSS_EXTRA, &mut counters), Some(numbered(1)));
        assert_eq!(lane.pop(TCP_LOSS_EXTRA, &mut counters), Some(Bytes::new()), "the end comes last");
        assert_eq!((counters.lost, counters.delayed), (1, 2));
    }
}
