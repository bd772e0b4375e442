//! What a bad path does to packets, as a value. **Invariant:** a decision follows from the faults and the draws alone; a
//! packet costs the generator the same draws whatever the faults are, so one seed loses the same packets with any latency.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// How much longer a packet of [`Faults::reorder`] takes, so that those behind it overtake it.
pub const REORDER_EXTRA: Duration = Duration::from_millis(30);
/// How much longer the bytes behind a loss take on TCP: the least time-out of a retransmission on Linux.
pub const TCP_LOSS_EXTRA: Duration = Duration::from_millis(200);
/// The longest latency and the largest jitter that can be asked for.
pub const DELAY_MAX: Duration = Duration::from_mins(1);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the clients to the target.
    ToTarget,
    /// From the target to the clients.
    ToClient,
}

/// What happens to the packets of one direction. The default is a perfect path.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// Added to each packet; at most [`DELAY_MAX`].
    pub latency: Duration,
    /// The latency is even within ± this, never below zero; at most [`DELAY_MAX`]. UDP packets may overtake each other by it.
    pub jitter: Duration,
    /// Share of packets that vanish, 0 to 1. On TCP they come [`TCP_LOSS_EXTRA`] later, and so does all behind them.
    pub loss: f64,
    /// Share of packets that come twice, 0 to 1. UDP only.
    pub duplicate: f64,
    /// Share of packets that come [`REORDER_EXTRA`] later than they would, 0 to 1. UDP only.
    pub reorder: f64,
    /// Of each flow or connection; at least 1. What does not fit waits, within the bounds of the queue.
    pub bandwidth_bytes_per_second: Option<u64>,
    /// Nothing passes: UDP packets vanish, TCP bytes stand still.
    pub black_hole: bool,
}

impl Faults {
    /// Refuses what makes no sense; the message names the field.
    pub fn check(&self) -> Result<(), String> {
        for (name, share) in [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name}: {share} is no share; it lies between 0 and 1"));
            }
        }
        for (name, delay) in [("latency", self.latency), ("jitter", self.jitter)] {
            if delay > DELAY_MAX {
                return Err(format!("{name}: at most {} s", DELAY_MAX.as_secs()));
            }
        }
        if self.bandwidth_bytes_per_second == Some(0) {
            return Err("bandwidth: at least 1 byte per second; to let nothing pass, use a black hole".into());
        }
        Ok(())
    }

    /// How long the path's narrowest link is busy with so many bytes.
    pub(super) fn transmission(&self, bytes: usize) -> Duration {
        let Some(rate) = self.bandwidth_bytes_per_second else { return Duration::ZERO };
        let ns = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

/// What happens to one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// It vanishes.
    pub lost: bool,
    /// How late it is.
    pub delay: Duration,
    /// How late its copy is, if it comes twice.
    pub copy: Option<Duration>,
}

/// The random numbers of one packet, each even in 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draws {
    loss: f64,
    jitter: f64,
    reorder: f64,
    duplicate: f64,
    copy_jitter: f64,
}

/// The decision; pure.
pub fn decide(faults: &Faults, draws: &Draws) -> Fate {
    let jittered = |draw: f64| {
        let earliest = faults.latency.saturating_sub(faults.jitter);
        let latest = faults.latency + faults.jitter;
        earliest + latest.saturating_sub(earliest).mul_f64(draw)
    };
    let extra = if draws.reorder < faults.reorder { REORDER_EXTRA } else { Duration::ZERO };
    Fate {
        lost: draws.loss < faults.loss,
        delay: jittered(draws.jitter) + extra,
        copy: (draws.duplicate < faults.duplicate).then(|| jittered(draws.copy_jitter)),
    }
}

/// The randomness of one direction of one flow.
#[derive(Debug)]
pub struct Dice {
    random: StdRng,
}

impl Dice {
    /// Follows from the proxy's seed, the flow's number (they count up as they come) and the direction.
    pub fn new(seed: u64, flow: u64, direction: Direction) -> Self {
        let way = match direction {
            Direction::ToTarget => 0_u8,
            Direction::ToClient => 1,
        };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_be_bytes());
        key[8..16].copy_from_slice(&flow.to_be_bytes());
        key[16] = way;
        Self { random: StdRng::from_seed(key) }
    }

    /// The next packet's numbers.
    pub fn draw(&mut self) -> Draws {
        let mut next = || self.random.random::<f64>();
        Draws { loss: next(), jitter: next(), reorder: next(), duplicate: next(), copy_jitter: next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 10_000;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn fates(faults: &Faults, seed: u64, flow: u64, direction: Direction) -> Vec<Fate> {
        let mut dice = Dice::new(seed, flow, direction);
        (0..DRAWS).map(|_| decide(faults, &dice.draw())).collect()
    }

    fn rough() -> Faults {
        Faults {
            latency: ms(50),
            jitter: ms(20),
            loss: 0.02,
            duplicate: 0.01,
            reorder: 0.05,
            ..Faults::default()
        }
    }

    #[test]
    fn shares_and_delays_are_those_asked_for() {
        let fates = fates(&rough(), 1, 1, Direction::ToTarget);
        let count = |what: &dyn Fn(&Fate) -> bool| fates.iter().filter(|fate| what(fate)).count();
        assert!((150..250).contains(&count(&|fate| fate.lost)));
        assert!((60..140).contains(&count(&|fate| fate.copy.is_some())));
        assert!(fates.iter().all(|fate| (ms(30)..=ms(100)).contains(&fate.delay)));
        // Those of `reorder` lie between 60 and 100 ms: three quarters of them beyond latency + jitter.
        assert!((300..450).contains(&count(&|fate| fate.delay > ms(70))));
        let mean = fates.iter().map(|fate| fate.delay).sum::<Duration>() / 10_000;
        assert!((ms(50)..ms(53)).contains(&mean), "{mean:?}");
        assert!(count(&|fate| fate.delay < ms(35)) > 800 && count(&|fate| fate.delay > ms(65)) > 800);
        assert!(fates.iter().filter_map(|fate| fate.copy).all(|delay| (ms(30)..=ms(70)).contains(&delay)));
    }

    #[test]
    fn a_perfect_path_does_nothing_and_a_full_share_always_happens() {
        let nothing = Fate { lost: false, delay: Duration::ZERO, copy: None };
        assert!(fates(&Faults::default(), 7, 0, Direction::ToClient).iter().all(|fate| *fate == nothing));
        let all = Faults { loss: 1.0, duplicate: 1.0, reorder: 1.0, ..Faults::default() };
        let all_of_it = Fate { lost: true, delay: REORDER_EXTRA, copy: Some(Duration::ZERO) };
        assert!(fates(&all, 7, 0, Direction::ToClient).iter().all(|fate| *fate == all_of_it));
    }

    #[test]
    fn jitter_beyond_the_latency_stops_at_zero() {
        let faults = Faults { latency: ms(5), jitter: ms(20), ..Faults::default() };
        let fates = fates(&faults, 3, 0, Direction::ToTarget);
        assert!(fates.iter().all(|fate| fate.delay <= ms(25)));
        assert!(fates.iter().any(|fate| fate.delay < ms(1)));
    }

    #[test]
    fn one_seed_one_sequence_for_each_flow_and_direction() {
        let of = |seed, flow, direction| fates(&rough(), seed, flow, direction);
        let first = of(1, 1, Direction::ToTarget);
        assert_eq!(first, of(1, 1, Direction::ToTarget));
        assert_ne!(first, of(2, 1, Direction::ToTarget));
        assert_ne!(first, of(1, 2, Direction::ToTarget));
        assert_ne!(first, of(1, 1, Direction::ToClient));
    }

    #[test]
    fn other_faults_do_not_move_the_losses() {
        let lost = |faults: &Faults| -> Vec<bool> {
            fates(faults, 1, 1, Direction::ToTarget).iter().map(|fate| fate.lost).collect()
        };
        assert_eq!(lost(&rough()), lost(&Faults { loss: 0.02, ..Faults::default() }));
    }

    #[test]
    fn the_link_is_busy_as_long_as_its_rate_says() {
        let faults = Faults { bandwidth_bytes_per_second: Some(1_000_000), ..Faults::default() };
        assert_eq!(faults.transmission(1_000), ms(1));
        assert_eq!(Faults::default().transmission(1 << 20), Duration::ZERO);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        rough().check().unwrap();
        let named = |faults: Faults| faults.check().unwrap_err().split(':').next().unwrap().to_owned();
        assert_eq!(named(Faults { loss: 1.1, ..Faults::default() }), "loss");
        assert_eq!(named(Faults { loss: f64::NAN, ..Faults::default() }), "loss");
        assert_eq!(named(Faults { duplicate: -0.1, ..Faults::default() }), "duplicate");
        assert_eq!(named(Faults { reorder: 2.0, ..Faults::default() }), "reorder");
        assert_eq!(named(Faults { latency: DELAY_MAX + ms(1), ..Faults::default() }), "latency");
        assert_eq!(named(Faults { jitter: DELAY_MAX + ms(1), ..Faults::default() }), "jitter");
        assert_eq!(named(Faults { bandwidth_bytes_per_second: Some(0), ..Faults::default() }), "bandwidth");
    }
}
