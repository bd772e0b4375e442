//! A distribution of times. **Invariant:** three digits, from 1 µs to an hour; longer counts as an hour.

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const US_MAX: u64 = 3_600_000_000;
/// Shares that a curve has points at.
const SHARES: [f64; 12] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];

/// Measured values; they can be added up and sent from one machine to another: as pairs of value and count.
#[derive(Debug, Clone)]
pub struct Values(Histogram<u64>);

impl Default for Values {
    fn default() -> Self {
        Self::with_digits(3)
    }
}

impl Values {
    /// Two digits are enough for a point in a chart, and take an eighth of the memory (some 10 KiB).
    pub fn coarse() -> Self {
        Self::with_digits(2)
    }

    /// It grows with the largest value, to some 200 KiB at three digits.
    fn with_digits(digits: u8) -> Self {
        let made = Histogram::new(digits);
        #[expect(clippy::expect_used, reason = "0 to 5 digits are valid")]
        Self(made.expect("valid digits"))
    }

    /// Notes one, µs.
    pub fn record(&mut self, us: u64) {
        // It grows as it needs to, so nothing is refused.
        let _ = self.0.record(us.clamp(1, US_MAX));
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        // It grows as it needs to, so nothing can be refused.
        let _ = self.0.add(&other.0);
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In a few figures.
    pub fn latency(&self) -> Latency {
        if self.0.is_empty() {
            return Latency::default();
        }
        Latency {
            count: self.0.len(),
            p50_us: self.0.value_at_quantile(0.50),
            p90_us: self.0.value_at_quantile(0.90),
            p99_us: self.0.value_at_quantile(0.99),
            p999_us: self.0.value_at_quantile(0.999),
            max_us: self.0.max(),
        }
    }

    /// Share of 1 and µs.
    pub fn curve(&self) -> Vec<(f64, u64)> {
        SHARES.iter().map(|share| (*share, self.0.value_at_quantile(*share))).collect()
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value())))
    }
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(u64, u64)>::deserialize(from)?;
        let mut values = Self::default();
        for (value, count) in pairs {
            let _ = values.0.record_n(value.clamp(1, US_MAX), count);
        }
        Ok(values)
    }
}

/// A distribution in a few figures, µs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// Ninety of a hundred are faster.
    pub p90_us: u64,
    /// Ninety-nine of a hundred are faster.
    pub p99_us: u64,
    /// All but one of a thousand are faster.
    pub p999_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Latency {
    /// By name, µs.
    pub fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("p50", self.p50_us),
            ("p90", self.p90_us),
            ("p99", self.p99_us),
            ("p999", self.p999_us),
            ("max", self.max_us),
        ]
    }

    /// Of these values.
    pub fn of(values: impl Iterator<Item = u64>) -> Self {
        let mut all = Values::default();
        values.for_each(|us| all.record(us));
        all.latency()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let latency = Latency::of(1..=1000);
        assert_eq!(latency.count, 1000);
        assert_eq!((latency.p50_us, latency.p90_us, latency.p99_us, latency.max_us), (500, 900, 990, 1000));
        assert_eq!(Latency::of(std::iter::empty()), Latency::default());
        assert!(Latency::of([u64::MAX].into_iter()).max_us >= US_MAX, "an hour, and no panic");
    }

    #[test]
    fn they_travel_and_add_up() {
        let mut values = Values::default();
        (1..=100_000).for_each(|us| values.record(us * 7));
        let text = serde_json::to_string(&values).unwrap();
        let mut back: Values = serde_json::from_str(&text).unwrap();
        assert_eq!(back.latency(), values.latency());
        back.add(&values);
        assert_eq!(back.latency().count, 200_000);
        assert_eq!(back.latency().p99_us, values.latency().p99_us);
    }
}
